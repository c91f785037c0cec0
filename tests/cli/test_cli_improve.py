"""`adtr improve`: from a model and some labelled anomalies to a better model, with the guard's words."""

import json
import shutil
from pathlib import Path

import pytest

from adtr.cli import main
from adtr.learning.guard import Improvement
from adtr.store import read_metadata
from conftest import Run

FEW = ["--improve-epochs", "1"]


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


@pytest.fixture
def anomalies(dataset: Path, tmp_path: Path) -> Path:
    """The test images with dark rectangles, in a folder of their type, masks in ground_truth/."""
    folder = tmp_path / "anomalies"
    shutil.copytree(dataset / "test/dark", folder / "dark")
    shutil.copytree(dataset / "ground_truth/dark", folder / "ground_truth/dark")
    return folder


def test_improve_writes_a_model_and_says_what_it_learned(
    model: Path, anomalies: Path, tmp_path: Path, run: Run
) -> None:
    output = tmp_path / "new/better"
    result = run("improve", model, "--anomalies", anomalies, "--synthetic", "scar", "-o", output, *FEW)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert lines[0].startswith("learned from 6 dark, 6 with masks, scar in ")
    assert [line.split()[0] for line in lines[1:5]] == ["before", "false", "missed", "dark"]
    assert lines[-1] == f"saved {output}; next: adtr predict {output} IMAGES..."
    assert [path.name for path in output.parent.iterdir()] == ["better"]  # no work folder stays
    record = read_metadata(output)[2]["improvements"][0]
    assert record["sources"] == ["labelled", "scar"]
    info = run("info", output).stdout
    assert "improved with labelled, scar (6 labelled images); false alarms " in info
    scored = run("predict", output, anomalies / "dark")
    assert len(scored.stdout.splitlines()) == 8, scored.stderr


def test_it_can_replace_the_model_it_started_from(model: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    assert adtr("improve", own, "--synthetic", "scar", "-o", own, *FEW, "-q") == 0
    assert len(read_metadata(own)[2]["improvements"]) == 1


@pytest.mark.parametrize("better", [True, False])
def test_keep_if_better(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, better: bool
) -> None:
    monkeypatch.setattr(Improvement, "is_better", better)
    output = tmp_path / "better"
    code = adtr("improve", model, "--synthetic", "scar", "-o", output, "--keep-if-better", *FEW)
    assert code == (0 if better else 2)
    assert output.exists() == better
    assert ("is not written (--keep-if-better)" in capsys.readouterr().err) == (not better)
    assert not list(tmp_path.glob("*.unfinished"))


def test_coco_annotations(model: Path, anomalies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"dark/00{i}.png" for i in range(4)]
    coco = {
        "images": [{"id": i, "file_name": name, "height": 96, "width": 96} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "category_id": i % 2, "bbox": [10, 10, 30, 20]} for i in range(3)],
        "categories": [{"id": 0, "name": "scratch"}, {"id": 1, "name": "dent"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    options = ("--anomalies", anomalies, "--annotations", tmp_path / "coco.json")
    assert adtr("improve", model, *options, "-o", tmp_path / "better", *FEW) == 0
    err = capsys.readouterr().err
    assert "learned from 1 dent, 2 scratch, 3 with masks" in err
    assert "1 image in" in err  # the one without annotations is good


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "nothing to learn from"),
        (["--anomalies", "nowhere"], "no such folder: nowhere"),
        (["--annotations", "x.json"], "--annotations describes the images of --anomalies"),
        (["--synthetic", "glitter"], "glitter"),
        (["--external", "nowhere"], "nowhere"),
        (["--synthetic", "scar", "--alpha", "much"], "alpha takes a number"),
        (["--synthetic", "scar", "--holdout", "0.5"], "holdout is 0.2 in this model and cannot change now"),
    ],
)
def test_mistakes_are_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert adtr("improve", model, "-o", tmp_path / "better", *options) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("adtr: error: ")
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_no_model_is_not_overwritten(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/dear.jpg").write_text("dear")
    assert adtr("improve", model, "--synthetic", "scar", "-o", tmp_path / "photos", *FEW) == 2
    assert (tmp_path / "photos/dear.jpg").read_text() == "dear"

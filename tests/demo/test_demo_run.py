"""`adtr demo` from photograph to page."""

import re
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import pytest

from adtr.cli import main
from adtr.demo.defects import DEFECTS
from adtr.demo.run import DemoResult, run_demo
from adtr.demo.textures import build_demo_dataset
from adtr.detector import AnomalyDetector
from adtr.progress import Silent
from adtr.store import read_metadata
from conftest import SMALL

pytest.importorskip("skimage")

PARTS = ["data", "index.html", "model", "panels", "samples"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A demo of few images and a small network."""
    monkeypatch.setattr("adtr.demo.run.AnomalyDetector", partial(AnomalyDetector, **(SMALL | {"epochs": 1})))
    few = partial(build_demo_dataset, train=14, test_good=2, test_per_type=1, validation=3, size=64)
    monkeypatch.setattr("adtr.demo.run.build_demo_dataset", few)


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def addresses(page: Path) -> set[str]:
    found = re.findall(r'(?:src|href)="([^"#]+)"', page.read_text("utf-8"))
    return {unquote(address) for address in found}


@pytest.mark.usefixtures("small")
def test_the_page_shows_every_test_image_and_some_good_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "demo"
    assert adtr("demo", "-o", output, "--texture", "gravel", "--seed", 3) == 0
    out, err = capsys.readouterr()
    assert f"open {output / 'index.html'}" in err
    assert "mean image" in out
    first_column = [line.split()[0] for line in out.splitlines()[2:]]
    assert first_column == [*sorted(DEFECTS), "all"]

    assert [path.name for path in output.parent.iterdir()] == ["demo"]
    assert sorted(path.name for path in output.iterdir()) == PARTS
    page = output / "index.html"
    panels = {path.relative_to(output).as_posix() for path in (output / "panels").rglob("*.jpg")}
    samples = {path.relative_to(output).as_posix() for path in (output / "samples").iterdir()}
    assert len(panels) == 2 + len(DEFECTS)
    assert len(samples) == 6
    assert addresses(page) == panels | samples
    text = page.read_text("utf-8")
    assert "adtr on gravel" in text
    config, calibration, metadata = read_metadata(output / "model")
    assert (metadata["training"]["images"], calibration.images) == (14, 3)
    assert "of 2 good images" in text
    assert "at most 25.0% promised" in text
    assert config.training.seed == 3
    assert f"above {calibration.thresholds(0.01).image:.4g}" in text
    assert adtr("evaluate", output / "model", output / "data") == 0


@pytest.mark.usefixtures("small")
def test_a_second_demo_takes_the_place_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "demo"
    assert adtr("demo", "-o", output, "-q") == 0
    before = (output / "data/train/good/000.png").read_bytes()
    assert capsys.readouterr().err == ""
    assert adtr("demo", "-o", output, "-q", "--texture", "grass") == 0
    assert sorted(path.name for path in output.iterdir()) == PARTS
    assert "adtr on grass" in (output / "index.html").read_text("utf-8")
    assert (output / "data/train/good/000.png").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]

    (output / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert adtr("demo", "-o", output) == 2
    assert "holds notes.txt, which is no part of an earlier demo" in capsys.readouterr().err
    assert "adtr on grass" in (output / "index.html").read_text("utf-8")


@pytest.mark.usefixtures("small")
def test_a_demo_that_is_stopped_leaves_the_earlier_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    output = tmp_path / "demo"
    with monkeypatch.context() as stopped:
        stopped.setattr("adtr.demo.run.write_index", interrupt)
        assert adtr("demo", "-o", output, "-q") == 130
        assert list(tmp_path.iterdir()) == []
        assert adtr("demo", "-o", output, "-q") == 130
    assert adtr("demo", "-o", output, "-q") == 0
    page = (output / "index.html").read_bytes()
    monkeypatch.setattr("adtr.demo.run.write_index", interrupt)
    assert adtr("demo", "-o", output, "-q", "--seed", 1) == 130
    assert (output / "index.html").read_bytes() == page
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_detector_beats_the_mean_image(tmp_path: Path) -> None:
    result: DemoResult = run_demo(tmp_path, texture="brick", seed=7, progress=Silent())
    ours, theirs = result.metrics, result.baseline
    assert ours.images == 12 + 6 * len(DEFECTS)
    assert ours.pixel_auroc is not None
    assert theirs.pixel_auroc is not None
    assert ours.image_auroc is not None
    assert theirs.image_auroc is not None
    assert ours.pixel_auroc > max(0.9, theirs.pixel_auroc + 0.1)
    assert ours.image_auroc > theirs.image_auroc
    assert all((tmp_path / address).is_file() for address in addresses(result.page))

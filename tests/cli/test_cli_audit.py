"""`adtr audit`: the list on stdout, the files, and the mistakes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.cli import main
from conftest import SMALL, Run, defect_image

FLAGS = [word for name in ("image_size", "grid_size") for word in (f"--{name.replace('_', '-')}", str(SMALL[name]))]


def test_audit_lists_shows_and_records(dataset: Path, tmp_path: Path, run: Run) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "discs"))
    Image.fromarray(defect_image(np.random.default_rng(3))[0]).save(folder / "train/good/planted.png")
    shutil.copy(folder / "train/good/001.png", folder / "test/good/leaked.png")
    output = tmp_path / "audit"
    result = run("audit", folder, "-o", output, "--top", 5, *FLAGS)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "share", "score", "severity", "image"]
    assert lines[1].split()[:2] == ["1", "4.0%"]
    assert lines[1].endswith("planted.png")
    assert len(lines) == 7
    assert lines[6].startswith("leak: identical: ")
    assert "001.png (train, good)" in lines[6]
    assert "leaked.png (test, good)" in lines[6]
    assert "25 good images ranked in " in result.stderr
    assert "0 contradictions, 1 leaks, 0 duplicates" in result.stderr
    record = json.loads((output / "audit.json").read_text())
    assert [image["rank"] for image in record["images"]] == list(range(1, 26))
    with Image.open(output / "contact.jpg") as sheet:
        assert sheet.format == "JPEG"
        assert sheet.width > 4 * 96
    assert sorted(path.name for path in output.iterdir()) == ["audit.json", "contact.jpg"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no such folder: nowhere"),
        (["{data}", "--preset", "quik"], "did you mean quick?"),
        (["{data}", "--image-size", "seven"], "image_size takes a number of pixels"),
        (["{data}", "-o", "{data}/train/good/000.png"], "is a file, not a folder"),
        (["{data}", "--top", "0"], "--top"),
    ],
)
def test_mistakes_are_one_line(
    dataset: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["audit", *(word.format(data=dataset) for word in arguments)])
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1

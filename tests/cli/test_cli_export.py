"""`adtr export`: files from models, their parity on stderr, and what goes wrong in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adtr.cli import main
from adtr.deploy.sealed import read_sealed
from adtr.detector import AnomalyDetector
from adtr.store import SEAL, seal
from conftest import SMALL

pytestmark = pytest.mark.usefixtures("traced")


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


@pytest.fixture(scope="module")
def exported(
    model: Path,
    dataset: Path,
    traced: None,  # noqa: ARG001
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    file = tmp_path_factory.mktemp("exported") / "new" / "discs.onnx"
    assert adtr("export", model, "--output", file, "--data", dataset) == 0
    return file


def test_parity_is_measured_and_told(
    model: Path, exported: Path, dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert adtr("export", model, "-o", tmp_path / "a.onnx", "--images", dataset / "test/good") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "against fp32: 8 images: scores differ by at most" in err
    assert "0 decisions flipped" in err
    assert "AUROC" not in err
    assert "(measured with this file)" in err
    assert err.endswith(f"saved {tmp_path / 'a.onnx'}; next: adtr predict {tmp_path / 'a.onnx'} IMAGES...\n")
    parity = read_sealed(exported).metadata["export"]["parity"]["fp32"]
    assert parity["images"] == 16 + 16
    assert 0 < parity["score_max"] < 1e-3
    assert abs(parity["image_auroc_change"]) < 0.01
    assert abs(parity["pixel_auroc_change"]) < 0.001


def test_chosen_held_out_images_set_the_thresholds_of_the_file(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fitted = AnomalyDetector(**SMALL, max_steps=2).fit(dataset, held_out=dataset / "test/good")
    fitted.save(tmp_path / "model")
    assert adtr("export", tmp_path / "model", "-o", tmp_path / "a.onnx") == 0
    assert "(measured with this file)" in capsys.readouterr().err
    sealed = read_sealed(tmp_path / "a.onnx")
    assert sealed.calibration.images == 8
    assert sealed.calibration.image_scores == pytest.approx(fitted.calibration_.image_scores, rel=1e-3)
    assert str(dataset) not in json.dumps(sealed.metadata)


def test_predict_evaluate_and_info_take_the_file(
    exported: Path, dataset: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert adtr("predict", exported, dataset / "test/dark", "--maps", tmp_path / "maps") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == len(list((tmp_path / "maps").iterdir())) == 8
    assert adtr("evaluate", exported, dataset, "-o", tmp_path / "report.json") == 0
    assert json.loads((tmp_path / "report.json").read_text())["image_auroc"] > 0.9
    capsys.readouterr()
    assert adtr("info", exported) == 0
    assert "learned from" in capsys.readouterr().out


def test_beyond_the_tolerance_nothing_is_left(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("export", model, "-o", tmp_path / "a.onnx", "--tolerance", 0) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "more than the tolerance 0; nothing was written" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("precision", "difference"), [("fp16", 0.02), ("int8", 2.5)])
def test_lower_precision_is_measured_too(
    precision: str, difference: float, model: Path, exported: Path, dataset: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.onnx"
    assert (
        adtr("export", model, "-o", file, "--precision", precision, "--data", dataset, "--tolerance", difference, "-q")
        == 0
    )
    assert file.stat().st_size < 0.7 * exported.stat().st_size
    parity = read_sealed(file).metadata["export"]["parity"]["fp32"]
    assert 0 < parity["score_max"] < difference
    assert abs(parity["image_auroc_change"]) < 0.1
    theirs = AnomalyDetector.load(exported).predict(dataset / "test/dark")
    for ours, other in zip(AnomalyDetector.load(file).predict(dataset / "test/dark"), theirs, strict=True):
        assert ours.score == pytest.approx(other.score, rel=difference)


def test_a_torch_program(model: Path, tmp_path: Path, detector: AnomalyDetector, dataset: Path) -> None:
    import torch
    from PIL import Image

    assert adtr("export", model, "--format", "torch", "-o", tmp_path / "a.pt2", "-q") == 0
    files = {"adtr.json": ""}
    program = torch.export.load(tmp_path / "a.pt2", extra_files=files)
    assert json.loads(files["adtr.json"])["export"]["format"] == "torch"
    image = next((dataset / "test/dark").iterdir())
    pixels = torch.from_numpy(np.array(Image.open(image)))[None]
    score = program.module()(pixels)[0]
    assert float(score[0]) == pytest.approx(detector.predict(image)[0].score, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "a.pth"], "must end in .onnx, not 'a.pth'"),
        (["-f", "openvino", "-o", "a.onnx"], "must end in .xml"),
        (["-f", "torch", "-o", "a.pt2", "--precision", "fp16"], "written in fp32, not fp16"),
        (["-o", "a.onnx", "--images", "nowhere"], "nowhere"),
        (["-o", "a.onnx", "--data", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    words: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adtr("export", model, *arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert words in err
    assert not list(tmp_path.iterdir())


def test_without_the_good_images_others_must_be_given(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(model, moved)
    metadata = json.loads((moved / "metadata.json").read_text())
    metadata["data"]["path"] = str(tmp_path / "gone")
    (moved / "metadata.json").write_text(json.dumps({**metadata, SEAL: seal(metadata)}))
    assert adtr("export", moved, "-o", tmp_path / "a.onnx") == 2
    assert "not at hand" in capsys.readouterr().err
    assert adtr("export", moved, "-o", tmp_path / "a.onnx", "--images", dataset / "test/good") == 0
    assert "(the model's own)" in capsys.readouterr().err
    sealed = read_sealed(tmp_path / "a.onnx")
    assert list(sealed.calibration.image_scores) == metadata["calibration"]["image_scores"]


def test_an_exported_file_neither_learns_nor_is_exported_again(
    exported: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adtr("export", exported, "-o", tmp_path / "a.onnx") == 2
    assert "exported file already" in capsys.readouterr().err
    assert adtr("improve", exported, "--anomalies", dataset / "test", "-o", tmp_path / "better") == 2
    assert "which cannot learn" in capsys.readouterr().err

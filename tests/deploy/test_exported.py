"""Exported files predict and evaluate like the detector that they were made of, without torch."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image, ImageOps

from adtr.deploy.exported import ExportedDetector
from adtr.deploy.sealed import read_sealed
from adtr.detector import AnomalyDetector
from adtr.errors import ConfigError, ModelError
from conftest import defect_image, good_image

BLOCKER = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} is not installed")
sys.meta_path.insert(0, Block())
"""
ABSENT = (
    "torch",
    "torchvision",
    "timm",
    "lightning_fabric",
    "sklearn",
    "safetensors",
    "rich",
    "yaml",
    "onnx",
    "openvino",
)


@pytest.fixture(params=["onnx_file", "openvino_file"])
def exported(request: pytest.FixtureRequest) -> ExportedDetector:
    return AnomalyDetector.load(request.getfixturevalue(request.param))


def test_it_predicts_as_the_detector_does(exported: ExportedDetector, detector: AnomalyDetector, dataset: Path) -> None:
    assert isinstance(exported, ExportedDetector)
    for ours, theirs in zip(exported.predict(dataset / "test"), detector.predict(dataset / "test"), strict=True):
        assert ours.score == pytest.approx(theirs.score, rel=1e-3)
        np.testing.assert_allclose(ours.anomaly_map, theirs.anomaly_map, rtol=1e-2)
        assert ours.path == theirs.path
        assert ours.verdict == theirs.verdict
    assert exported.thresholds_.image == pytest.approx(detector.thresholds_.image, rel=1e-3)
    assert exported.thresholds_.pixel == pytest.approx(detector.thresholds_.pixel, rel=1e-3)


def test_it_evaluates_as_the_detector_does(
    exported: ExportedDetector, detector: AnomalyDetector, dataset: Path
) -> None:
    ours, theirs = exported.evaluate(dataset), detector.evaluate(dataset)
    assert ours.image_auroc == theirs.image_auroc
    assert ours.pixel_auroc == pytest.approx(theirs.pixel_auroc, abs=1e-4)


def test_rates_change_without_training(exported: ExportedDetector, dataset: Path) -> None:
    thresholds = exported.set_rates(0.3, 0.5)
    assert thresholds.promised_rate <= 0.3
    assert {p.verdict for p in exported.predict(dataset / "test")} <= {"good", "unsure", "anomalous"}


def test_plain_onnxruntime_gives_the_same_on_raw_images(
    onnx_file: Path, detector: AnomalyDetector, tmp_path: Path
) -> None:
    rng = np.random.default_rng(3)
    session = onnxruntime.InferenceSession(onnx_file)
    threshold = AnomalyDetector.load(onnx_file).thresholds_.image
    for i, pixels in enumerate((good_image(rng, 70), defect_image(rng, 131)[0][:, 20:])):
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        image = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / f"{i}.png")).convert("RGB"))
        score, is_anomalous, anomaly_map, mask = session.run(
            ["score", "is_anomalous", "anomaly_map", "mask"], {"images": image[None]}
        )
        prediction = detector.predict(tmp_path / f"{i}.png")[0]
        assert score[0] == pytest.approx(prediction.score, rel=1e-3)
        assert is_anomalous[0] == (score[0] > threshold)
        assert mask.shape == (1, *image.shape[:2])
        np.testing.assert_allclose(anomaly_map[0], prediction.anomaly_map, rtol=0.02)


def test_a_batch_is_as_its_images_one_by_one(onnx_file: Path) -> None:
    rng = np.random.default_rng(4)
    batch = np.stack([good_image(rng, 50) for _ in range(11)])
    session = onnxruntime.InferenceSession(onnx_file)
    (scores,) = session.run(["score"], {"images": batch})
    single = [session.run(["score"], {"images": image[None]})[0][0] for image in batch]
    np.testing.assert_allclose(scores, single, rtol=1e-5)


def test_predict_works_where_torch_is_absent(onnx_file: Path, dataset: Path, detector: AnomalyDetector) -> None:
    code = (
        BLOCKER.format(blocked=ABSENT)
        + f"from adtr.cli import main\nmain({['predict', str(onnx_file), str(dataset / 'test')]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    for row, prediction in zip(rows, detector.predict(dataset / "test"), strict=True):
        assert row["path"] == str(prediction.path)
        assert row["score"] == pytest.approx(prediction.score, rel=1e-3)
        assert row["verdict"] == prediction.verdict


def test_without_onnxruntime_the_error_names_the_extra(onnx_file: Path, dataset: Path) -> None:
    code = (
        BLOCKER.format(blocked=("onnxruntime",))
        + f"from adtr.cli import main\nmain(['predict', {str(onnx_file)!r}, {str(dataset)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert done.stderr == "adtr: error: ONNX files need onnxruntime: pip install 'adtr[onnx]'\n"


def test_another_device_is_refused(onnx_file: Path) -> None:
    with pytest.raises(ConfigError, match="on the CPU"):
        AnomalyDetector.load(onnx_file, device="cuda")


def test_a_graph_that_gives_something_else_is_one_line(onnx_file: Path, dataset: Path) -> None:
    sealed = read_sealed(onnx_file)

    def fails(_images: np.ndarray, _names: Sequence[str]) -> list[np.ndarray]:
        raise RuntimeError("Failed to allocate memory\nfor requested buffer")

    for run, words in (
        (lambda images, _: [np.zeros((len(images), 2)), np.zeros((len(images), 8, 8))], "no score and map"),
        (lambda images, _: [np.zeros(len(images)), np.zeros((8, 8))], "no score and map"),
        (lambda images, _: [np.full(len(images), np.nan), np.zeros((len(images), 8, 8))], "no finite numbers"),
        (fails, "cannot be run here (Failed to allocate memory for requested buffer)"),
    ):
        with pytest.raises(ModelError) as caught:
            ExportedDetector(sealed, run).predict(dataset / "test")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_openvino_does_not_tell_its_makers(openvino_file: Path, dataset: Path) -> None:
    code = "import sys; from adtr.detector import AnomalyDetector as A; A.load(sys.argv[1]).predict(sys.argv[2])\n"
    code += "print([name for name in sys.modules if name.startswith('openvino_telemetry') and sys.modules[name]])"
    command = [sys.executable, "-c", code, str(openvino_file), str(dataset / "test")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "[]\n"

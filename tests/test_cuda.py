"""On a GPU, which the other tests do not use: `CUDA_VISIBLE_DEVICES=0 pytest tests/test_cuda.py`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adtr.detector import AnomalyDetector
from conftest import SMALL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA, and CUDA_VISIBLE_DEVICES")

ROUNDING = 0.02
"""Convolutions in TF32 and products in bf16 differ from float32, and from batch size to batch size."""


@pytest.fixture(scope="module", params=["fp32", "bf16"])
def on_gpu(dataset: Path, request: pytest.FixtureRequest) -> AnomalyDetector:
    settings = {**SMALL, "precision": request.param, "memory_size": 500, "epochs": 15}
    return AnomalyDetector(**settings, device="cuda").fit(dataset, keep_features=True)


def test_it_learns_to_detect(on_gpu: AnomalyDetector, dataset: Path) -> None:
    losses = on_gpu.metadata_["training"]["losses"]
    assert losses[-1] < 0.6 * losses[0]
    assert on_gpu.network_.reconstruction.query.device.type == "cuda"
    assert on_gpu.evaluate(dataset).image_auroc > 0.95


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_starts_as_on_the_cpu(dataset: Path, optimizer: str) -> None:
    settings = {**SMALL, "optimizer": optimizer}
    runs = [AnomalyDetector(**settings, device=device).fit(dataset) for device in ("cuda", "cpu")]
    first, other = (run.metadata_["training"]["losses"][0] for run in runs)
    assert first == pytest.approx(other, rel=0.05)


def test_the_saved_model_says_the_same_on_the_cpu(on_gpu: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    on_gpu.save(tmp_path / "model")
    images = sorted((dataset / "test").rglob("*.png"))
    on_cpu = AnomalyDetector.load(tmp_path / "model", device="cpu").predict(images)
    for here, there in zip(on_gpu.predict(images), on_cpu, strict=True):
        assert here.score == pytest.approx(there.score, rel=ROUNDING)


def test_the_batch_size_changes_nothing_but_roundings(on_gpu: AnomalyDetector, dataset: Path) -> None:
    images = sorted((dataset / "test").rglob("*.png"))
    for one, many in zip(on_gpu.predict(images, batch_size=1), on_gpu.predict(images), strict=True):
        assert one.score == pytest.approx(many.score, rel=ROUNDING)


def test_it_goes_on_to_learn_from_anomalies(on_gpu: AnomalyDetector, dataset: Path) -> None:
    better = on_gpu.improve(dataset / "test/dark", synthetic=["confetti"], improve_epochs=1)
    assert better.network_.reconstruction.query.device.type == "cuda"
    assert better.evaluate(dataset).image_auroc > 0.95

"""The same seed gives the same bits, however the images are loaded, in this process or another."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from adtr.data.loading import load_images
from adtr.detector import AnomalyDetector
from adtr.store import WEIGHTS
from adtr.training import features
from conftest import SMALL

FAST = {**SMALL, "epochs": 2}


def bits(detector: AnomalyDetector, folder: Path, images: Path) -> list[bytes]:
    """Of the weights, the thresholds and the predictions."""
    detector.save(folder)
    predictions = detector.predict(images)
    return [
        (folder / WEIGHTS).read_bytes(),
        np.array([*detector.calibration_.image_scores, *detector.calibration_.pixel_maxima]).tobytes(),
        *(np.float64(p.score).tobytes() + p.score_map.tobytes() for p in predictions),
    ]


@pytest.fixture(scope="module")
def expected(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    return bits(AnomalyDetector(**FAST).fit(dataset), tmp_path_factory.mktemp("expected") / "model", dataset / "test")


@pytest.mark.parametrize("workers", [1, 5])
def test_the_number_of_loading_threads_changes_nothing(
    workers: int, expected: list[bytes], dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "load_images", partial(load_images, workers=workers))
    monkeypatch.setattr("adtr.predictor.load_images", partial(load_images, workers=workers))
    assert bits(AnomalyDetector(**FAST).fit(dataset), tmp_path / "model", dataset / "test") == expected


def test_what_ran_before_in_the_process_changes_nothing(expected: list[bytes], dataset: Path, tmp_path: Path) -> None:
    np.random.seed(7)  # noqa: NPY002 - the global state, which nobody may depend on
    AnomalyDetector(**{**FAST, "seed": 5, "max_steps": 1}).fit(dataset)
    assert bits(AnomalyDetector(**FAST).fit(dataset), tmp_path / "model", dataset / "test") == expected


def test_another_seed_gives_another_model(expected: list[bytes], dataset: Path, tmp_path: Path) -> None:
    other = bits(AnomalyDetector(**{**FAST, "seed": 1}).fit(dataset), tmp_path / "model", dataset / "test")
    assert all(a != b for a, b in zip(other, expected, strict=True))


@pytest.mark.slow
def test_another_process_gives_the_same_model(expected: list[bytes], dataset: Path, tmp_path: Path) -> None:
    flags = [part for name, value in FAST.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "adtr", "fit", dataset, "-o", tmp_path / "model", *flags, "-q"]
    subprocess.run([*map(str, command)], check=True, timeout=300)
    assert bits(AnomalyDetector.load(tmp_path / "model"), tmp_path / "again", dataset / "test") == expected

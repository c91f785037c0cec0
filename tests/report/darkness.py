"""A detector that needs no training: how dark an image is in its darkest part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adtr.calibration import Calibration
from adtr.config import load_preset
from adtr.data.loading import LoadedImage
from adtr.predictor import Predictor

HELD_OUT = tuple(np.linspace(5, 24, 39).tolist())
"""Scores of 39 good images: 1 in 40 can be promised."""


class Darkness(Predictor):
    """Scores are 255 minus the brightness; the calibration knows good images of brightness 231 to 250."""

    def __init__(self, *, folds: int = 0, unsure_rate: float = 0.0) -> None:
        self.fitted_config_ = load_preset("quick").override(image_size=16, grid_size=16)
        self.calibration_ = Calibration(image_scores=HELD_OUT, pixel_maxima=HELD_OUT, folds=folds)
        self.metadata_ = {
            "adtr": "0.0",
            "created": "2024-05-06T07:08:09+00:00",
            "versions": {"torch": "2.9"},
            "python": "3.12",
            "data": {"folder": "parts", "images": 195, "held_out": 39, "image_hashes": []},
        }
        self.set_rates(0.025, unsure_rate)

    def _compare(self, batch: Sequence[LoadedImage]) -> tuple[np.ndarray, np.ndarray]:
        maps = 255 - np.stack([image.pixels.mean(axis=-1) for image in batch]).astype(np.float32)
        return maps.max(axis=(1, 2)), maps

    def _require_fitted(self) -> None:
        pass


def write_parts(root: Path, scores: dict[str, Sequence[float]], *, masks: Sequence[str] = ()) -> Path:
    """A data set in MVTec's layout whose images get these scores from `Darkness`, by type."""
    for kind, of_type in scores.items():
        (root / "test" / kind).mkdir(parents=True)
        for i, score in enumerate(of_type):
            pixels = np.full((32, 48), 253, np.uint8)
            pixels[8:24, 8:24] = 255 - round(score)
            Image.fromarray(pixels).save(root / "test" / kind / f"{i:03}.png")
            if kind in masks:
                (root / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray((pixels < 253).astype(np.uint8) * 255).save(
                    root / "ground_truth" / kind / f"{i:03}_mask.png"
                )
    return root


SCORES: dict[str, Sequence[float]] = {
    "good": [6, 9, 12, 15, 18, 21, 23, 30, 90],
    "crack": [15, 60, 70, 80, 90],
    "dent": [20, 24, 40, 41],
}
"""With a threshold of 24: two false alarms of 9, one missed crack of 5, two missed dents of 4."""


def names(shown: Sequence[Any]) -> list[str]:
    """Type and file name of shown images."""
    return [f"{each.judged.sample.defect_type}/{each.judged.sample.path.stem}" for each in shown]

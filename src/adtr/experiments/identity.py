"""Section 3.2 made visible: how far a reconstruction comes to copy whatever enters it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from adtr.config import Config
from adtr.errors import DataError
from adtr.experiments.features import grid_truth
from adtr.experiments.subjects import Subject
from adtr.learning.learned import Reader
from adtr.metrics import MetricsAccumulator
from adtr.model.comparison import score_map
from adtr.model.network import ADTR

IMAGES = 32
"""Good and anomalous test images, each, that are looked at."""


def reproduced(features: Tensor, difference: Tensor, mean: Tensor) -> float:
    """Which share of the features' variation a reconstruction reproduces: 1 for a copy, 0 for the mean, else below.

    Args:
        features: of some positions, (n, C).
        difference: what is missing in their reconstruction, (n, C).
        mean: around which they vary, (C,).
    """
    return float(1 - difference.square().sum() / (features - mean).square().sum())


class Trace:
    """Measures the network while it trains, on test images, at steps that grow apart by half.

    Normal regions are the positions of good images; anomalous ones those that the masks touch. As a control, the
    tokens of good images change their places at random: a copy reproduces them no worse, while whoever expects
    something at each place fails.

    Args:
        subject: gives the test images.
        reader: embeds them.
        config: of the training.

    Raises:
        DataError: no test image has a mask.
    """

    def __init__(self, subject: Subject, reader: Reader, config: Config) -> None:
        if not subject.has_masks:
            raise DataError(f"{subject.name} has no masks, without which nothing is known of anomalous regions")
        self.subject, self.reader, self.config = subject, reader, config
        self.points: list[dict[str, Any]] = []
        self._next = 0

    def __call__(self, network: ADTR, step: int) -> None:
        """Measure, if it is time."""
        if step >= self._next:
            self.measure(network, step)
            self._next = max(step + 1, round(1.5 * step))

    def finish(self, network: ADTR, steps: int) -> None:
        """Measure the trained network, if the last step was not."""
        if self.points[-1]["step"] < steps:
            self.measure(network, steps)

    @torch.no_grad()
    def measure(self, network: ADTR, step: int) -> None:
        """Add a point to the curve."""
        embedded, rows, truth = grid_truth(network, self.subject, self.reader)
        good = [i for i, row in enumerate(rows) if not bool(truth[i].any())]
        bad = [i for i, row in enumerate(rows) if bool(truth[i].any())]
        chosen = [*_evenly(good), *_evenly(bad)]
        device = network.feature_mean.device
        truth = truth[chosen].to(device)
        features = network.target(embedded.cache.on(device, torch.tensor([rows[i] for i in chosen])))
        normal = features[: len(_evenly(good))]
        mean = normal.mean(dim=(0, 1))
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.stack([image[torch.randperm(len(image), generator=generator).to(device)] for image in normal])
        difference = torch.cat([network.difference(part) for part in features.split(16)])
        of_shuffled = torch.cat([network.difference(part) for part in shuffled.split(16)])
        inside = truth.flatten()
        self.points.append(
            {
                "step": step,
                "normal": reproduced(normal.flatten(0, 1), difference[: len(normal)].flatten(0, 1), mean),
                "anomalous": reproduced(features.flatten(0, 1)[inside], difference.flatten(0, 1)[inside], mean),
                "shuffled": reproduced(shuffled.flatten(0, 1), of_shuffled.flatten(0, 1), mean),
                "pixel_auroc": self._auroc(difference, truth),
            }
        )

    def _auroc(self, difference: Tensor, truth: Tensor) -> float | None:
        """Of the positions of the grid."""
        grid = self.config.embedding.grid_size
        accumulator = MetricsAccumulator()
        for positions, mask in zip(score_map(difference, grid).cpu(), truth.cpu(), strict=True):
            kind = "anomalous" if bool(mask.any()) else "good"
            accumulator.add(
                float(positions.max()), positions.numpy(), mask.unflatten(0, grid).numpy(), defect_type=kind
            )
        return accumulator.compute().pixel_auroc


def _evenly(rows: list[int]) -> list[int]:
    """At most `IMAGES` of them, spread over all."""
    return [rows[i * len(rows) // IMAGES] for i in range(IMAGES)] if len(rows) > IMAGES else rows

"""Features that several runs share: the backbone is frozen, so one pass serves every seed and every reconstructor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adtr.config import EmbeddingConfig
from adtr.experiments.subjects import Subject
from adtr.learning.learned import Reader
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.model.network import ADTR
from adtr.prediction import upsample
from adtr.training.features import EmbeddedImages, score_cached

EXTERNAL = "external images"
"""The one stage whose images differ from seed to seed."""


@dataclass(frozen=True, kw_only=True)
class SharedReader(Reader):
    """Remembers the features of the good and the test images, until it is told to forget.

    A source that is no path is known by its identity: whoever lets go of such images has the reader forget them.
    """

    remembered: dict[tuple[Any, ...], EmbeddedImages] = field(default_factory=dict)

    def embed(self, network: ADTR, sources: Sequence[object], stage: str = "features") -> EmbeddedImages:
        """The features at hand, or those of a pass of the backbone."""
        if stage == EXTERNAL:
            return super().embed(network, sources, stage)
        key = (network.config.embedding, network.config.training.precision, network.embedding.sha256, _names(sources))
        if key not in self.remembered:
            self.remembered[key] = super().embed(network, sources, stage)
        return self.remembered[key]

    def keep(self, embedding: EmbeddingConfig, *sources: Sequence[object]) -> None:
        """Forget all but what some images look like to one embedding."""
        kept = {_names(images) for images in sources}
        for key in [key for key in self.remembered if key[0] != embedding or key[-1] not in kept]:
            self.remembered.pop(key).cache.close()

    def forget(self) -> None:
        """Let all the memory go."""
        for embedded in self.remembered.values():
            embedded.cache.close()
        self.remembered.clear()


def _names(sources: Sequence[object]) -> tuple[object, ...]:
    return tuple(source if isinstance(source, Path) else id(source) for source in sources)


def evaluate(network: ADTR, subject: Subject, reader: Reader, chosen: Sequence[int] | None = None) -> Metrics:
    """Metrics on the test images, or on some of them, from their features.

    Pixels count at each image's own size; where no image has a mask, only images are judged.
    """
    embedded = reader.embed(network, subject.test, stage="test images")
    rows = list(range(len(subject.test))) if chosen is None else list(chosen)
    scores, maps = score_cached(network, embedded.cache, torch.tensor(rows))
    accumulator = MetricsAccumulator()
    for i, score, score_map in zip(rows, scores, maps, strict=True):
        size, kind = embedded.sizes[i], subject.types[i]
        anomaly_map = upsample(score_map, size) if subject.has_masks else None
        truth = subject.truth(i, size) if subject.has_masks and kind != "good" else None
        accumulator.add(float(score), anomaly_map, truth, defect_type=kind)
    return accumulator.compute()


def grid_truth(network: ADTR, subject: Subject, reader: Reader) -> tuple[EmbeddedImages, list[int], torch.Tensor]:
    """Features of the test images, the rows whose anomalous positions are known, and those, (n, N) bool."""
    from adtr.training.adaptation import mask_on_grid

    embedded = reader.embed(network, subject.test, stage="test images")
    grid = network.config.embedding.grid_size
    rows, masks = [], []
    for i, size in enumerate(embedded.sizes):
        truth = subject.truth(i, size)
        if truth is not None:
            rows.append(i)
            masks.append(mask_on_grid(np.asarray(truth), grid).bool())
    return embedded, rows, torch.stack(masks)

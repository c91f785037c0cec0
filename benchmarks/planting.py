"""What the benchmarks of dirty training sets share: real defective images planted among the good training images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adtr.config import Config
from adtr.data.folder import Sample, open_dataset
from adtr.device import choose_device, choose_precision
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import embed_images


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """A data set whose images are embedded once for all runs: training images first, then test images."""

    samples: list[Sample]
    sizes: list[tuple[int, int]]
    cache: FeatureCache
    train: NDArray[np.int64]
    """Rows of the good training images."""
    good: NDArray[np.int64]
    """Rows of the good test images."""
    bad: NDArray[np.int64]
    """Rows of the defective ones."""

    @classmethod
    def of(cls, folder: Path, config: Config) -> Embedded:
        """Read and embed all its images."""
        dataset = open_dataset(folder)
        samples = [*dataset.train, *dataset.test]
        embedded = embed_images(new_network(config), [sample.path for sample in samples])
        rows, anomalous = np.arange(len(samples)), np.array([sample.is_anomalous for sample in samples])
        first = len(dataset.train)
        return cls(
            samples=samples,
            sizes=embedded.sizes,
            cache=embedded.cache,
            train=rows[:first],
            good=rows[first:][~anomalous[first:]],
            bad=rows[anomalous],
        )

    def plant(self, share: float, seed: int) -> NDArray[np.int64]:
        """Rows of defective images, as many as a share of the training images; a smaller share's are among them."""
        order = np.random.default_rng(seed).permutation(self.bad)
        return order[: round(share * len(self.train))]


def new_network(config: Config) -> ADTR:
    """As `fit` starts from."""
    import torch

    torch.manual_seed(config.training.seed)
    device = choose_device("auto")
    return ADTR(config).place(device, choose_precision(config.training.precision, device))


def part_of(cache: FeatureCache, rows: NDArray[np.int64]) -> FeatureCache:
    """Some rows as a cache of their own."""
    import torch

    return FeatureCache.of(cache.features[torch.from_numpy(rows)])

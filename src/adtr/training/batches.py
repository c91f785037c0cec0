"""What a training step sees, and what it is judged by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from adtr.model.losses import reconstruction_loss
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache

WHOLE = slice(None)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images of one training step."""

    features: Tensor
    """Standardised feature tokens, (B, N, C)."""
    labels: Tensor
    """y of each image, (B,): 0 for normal, 1 for anomalous."""
    masks: Tensor
    """y(u) of each position, (B, N), from 0 to 1; all 0 where `has_mask` is false."""
    has_mask: Tensor
    """Whether an image's anomalous positions are known, (B,) bool; those of a normal image are."""

    def __len__(self) -> int:
        return len(self.features)

    def split(self, size: int) -> Iterator[Batch]:
        """Parts of at most `size` images."""
        parts = [t.split(size) for t in (self.features, self.labels, self.masks, self.has_mask)]
        for features, labels, masks, has_mask in zip(*parts, strict=True):
            yield Batch(features=features, labels=labels, masks=masks, has_mask=has_mask)

    @classmethod
    def normal(cls, features: Tensor) -> Batch:
        """Images without any anomaly."""
        images, tokens = features.shape[:2]
        return cls(
            features=features,
            labels=features.new_zeros(images),
            masks=features.new_zeros(images, tokens),
            has_mask=torch.ones(images, dtype=torch.bool, device=features.device),
        )

    @classmethod
    def anomalous(cls, features: Tensor, masks: Tensor, has_mask: Tensor) -> Batch:
        """Images with an anomaly each."""
        device = features.device
        labels = features.new_ones(len(features))
        return cls(features=features, labels=labels, masks=masks.to(device), has_mask=has_mask.to(device))

    def __add__(self, other: Batch) -> Batch:
        return Batch(
            features=torch.cat([self.features, other.features]),
            labels=torch.cat([self.labels, other.labels]),
            masks=torch.cat([self.masks, other.masks]),
            has_mask=torch.cat([self.has_mask, other.has_mask]),
        )


class TrainingData(Protocol):
    """Gives the batches of a training and their loss. An epoch is a pass over its good images."""

    def __len__(self) -> int:
        """Good images in an epoch."""

    def batch_size(self, good: int) -> int:
        """Images in a batch that holds so many good ones."""

    def batch(self, rows: Tensor, step: int, share: slice = WHOLE) -> Batch:
        """The batch of a step, which holds the good images `rows`; the same arguments give the same batch.

        Of a batch that several processes share, each takes the images of its `share`.
        """

    def loss(self, batch: Batch, reconstructed: Tensor) -> Tensor:
        """One value per image, (B,)."""


class GoodImages:
    """Trains on good images only, with L_norm (Eq. 1).

    Args:
        network: standardises the features.
        cache: raw features of all images.
        index: rows of `cache` to train on, (n,) int64.
    """

    def __init__(self, network: ADTR, cache: FeatureCache, index: Tensor) -> None:
        self.network, self.cache, self.index = network, cache, index

    def __len__(self) -> int:
        return len(self.index)

    def batch_size(self, good: int) -> int:
        """There are no others."""
        return good

    def batch(self, rows: Tensor, step: int, share: slice = WHOLE) -> Batch:  # noqa: ARG002 - the step decides nothing
        """Cached features of some of the good images."""
        features = self.cache.on(self.network.feature_mean.device, self.index[rows[share]])
        return Batch.normal(self.network.target(features))

    def loss(self, batch: Batch, reconstructed: Tensor) -> Tensor:
        """L_norm."""
        return reconstruction_loss(batch.features, reconstructed)

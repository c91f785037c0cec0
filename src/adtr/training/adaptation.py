"""ADTR+ (Section 3.3): batches of good and anomalous images, each judged by the loss that its label allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from adtr.config import ImprovementConfig
from adtr.data.synthetic import SYNTHETIC
from adtr.model.losses import image_loss, pixel_loss, pseudo_huber
from adtr.model.network import ADTR
from adtr.training.batches import WHOLE, Batch, GoodImages


def mask_on_grid(mask: NDArray[np.bool_], grid: tuple[int, int]) -> Tensor:
    """y(u) of an image: a position is anomalous as soon as one of its pixels is, so that small defects survive.

    Args:
        mask: (h, w), of any size.
        grid: H and W.

    Returns:
        (H * W,) float32, 0 or 1.
    """
    pixels = torch.from_numpy(np.ascontiguousarray(mask)).float()
    return functional.adaptive_max_pool2d(pixels[None, None], grid).flatten()


Share = slice | NDArray[np.bool_]
"""Which anomalies of a batch this process takes."""


class AnomalySource(Protocol):
    """Where the anomalies of a training come from."""

    name: str
    has_masks: bool
    """Whether any of them has a mask."""

    @property
    def fingerprint(self) -> str:
        """Tells this source from others, so that a checkpoint of others is refused."""

    def draw(self, count: int, rng: np.random.Generator, share: Share = WHOLE) -> Batch:
        """So many anomalies, and of them those of the share; an equal generator gives equal ones."""


class KnownAnomalies:
    """A fixed set of anomalous images whose features were computed once: labelled defects, or an external data set.

    Args:
        name: what they are.
        network: standardises the features.
        features: raw, (m, N, C).
        masks: y(u), (m, N).
        has_mask: whether an image's mask is known, (m,) bool.
        hashes: of the images' contents, m.
    """

    def __init__(
        self,
        name: str,
        network: ADTR,
        features: Tensor,
        masks: Tensor,
        has_mask: Tensor,
        hashes: Sequence[str],
    ) -> None:
        self.name, self.network, self.hashes = name, network, list(hashes)
        self.features, self.masks, self.has_mask = features, masks, has_mask
        self.has_masks = bool(has_mask.any())

    @property
    def fingerprint(self) -> str:
        """Of the images and of what is marked in them."""
        marked = self.masks.numpy().tobytes() + self.has_mask.numpy().tobytes()
        return hashlib.sha256("".join(self.hashes).encode() + marked).hexdigest()

    def __len__(self) -> int:
        return len(self.features)

    def draw(self, count: int, rng: np.random.Generator, share: Share = WHOLE) -> Batch:
        """Some of them, without repetition where there are enough."""
        rows = np.concatenate([rng.permutation(len(self)) for _ in range(-(-count // len(self)))])[:count]
        index = torch.from_numpy(rows[share])
        device = self.network.feature_mean.device
        features = self.network.target(self.features[index].float().to(device))
        return Batch.anomalous(features, self.masks[index], self.has_mask[index])


class SyntheticAnomalies:
    """Anomalies made of good images, new ones for each step.

    Args:
        kind: one of `adtr.data.synthetic.SYNTHETIC`.
        network: embeds the images.
        image: gives good training image i at network size, (h, w, 3) uint8.
        images: how many there are.
    """

    has_masks = True

    def __init__(self, kind: str, network: ADTR, image: Callable[[int], NDArray[np.uint8]], images: int) -> None:
        self.name, self.network = kind, network
        self.image, self.images = image, images
        self.fingerprint = kind

    def draw(self, count: int, rng: np.random.Generator, share: Share = WHOLE) -> Batch:
        """Anomalies on good images drawn at random. All are made, but only the share is embedded."""
        grid = self.network.config.embedding.grid_size
        pictures, masks = [], []
        for good, donor in rng.integers(self.images, size=(count, 2)):
            picture, mask = SYNTHETIC[self.name](self.image(int(good)), self.image(int(donor)), rng)
            pictures.append(picture)
            masks.append(mask_on_grid(mask, grid))
        device = self.network.feature_mean.device
        features = self.network.embedding(torch.from_numpy(np.stack(pictures)[share]).to(device))
        has_mask = torch.ones(len(features), dtype=torch.bool)
        return Batch.anomalous(self.network.target(features), torch.stack(masks)[share], has_mask)


class GoodAndAnomalousImages:
    """Trains on good images and anomalies with L_px (Eq. 7) where masks are known and L_img (Eq. 9) elsewhere.

    Good images take L_px, all of whose positions are normal; where no anomaly has a mask they take L_img, as in the
    paper's experiment with image labels alone.

    Args:
        good: gives the good images of each batch.
        sources: give the anomalies; each gives an equal share.
        config: alpha, k and the share of anomalies.
        seed: of all draws, together with the step's number.
    """

    def __init__(
        self, good: GoodImages, sources: Sequence[AnomalySource], config: ImprovementConfig, seed: int
    ) -> None:
        self.good, self.sources, self.config, self.seed = good, sources, config, seed
        self.by_pixel = any(source.has_masks for source in sources)

    def __len__(self) -> int:
        return len(self.good)

    def batch_size(self, good: int) -> int:
        """As many anomalies as their share asks for are added."""
        share = self.config.anomaly_share
        return good + max(1, round(good * share / (1 - share)))

    def batch(self, rows: Tensor, step: int, share: slice = WHOLE) -> Batch:
        """Good images, then anomalies."""
        rng = np.random.default_rng([self.seed, step])
        size = self.batch_size(len(rows))
        anomalies = size - len(rows)
        # Where a step holds fewer anomalies than there are sources, they take turns.
        turns = np.arange(step * anomalies, (step + 1) * anomalies) % len(self.sources)
        taken = np.zeros(size, bool)
        taken[share] = True
        batch = self.good.batch(rows, step, share)
        batch = replace(batch, has_mask=torch.full_like(batch.has_mask, self.by_pixel))
        for i, source in enumerate(self.sources):
            mine = taken[len(rows) :][turns == i]
            if len(mine):
                batch = batch + source.draw(len(mine), rng, mine)
        return batch

    def loss(self, batch: Batch, reconstructed: Tensor) -> Tensor:
        """L_px or L_img."""
        phi = pseudo_huber(batch.features - reconstructed)
        by_pixel = pixel_loss(phi, batch.masks, self.config.alpha)
        by_image = image_loss(phi, batch.labels, self.config.alpha, self.config.top_k)
        return torch.where(batch.has_mask, by_pixel, by_image)

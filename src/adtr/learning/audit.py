"""`audit`: which of the good images may not be good, and which images are copies of each other."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from adtr.calibration import Calibration
from adtr.config import Config, load_preset
from adtr.data.copies import Copies, Kind, find_copies, members_of
from adtr.data.folder import Dataset, open_dataset
from adtr.data.loading import SkippedImage
from adtr.data.sources import good_sources
from adtr.device import choose_device, choose_precision
from adtr.errors import DataError, OnError
from adtr.learning.learned import Reader
from adtr.model.comparison import image_score
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.settings import Size
from adtr.training.feature_cache import FeatureCache

FEWEST = 3
"""Images that can be compared with each other."""

BANK = 50_000
"""Tokens that each image is compared with; so the time grows with the number of images, not with its square."""

DIRECTIONS = 96
"""Main directions of the features that are compared."""

LEVELS = "3,4"
"""Of the backbone, where none are asked for: the finest tell noise apart, the coarsest know parts and not defects."""

POOL_SIZE = 0.25
"""Of the image score, where none is asked for: wider than a detector's, as unevenness counts too."""


@dataclass(frozen=True, kw_only=True)
class AuditedImage:
    """One image that is held to be good."""

    source: object
    """What it was read from."""
    rank: int
    """1 for the most suspicious one."""
    score: float
    severity: float
    """Robust standard deviations above the typical image; see `Calibration.severity`."""
    score_map: NDArray[np.float32] = field(repr=False)
    """Where the suspicion comes from, on the token grid, (h, w)."""

    @property
    def name(self) -> str:
        """For people."""
        return str(self.source) if isinstance(self.source, str | os.PathLike) else "an image in memory"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found."""

    images: list[AuditedImage]
    """All that could be read, the most suspicious first."""
    copies: list[Copies]
    typical_maximum: float
    """What a quarter of the images' score maps exceed somewhere; the middle of the contact sheet's colours."""
    skipped: list[SkippedImage]
    seconds: float

    def count(self, kind: Kind) -> int:
        """Groups of copies of a kind."""
        return sum(copies.kind == kind for copies in self.copies)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "images": [
                {"path": image.name, "rank": image.rank, "score": image.score, "severity": image.severity}
                for image in self.images
            ],
            "copies": [copies.to_dict() for copies in self.copies],
            "skipped": [{"path": str(image.path), "reason": image.reason} for image in self.skipped],
            "seconds": self.seconds,
        }


def audit(
    images: object,
    *,
    preset: str = "quick",
    device: str = "auto",
    backbone_weights: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    **overrides: Any,  # noqa: ANN401 - checked by Config.override
) -> Audit:
    """Rank good images by how little the others know of what they show, and find copies; see `rank`.

    Args:
        images: a data set's folder, or good images in any form that `AnomalyDetector.fit` accepts. Copies are sought
            among a data set's test images too. Images in `validation/good/` are ranked with the others.
        preset: a named configuration, whose embedding is used.
        device: see `AnomalyDetector`.
        backbone_weights: see `AnomalyDetector`.
        on_error: "raise" stops at an unreadable image; "skip" leaves it out.
        progress: is told of the stages.
        **overrides: fields of the configuration.

    Raises:
        DataError: no images, too few, or unreadable ones.
        ConfigError: a wrong preset or field, or the backbone or its weights cannot be had.
    """
    started = time.perf_counter()
    config = audit_config(preset, **overrides)
    dataset = images if isinstance(images, Dataset) else None
    if isinstance(images, str | os.PathLike) and not Path(images).is_file():
        dataset = open_dataset(images)
    sources = good_sources(dataset or images)
    if len(sources) < FEWEST:
        raise DataError(f"{len(sources)} good images are too few to compare with each other; give at least {FEWEST}")
    reader = Reader(on_error=on_error, progress=progress or Silent())
    chosen = choose_device(device)
    network = ADTR(config, backbone_weights).place(chosen, choose_precision(config.training.precision, chosen))
    embedded = reader.embed(network, sources)
    scores, maps = rank(embedded.cache, config, chosen, reader.progress)
    typical = Calibration.of(scores, maps)
    members = members_of(sources.training, dataset)
    copies = find_copies(members, on_error=on_error, skipped=reader.skipped, progress=progress)
    return Audit(
        images=[
            AuditedImage(
                source=sources[embedded.indices[i]],
                rank=place,
                score=float(scores[i]),
                severity=typical.severity(float(scores[i])),
                score_map=maps[i],
            )
            for place, i in enumerate(np.argsort(-scores, kind="stable").tolist(), start=1)
        ],
        copies=copies,
        typical_maximum=typical.thresholds(0.25).pixel,
        skipped=list(dict.fromkeys(reader.skipped)),  # an image is read for its features and for its copies
        seconds=time.perf_counter() - started,
    )


def audit_config(preset: str = "quick", **overrides: Any) -> Config:  # noqa: ANN401 - checked by Config.override
    """A preset's configuration, but for the backbone's levels and the pooling window.

    Raises:
        ConfigError: a wrong preset or field.
    """
    return load_preset(preset).override(**{"levels": LEVELS, "pool_size": POOL_SIZE, **overrides})


def rank(
    cache: FeatureCache, config: Config, device: torch.device, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How far each image lies from the others: each token's distance to the nearest token of any other image.

    No image vouches for itself, and nothing is trained: a network that learns from all images learns rare defects too.
    Features are standardised, brought to their main directions, and averaged with those of the tokens around them; the
    others are represented by some tokens of each.
    What is usual at a place of the grid is taken off: the map is in robust standard deviations of that place.

    Args:
        cache: features of the images, n of them.
        config: whose grid and comparison make scores of maps, and whose seed chooses tokens.
        device: where to compute.
        progress: told of every image.

    Returns:
        Image scores (n,) and score maps (n, h, w).
    """
    progress = progress or Silent()
    images, tokens = len(cache), cache.features.shape[1]
    mean, basis = _main_directions(cache)
    generator = torch.Generator().manual_seed(config.training.seed)
    per_image = max(1, min(tokens, BANK // images))
    grid = config.embedding.grid_size
    features = torch.cat(
        [_with_surroundings((cache[rows] - mean) @ basis, grid) for rows in torch.arange(images).split(64)]
    )
    bank = torch.stack([f[torch.randperm(tokens, generator=generator)[:per_image]] for f in features])
    bank, features = bank.flatten(0, 1).to(device), features.to(device)
    squares = bank.square().sum(dim=1)
    maps = torch.empty(images, tokens)
    progress.start("comparing", total=images)
    for i, own in enumerate(features):
        distances = torch.addmm(squares, own, bank.T, alpha=-2)  # squared, but for the squares of `own`
        distances[:, i * per_image : (i + 1) * per_image] = torch.inf
        nearest = distances.amin(dim=1) + own.square().sum(dim=1)
        maps[i] = nearest.clamp_min(0).sqrt()
        progress.advance(1)
    progress.finish()
    center = maps.median(dim=0).values
    spread = 1.4826 * (maps - center).abs().median(dim=0).values
    maps = (maps - center) / spread.clamp_min(max(float(spread.median()) / 2, 1e-6))
    shaped = maps.unflatten(1, grid)
    scores = image_score(shaped, config.embedding.image_size, config.comparison.pool_size)
    return scores.numpy(), shaped.numpy()


def _with_surroundings(features: Tensor, grid: Size) -> Tensor:
    """Mean over each token and its neighbours on the grid, (B, N, C)."""
    shaped = features.unflatten(1, grid).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(shaped, 3, stride=1, padding=1, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1).flatten(1, 2)


def _main_directions(cache: FeatureCache) -> tuple[Tensor, Tensor]:
    """Mean (C,) of the features, and what brings the standardised rest to its main directions, (C, d)."""
    everything = torch.arange(len(cache))
    mean, std = cache.statistics(everything)
    total = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for rows in everything.split(64):
        standardized = ((cache[rows] - mean) / std).flatten(0, 1)
        total += (standardized.T @ standardized).double()
    _, vectors = torch.linalg.eigh(total)  # ascending
    return mean, (vectors[:, -DIRECTIONS:].float() / std[:, None])

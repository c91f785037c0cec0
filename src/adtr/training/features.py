"""The pass of the backbone over a set of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adtr.data.loading import LoadedImage, SkippedImage, load_images
from adtr.data.sources import in_batches, loaded_hash
from adtr.errors import DataError, memory_for
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.training.feature_cache import FeatureCache


@dataclass(frozen=True, kw_only=True)
class EmbeddedImages:
    """Raw features of the images that could be read, and what they are of; all in one order."""

    cache: FeatureCache
    indices: list[int]
    """Position of each image among the sources."""
    hashes: list[str]
    """Of each image's contents; see `loaded_hash`."""
    sizes: list[tuple[int, int]]
    """Height and width of each upright original."""


@memory_for("the features", lower="take a smaller --grid-size, --image-size or --backbone, or fewer images")
def embed_images(
    network: ADTR,
    sources: Sequence[object],
    *,
    on_error: Literal["raise", "skip"] = "raise",
    skipped: list[SkippedImage] | None = None,
    progress: Progress | None = None,
    stage: str = "features",
) -> EmbeddedImages:
    """Compute the features of images, in half precision unless the configuration asks for fp32.

    Args:
        network: embeds them.
        sources: anything `read_image` accepts.
        on_error: "raise" stops at an unreadable image; "skip" leaves it out.
        skipped: receives what was left out.
        progress: told of every image.
        stage: what this pass is called there.

    Raises:
        DataError: none of the images could be read.
        ImageError: one cannot be read and `on_error` is "raise".
        AdtrError: memory does not suffice.
    """
    progress = progress or Silent()
    config = network.config
    height, width = config.embedding.grid_size
    dtype = torch.float32 if config.training.precision == "fp32" else torch.float16
    cache = FeatureCache(len(sources), height * width, network.embedding.channels, dtype=dtype)
    indices: list[int] = []
    hashes: list[str] = []
    sizes: list[tuple[int, int]] = []
    progress.start(stage, total=len(sources))
    for batch in in_batches(load_images(sources, config.embedding.image_size, on_error=on_error, skipped=skipped), 16):
        cache.append(network.embedding(to_tensor(batch, network)))
        indices += [image.index for image in batch]
        hashes += [loaded_hash(image) for image in batch]
        sizes += [image.size for image in batch]
        progress.advance(len(batch))
    progress.finish()
    if not len(cache):
        raise DataError("none of the images could be read")
    return EmbeddedImages(cache=cache, indices=indices, hashes=hashes, sizes=sizes)


def to_tensor(batch: Sequence[LoadedImage], network: ADTR) -> Tensor:
    """Images at network size as one tensor, (B, h, w, 3) uint8, on the network's device."""
    pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
    return pixels.to(network.feature_mean.device)


def score_cached(network: ADTR, cache: FeatureCache, index: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image scores (n,) and score maps (n, H, W) of images whose features are at hand."""
    scores, maps = [], []
    with torch.inference_mode():
        for rows in torch.split(index, 16):
            comparison = network.compare(network.standardize(cache[rows].to(network.feature_mean.device)))
            scores.append(comparison.scores.float().cpu().numpy())
            maps.append(comparison.maps.float().cpu().numpy())
    return np.concatenate(scores), np.concatenate(maps)

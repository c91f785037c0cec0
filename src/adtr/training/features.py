"""The pass of the backbone over a set of images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adtr.data.loading import LoadedImage, SkippedImage, load_images
from adtr.data.sources import in_batches, loaded_hash
from adtr.errors import DataError, OnError, memory_for
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.training.feature_cache import FeatureCache
from adtr.training.processes import add_up, exchange

if TYPE_CHECKING:
    from lightning_fabric import Fabric

BATCH = 16
"""Images in a pass of the backbone, or of a trained network."""


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
    on_error: OnError = "raise",
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
        ImageError: one cannot be read and `on_error` is "raise".
        AdtrError: memory does not suffice.
    """
    progress = progress or Silent()
    config = network.config
    height, width = config.embedding.grid_size
    dtype = torch.float32 if config.training.precision == "fp32" else torch.float16
    cache = FeatureCache(len(sources), height * width, network.embedding.columns, dtype=dtype)
    indices: list[int] = []
    hashes: list[str] = []
    sizes: list[tuple[int, int]] = []
    progress.start(stage, total=len(sources))
    with closing(load_images(sources, config.embedding.image_size, on_error=on_error, skipped=skipped)) as images:
        for batch in in_batches(images, BATCH):
            cache.append(network.embedding(to_tensor(batch, network)))
            indices += [image.index for image in batch]
            hashes += [loaded_hash(image) for image in batch]
            sizes += [image.size for image in batch]
            progress.advance(len(batch))
    progress.finish()
    return EmbeddedImages(cache=cache, indices=indices, hashes=hashes, sizes=sizes)


def embed_together(
    fabric: Fabric,
    network: ADTR,
    sources: Sequence[object],
    *,
    on_error: OnError = "raise",
    skipped: list[SkippedImage] | None = None,
    progress: Progress | None = None,
    stage: str = "features",
) -> EmbeddedImages:
    """`embed_images` by several processes, each of which embeds a share of the batches and sees the features of all.

    Args:
        fabric: of the processes, all of which call this function with the same arguments.
        network: see `embed_images`, as for the others.
        sources: in the same order everywhere.
        on_error: what is read by any process counts.
        skipped: receives what any process left out.
        progress: told of this process's share.
        stage: what this pass is called there.

    Raises:
        DataError: the processes do not see the same images.
        ImageError: one of this process's share cannot be read and `on_error` is "raise".
    """
    share = torch.arange(len(sources)).split(BATCH)[fabric.global_rank :: fabric.world_size]
    mine = [int(i) for batch in share for i in batch]
    left_out: list[SkippedImage] = []
    part = embed_images(
        network,
        [sources[i] for i in mine],
        on_error=on_error,
        skipped=left_out,
        progress=progress,
        stage=stage,
    )
    parts = exchange(
        fabric,
        {
            "node": fabric.node_rank,
            "names": [Path(source).name for source in sources if isinstance(source, str | os.PathLike)],
            "indices": [mine[i] for i in part.indices],
            "hashes": part.hashes,
            "sizes": part.sizes,
            "skipped": [[str(image.path) if image.path else None, image.reason] for image in left_out],
        },
    )
    if any(other["names"] != parts[0]["names"] for other in parts):
        raise DataError("the machines do not see the same images; give each of them the same folder")
    if skipped is not None:
        skipped += [SkippedImage(Path(path) if path else None, why) for each in parts for path, why in each["skipped"]]
    images = sorted(
        (index, digest, (height, width), rank)
        for rank, each in enumerate(parts)
        for index, digest, (height, width) in zip(each["indices"], each["hashes"], each["sizes"], strict=True)
    )
    if not images:
        return part
    owners = torch.tensor([rank for *_, rank in images])
    rows = [torch.nonzero(owners == rank).flatten() for rank in range(fabric.world_size)]
    _, tokens, channels = part.cache.features.shape
    cache = FeatureCache.shared(fabric, len(images), tokens, channels, dtype=part.cache.features.dtype)
    cache.features[rows[fabric.global_rank]] = part.cache.features[: len(part.cache)]
    if len({each["node"] for each in parts}) > 1:
        _spread(fabric, cache, rows)
    fabric.barrier()
    return EmbeddedImages(
        cache=cache,
        indices=[index for index, *_ in images],
        hashes=[digest for _, digest, *_ in images],
        sizes=[size for *_, size, _ in images],
    )


def _spread(fabric: Fabric, cache: FeatureCache, rows: Sequence[Tensor]) -> None:
    """Bring each process's rows of a cache to the machines on which it does not run."""
    for owner, owned in enumerate(rows):
        for chunk in owned.split(64):
            features = cache.features[chunk].to(fabric.device)
            torch.distributed.broadcast(features, owner)
            if fabric.local_rank == 0:
                cache.features[chunk] = features.cpu()


def to_tensor(batch: Sequence[LoadedImage], network: ADTR) -> Tensor:
    """Images at network size as one tensor, (B, h, w, 3) uint8, on the network's device."""
    pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
    return pixels.to(network.feature_mean.device)


def score_cached(
    network: ADTR, cache: FeatureCache, index: Tensor, fabric: Fabric | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image scores (n,) and score maps (n, H, W) of images whose features are at hand; by all processes of a Fabric."""
    rank, processes = (fabric.global_rank, fabric.world_size) if fabric is not None else (0, 1)
    scores, maps = torch.zeros(len(index)), torch.zeros(len(index), *network.map_size)
    with torch.inference_mode():
        for rows in torch.arange(len(index)).split(BATCH)[rank::processes]:
            features = cache.on(network.feature_mean.device, index[rows])
            comparison = network.compare(network.standardize(features))
            scores[rows] = comparison.scores.float().cpu()
            maps[rows] = comparison.maps.float().cpu()
    add_up(fabric, scores, maps)  # what another process scored is 0 here
    return scores.numpy(), maps.numpy()

"""The features of the training images, computed once: the backbone is frozen and nothing augments the images."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adtr.errors import AdtrError
from adtr.training.processes import exchange

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MEMORY_SHARE = 0.4
"""Features larger than this share of the machine's memory are kept in a memory-mapped file."""


class FeatureCache:
    """Features of n images, (n, N, C), in memory or, when they outgrow it, in a file that the system pages in.

    Args:
        images: n.
        tokens: N.
        channels: C.
        dtype: float16 halves the memory; float32 keeps the backbone's numbers exactly.
        folder: where a file goes if one is needed; the system's temporary folder by default.
        memory_limit: bytes above which a file is used.

    Raises:
        AdtrError: no room for the file.
    """

    def __init__(
        self,
        images: int,
        tokens: int,
        channels: int,
        *,
        dtype: torch.dtype = torch.float16,
        folder: Path | None = None,
        memory_limit: int | None = None,
    ) -> None:
        shape = (images, tokens, channels)
        size = math.prod(shape) * dtype.itemsize
        if memory_limit is None:
            memory_limit = int(MEMORY_SHARE * machine_memory())
        self._file: Path | None = None
        if size > memory_limit:
            file = create_file(size, folder)
            self.features = map_file(file, shape, dtype)
            self._file = _without_name(file)
        else:
            self.features = torch.empty(shape, dtype=dtype)
        self.filled = 0

    @classmethod
    def shared(cls, fabric: Fabric, images: int, tokens: int, channels: int, *, dtype: torch.dtype) -> FeatureCache:
        """One whose features all processes of a machine see, in a file that the first of them makes; counts as full."""
        size = images * tokens * channels * dtype.itemsize
        made = create_file(size, None) if fabric.local_rank == 0 else None
        known = exchange(fabric, [fabric.node_rank, str(made) if made else None])
        path = next(Path(name) for node, name in known if node == fabric.node_rank and name is not None)
        cache = cls.of(map_file(path, (images, tokens, channels), dtype))
        fabric.barrier()
        if made is not None:
            cache._file = _without_name(made)  # noqa: SLF001 - of this very class
        return cache

    @classmethod
    def of(cls, features: Tensor) -> FeatureCache:
        """A full cache around features at hand, (n, N, C), which are not copied."""
        cache = cls(0, *features.shape[1:], dtype=features.dtype)
        cache.features, cache.filled = features, len(features)
        return cache

    def append(self, features: Tensor) -> None:
        """Add the features of a batch, (B, N, C)."""
        limit = torch.finfo(self.features.dtype).max
        rows = features.detach().to("cpu").clamp(-limit, limit)
        self.features[self.filled : self.filled + len(rows)] = rows.to(self.features.dtype)
        self.filled += len(rows)

    def __len__(self) -> int:
        return self.filled

    def __getitem__(self, index: Tensor) -> Tensor:
        """Features of some images, (len(index), N, C), float32."""
        return self.features[index].float()

    def on(self, device: torch.device, index: Tensor) -> Tensor:
        """Features of some images, (len(index), N, C), float32, on a device.

        They travel as small as they are kept, and to CUDA without a wait for the work that is still to be done there.
        """
        features = self.features[index]
        if device.type == "cuda":
            features = features.pin_memory().to(device, non_blocking=True)
        return features.to(device).float()

    def close(self) -> None:
        """Let the memory, or the file, go."""
        self.features = torch.empty(0)
        self.filled = 0
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def statistics(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over all positions of some images, (C,) each, float32.

        A channel that never varies gets the deviation 1.
        """
        total = torch.zeros(self.features.shape[-1], dtype=torch.float64)
        squares = torch.zeros_like(total)
        origin = self[index[:1]][0, 0]  # a value of each channel: what never varies differs from it by exactly 0
        for rows in index.split(64):
            shifted = self[rows] - origin
            total += shifted.sum(dim=(0, 1), dtype=torch.float64)
            squares += shifted.square().sum(dim=(0, 1), dtype=torch.float64)
        count = len(index) * self.features.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std[std < 1e-6] = 1.0
        return (origin + mean).float(), std.float()


def create_file(size: int, folder: Path | None) -> Path:
    """A new file of `size` bytes, in the system's temporary folder by default.

    Raises:
        AdtrError: no room for it.
    """
    handle, name = tempfile.mkstemp(prefix="adtr-features-", dir=folder)
    path = Path(name)
    try:
        _allocate(handle, size)
    except OSError as error:
        path.unlink()
        raise AdtrError(
            f"no room for {size / 1e9:.1f} GB of features in {path.parent}: {error.strerror}; "
            "make room, or let TMPDIR name another folder"
        ) from error
    finally:
        os.close(handle)
    return path


def map_file(path: Path, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """A file's contents as a tensor; what is written to it is written to the file."""
    return torch.from_file(str(path), shared=True, size=math.prod(shape), dtype=dtype).view(shape)


def _without_name(file: Path) -> Path | None:
    """On POSIX a mapping outlives its file's name: without it, whatever ends the process, no file stays behind."""
    if os.name != "posix":
        return file
    file.unlink()
    return None


def _allocate(handle: int, size: int) -> None:
    # Writing through the mapping of a file with holes would kill the process where the disk is full.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
    else:
        os.truncate(handle, size)


def machine_memory() -> int:
    """Of this machine, bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30

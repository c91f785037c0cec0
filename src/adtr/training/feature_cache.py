"""The features of the training images, computed once: the backbone is frozen and nothing augments the images."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from adtr.errors import AdtrError

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
        count = images * tokens * channels
        size = count * dtype.itemsize
        if memory_limit is None:
            memory_limit = int(MEMORY_SHARE * machine_memory())
        self._file: Path | None = None
        if size > memory_limit:
            handle, name = tempfile.mkstemp(prefix="adtr-features-", dir=folder)
            self._file = Path(name)
            try:
                _allocate(handle, size)
            except OSError as error:
                self._file.unlink()
                raise AdtrError(
                    f"no room for {size / 1e9:.1f} GB of features in {self._file.parent}: {error.strerror}; "
                    "make room, or let TMPDIR name another folder"
                ) from error
            finally:
                os.close(handle)
            self.features = torch.from_file(name, shared=True, size=count, dtype=dtype).view(shape)
            # On POSIX the mapping outlives the name: whatever ends the process, no file stays behind.
            if os.name == "posix":
                self._file.unlink()
                self._file = None
        else:
            self.features = torch.empty(shape, dtype=dtype)
        self.filled = 0

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
        for rows in self._chunks(index):
            shifted = rows - origin
            total += shifted.sum(dim=(0, 1), dtype=torch.float64)
            squares += shifted.square().sum(dim=(0, 1), dtype=torch.float64)
        count = len(index) * self.features.shape[1]
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        std[std < 1e-6] = 1.0
        return (origin + mean).float(), std.float()

    def _chunks(self, index: Tensor, size: int = 64) -> Iterator[Tensor]:
        for start in range(0, len(index), size):
            yield self[index[start : start + size]]


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

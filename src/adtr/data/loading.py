"""Streams images from disk to network size: in order, in bounded memory, decoded by threads while the network works."""

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from adtr.data.images import read_image, resize
from adtr.errors import ConfigError, ImageError, OnError

_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WORKERS = max(2, min(8, _CORES))
"""Threads that decode: a fast accelerator would wait for fewer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedImage:
    """One image, ready for the network.

    Attributes:
        index: Its position in the sources, from 0; skipped ones count.
        source: What it was read from.
        path: The source as a path; None if it was in memory.
        size: Height and width of the upright original, in pixels.
        pixels: Array (h, w, 3) of uint8 at network size, 0..255.
        image: The original as RGB, if it was asked for.
    """

    index: int
    source: object
    path: Path | None
    size: tuple[int, int]
    pixels: npt.NDArray[np.uint8]
    image: Image.Image | None = None

    @property
    def brightness(self) -> float:
        """Mean of the pixels, 0..255."""
        return float(self.pixels.mean())

    @property
    def sharpness(self) -> float:
        """Mean difference of neighbouring pixels, against the brightness; 0 for one plain colour."""
        grey = self.pixels.mean(axis=2, dtype=np.float32)
        steps = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean()
        return float(steps / max(grey.mean(), 1.0))


@dataclass(frozen=True)
class SkippedImage:
    """An image that could not be read.

    Attributes:
        path: Its file, or its URL; None if it was in memory.
        reason: One line that says why.
    """

    path: Path | str | None
    reason: str


def load_image(
    source: object,
    size: tuple[int, int],
    *,
    index: int = 0,
    keep_original: bool = False,
    max_pixels: int | None = None,
) -> LoadedImage:
    """Reads and resizes one image.

    Args:
        source: Anything `read_image` accepts.
        size: Height and width to resize to, in pixels.
        index: What to remember as its position.
        keep_original: Whether to keep the decoded original too.
        max_pixels: See `read_image`.

    Raises:
        ImageError: The image cannot be read.
    """
    image = read_image(source, max_pixels=max_pixels)
    return LoadedImage(
        index=index,
        source=source,
        path=Path(source) if isinstance(source, str | os.PathLike) else None,
        size=(image.height, image.width),
        pixels=resize(image, size),
        image=image if keep_original else None,
    )


def load_images(
    sources: Iterable[object],
    size: tuple[int, int],
    *,
    workers: int = WORKERS,
    prefetch: int = 32,
    on_error: OnError = "raise",
    skipped: list[SkippedImage] | None = None,
    keep_original: bool = False,
) -> Generator[LoadedImage, None, None]:
    """Reads and resizes images in threads, in the order of the sources.

    Closing the generator, or an error, drops what is queued and does not wait for it.

    Args:
        sources: Anything `read_image` accepts, consumed only as needed: an endless generator is fine.
        size: Height and width to resize to, in pixels.
        workers: Threads, at least 1. Pillow decodes and resizes without holding the interpreter lock.
        prefetch: At most so many sources are taken ahead of the consumer, at least 1. Bounds the memory.
        on_error: "raise" stops at the first unreadable image in order; "skip" leaves unreadable ones out.
        skipped: With "skip", receives what was left out, in order.
        keep_original: Whether to keep the decoded original too, as overlays need it.

    Yields:
        One `LoadedImage` per readable source.

    Raises:
        ImageError: An image cannot be read and `on_error` is "raise".
        ConfigError: `workers` or `prefetch` is less than 1.
    """
    if workers < 1 or prefetch < 1:
        raise ConfigError(f"workers and prefetch must be at least 1, not {workers} and {prefetch}")
    numbered = enumerate(sources)
    pending: deque[tuple[object, Future[LoadedImage]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="adtr-load")
    try:
        while True:
            for index, source in islice(numbered, prefetch - len(pending)):
                pending.append(
                    (source, pool.submit(load_image, source, size, index=index, keep_original=keep_original))
                )
            if not pending:
                return
            source, future = pending.popleft()
            try:
                loaded = future.result()
            except ImageError as error:
                if on_error == "raise":
                    raise
                if skipped is not None:
                    skipped.append(_skip(source, error))
                continue
            del future  # else it would keep the image alive while the consumer works
            yield loaded
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _skip(source: object, error: ImageError) -> SkippedImage:
    path = Path(source) if isinstance(source, str | os.PathLike) else None
    return SkippedImage(path, str(error).removeprefix(f"cannot read image {source}: "))  # the path is said already

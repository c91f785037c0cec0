"""What a user may give as images, brought to one form."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from adtr.data.folder import Dataset, content_hash, list_images, open_dataset
from adtr.data.loading import LoadedImage
from adtr.errors import AdtrError, DataError


def as_sources(images: object) -> Sequence[object]:
    """One or many images in any accepted form as a sequence; a folder becomes the images below it.

    Raises:
        DataError: there is none.
    """
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        sources: Sequence[object] = list_images(path, recursive=True) if path.is_dir() else [path]
    elif isinstance(images, Sequence) and not isinstance(images, bytes):
        sources = images
    elif getattr(images, "ndim", None) == 4:
        sources = list(images)  # type: ignore[call-overload]
    elif isinstance(images, bytes) or hasattr(images, "ndim") or not isinstance(images, Iterable):
        sources = [images]
    else:
        sources = list(images)
    if not sources:
        raise DataError(f"no images in {images}" if isinstance(images, str | os.PathLike) else "no images were given")
    return sources


def training_sources(images: object) -> tuple[Sequence[object], Path | None]:
    """Good images, and the folder if they came from one.

    Raises:
        DataError: there is none.
    """
    dataset = images if isinstance(images, Dataset) else None
    if isinstance(images, str | os.PathLike) and not Path(images).is_file():
        dataset = open_dataset(images)
    if dataset is None:
        return as_sources(images), None
    if not dataset.train:
        raise DataError(
            f"no good images to learn from in {dataset.root}: expected train/good/, good/, or images inside"
        )
    return [sample.path for sample in dataset.train], dataset.root


def external_sources(images: object) -> Sequence[object]:
    """Images of an irrelevant data set: a folder (searched through), a parquet file, or images.

    Raises:
        DataError: there is none, or the parquet file holds no images.
    """
    if isinstance(images, str | os.PathLike) and Path(images).suffix == ".parquet":
        from adtr.data.parquet import ParquetImages

        return ParquetImages(Path(images))
    return as_sources(images)


def in_batches(images: Iterator[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Lists of `size` images, the last one shorter; what came before an unreadable image is given first."""
    batch: list[LoadedImage] = []
    try:
        for image in images:
            batch.append(image)
            if len(batch) == size:
                yield batch
                batch = []
    except AdtrError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def loaded_hash(image: LoadedImage) -> str:
    """Of the file where there is one, else of the pixels at network size; see `content_hash`."""
    if image.path is not None:
        return content_hash(image.path)
    return hashlib.sha256(image.pixels.tobytes()).hexdigest()[:16]

"""What a user may give as images, brought to one form."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from adtr.data.datasets import DatasetImages, good_images, is_dataset
from adtr.data.folder import GOOD, VALIDATION, Dataset, content_hash, list_images, open_dataset
from adtr.data.lazy import Lazy
from adtr.data.loading import LoadedImage
from adtr.errors import AdtrError, DataError


def as_sources(images: object) -> Sequence[object]:
    """One or many images in any accepted form as a sequence; a folder becomes the images below it.

    Raises:
        DataError: there is none.
    """
    if hasattr(images, "to_numpy"):  # a column of pandas or polars
        images = images.to_numpy()
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        sources: Sequence[object] = list_images(path, recursive=True) if path.is_dir() else [path]
    elif is_dataset(images):
        sources = DatasetImages(images)
    elif isinstance(images, np.ndarray) and images.dtype.kind in "OUT" and images.ndim and images.size == len(images):
        sources = images.ravel().tolist()  # paths, or images of several sizes
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


class GoodSources(Lazy[object]):
    """Good images: those that train, then those that somebody chose to set the thresholds; read when asked for.

    Args:
        training: in any form that `read_image` accepts.
        root: the folder that they came from, if there is one.
        held_out: the chosen ones; None where they are to be drawn among the others.
        held_out_root: the folder that the chosen ones came from, if there is one.
    """

    def __init__(
        self,
        training: Sequence[object],
        root: Path | None = None,
        held_out: Sequence[object] | None = None,
        held_out_root: Path | None = None,
    ) -> None:
        self.training, self.root = training, root
        self.held_out, self.held_out_root = held_out, held_out_root

    def __len__(self) -> int:
        return len(self.training) + len(self.held_out or ())

    def item(self, index: int) -> object:
        """One image."""
        if index < len(self.training):
            return self.training[index]
        assert self.held_out is not None
        return self.held_out[index - len(self.training)]

    def chosen(self, indices: Sequence[int] | None = None) -> list[int] | None:
        """The places of the chosen ones among all images, or among those of `indices`; None where they are drawn."""
        if self.held_out is None:
            return None
        indices = range(len(self)) if indices is None else indices
        return [place for place, i in enumerate(indices) if i >= len(self.training)]

    @property
    def is_found_again(self) -> bool:
        """Whether the folders tell of all the images."""
        return self.root is not None and (self.held_out is None or self.held_out_root is not None)


def good_sources(images: object, held_out: object = None) -> GoodSources:
    """Good images, those that set the thresholds among them, where somebody chose them.

    Args:
        images: a data set or its folder, whose `validation/good/` is held out; or good images.
        held_out: good images to hold out in place of those; of a data set's folder its good training images.

    Raises:
        DataError: there is none.
    """
    dataset = images if isinstance(images, Dataset) else None
    if isinstance(images, str | os.PathLike) and not Path(images).is_file():
        dataset = open_dataset(images)
    if dataset is None:
        good = GoodSources(good_images(images) if is_dataset(images) else as_sources(images))
    elif not dataset.train:
        raise DataError(
            f"no good images to learn from in {dataset.root}: expected train/good/, good/, or images inside"
        )
    else:
        good = GoodSources([sample.path for sample in dataset.train], dataset.root)
    if held_out is not None:
        chosen = good_sources(held_out)
        return GoodSources(good.training, good.root, chosen.training, chosen.root)
    if dataset is not None and dataset.validation:
        chosen_paths = [sample.path for sample in dataset.validation]
        return GoodSources(good.training, good.root, chosen_paths, dataset.root / VALIDATION / GOOD)
    return good


def labelled_good(sources: Sequence[object], y: ArrayLike) -> Sequence[object]:
    """The good ones of labelled images.

    Args:
        sources: n images.
        y: 1 for good, -1 for anomalous, (n,).

    Raises:
        DataError: `y` holds something else, or none is good.
    """
    labels = np.asarray(y)
    if labels.shape != (len(sources),) or not np.isin(labels, (1, -1)).all():
        raise DataError(f"y must hold 1 for good or -1 for anomalous for each of the {len(sources)} images")
    good = [source for source, label in zip(sources, labels, strict=True) if label == 1]
    if not good:
        raise DataError("y marks no image as good")
    return good


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
    """Of the file, or of its bytes, where there is one, else of the pixels at network size; see `content_hash`."""
    if image.path is not None:
        return content_hash(image.path)
    data = image.source if isinstance(image.source, bytes) else image.pixels.tobytes()
    return hashlib.sha256(data).hexdigest()[:16]

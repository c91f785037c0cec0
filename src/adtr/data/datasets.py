"""Data sets of the library `datasets`: images, and perhaps labels and masks, in the columns of a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adtr.data.folder import GOOD, GOOD_NAMES
from adtr.data.images import decode_mask, read_mask
from adtr.data.lazy import Lazy
from adtr.errors import DataError, ImageError

LABELS = ("label", "labels", "defect_type", "anomaly")
MASKS = ("mask", "masks", "ground_truth")
"""Names of columns."""


def is_dataset(images: object) -> bool:
    """Whether this is a `datasets.Dataset` or a `datasets.DatasetDict`, which only who has imported them can have."""
    library = sys.modules.get("datasets")
    known = tuple(kind for name in ("Dataset", "DatasetDict") if (kind := getattr(library, name, None)) is not None)
    return isinstance(images, known)


class DatasetImages(Lazy[object]):
    """The encoded images of a data set, which are read when they are asked for.

    The image column is the one named `image`, or else the only one with the feature `Image` that is no mask.

    Args:
        dataset: a `datasets.Dataset`, or a `datasets.DatasetDict` with the wanted split.
        split: the wanted one; None for images of no particular one.

    Raises:
        DataError: no such split, or no or several columns of images.
    """

    def __init__(self, dataset: Any, split: Literal["train", "test"] | None = None) -> None:  # noqa: ANN401
        from datasets import Image

        if isinstance(dataset, dict):
            if split not in dataset:
                wanted = f"has no split {split!r}" if split else "has several splits"
                raise DataError(f"the data set {wanted}; give one of them: {', '.join(map(repr, dataset))}")
            dataset = dataset[split]
        features = dataset.features
        pictures = [name for name, feature in features.items() if isinstance(feature, Image)]
        candidates = [name for name in pictures if name not in MASKS]
        if "image" not in candidates and len(candidates) != 1:
            found = ", ".join(candidates) or "none"
            raise DataError(f"the data set needs one column 'image' of the feature Image (found: {found})")
        self.image = "image" if "image" in candidates else candidates[0]
        self.mask = next((name for name in MASKS if name in pictures), None)
        self.label = next((name for name in LABELS if name in features), None)
        columns = [name for name in (self.image, self.mask, self.label) if name]
        rows = dataset.with_format(None).select_columns(columns)
        for name in (self.image, self.mask):
            if name:
                rows = rows.cast_column(name, Image(decode=False))  # adtr decodes by its own rules
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> object:
        """One image: the file's bytes, or its path where the table only names it."""
        return _encoded(self.rows[index][self.image]) or b""

    def types(self) -> list[str | None]:
        """The defect type of each image, "good" for the good ones, None where a row has no label.

        Raises:
            DataError: there is no column of labels, or it does not tell which images are good.
        """
        from datasets import ClassLabel

        if self.label is None:
            raise DataError(f"the data set has no column of labels ({', '.join(LABELS)})")
        feature, labels = self.rows.features[self.label], list(self.rows[self.label])
        if isinstance(feature, ClassLabel):
            labels = [None if label is None or label < 0 else feature.names[label] for label in labels]
            known = set(feature.names)
        else:
            known = {label for label in labels if label is not None}
        if all(isinstance(label, str) for label in known):
            if not any(label.lower() in GOOD_NAMES for label in known):
                raise DataError(f"no label of the column {self.label!r} is called {', '.join(GOOD_NAMES)}")
            return [GOOD if label and label.lower() in GOOD_NAMES else label for label in labels]
        if known <= {0, 1}:
            return [None if label is None else ("anomalous" if label else GOOD) for label in labels]
        raise DataError(
            f"the column {self.label!r} must hold names, or 0 for good and 1 for anomalous images; "
            "cast_column gives numbers names with datasets.ClassLabel"
        )

    def truth(self, index: int, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Anomalous pixels of an image of that height and width, (H, W); None where nobody marked them.

        Raises:
            ImageError: the mask cannot be read, or has another size.
        """
        encoded = _encoded(self.rows[index][self.mask]) if self.mask else None
        if not isinstance(encoded, bytes):
            return None if encoded is None else read_mask(encoded, size)
        mask = decode_mask(encoded, f"of row {index}")
        if mask.shape != size:
            raise ImageError(f"the mask of row {index} has shape {mask.shape}, but its image {size}")
        return mask


def good_images(dataset: object) -> Sequence[object]:
    """The images to learn from: those of the split "train" that are labelled good, or all where there are no labels.

    Raises:
        DataError: there are none.
    """
    images = DatasetImages(dataset, "train")
    types = [None] if images.label is None else images.types()
    if set(types) == {None}:
        return images
    good = [i for i, kind in enumerate(types) if kind == GOOD]
    if not good:
        raise DataError(f"no image of the data set is labelled good in the column {images.label!r}")
    images.rows = images.rows.select(good)
    return images


def _encoded(value: dict[str, Any] | None) -> bytes | Path | None:
    """What a table holds of an image."""
    if value is None or (value["bytes"] is None and value["path"] is None):
        return None
    return value["bytes"] if value["bytes"] is not None else Path(value["path"])

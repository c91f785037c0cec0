"""What is trained and tested on at a time: a category of MVTec AD, or a class of CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adtr.data.cifar import CLASSES, SIDE, Cifar10, open_cifar10
from adtr.data.folder import GOOD, open_dataset, subfolders
from adtr.data.images import read_image, read_mask, resize
from adtr.data.lazy import Lazy
from adtr.data.sources import external_sources
from adtr.errors import DataError
from adtr.experiments.plans import Data
from adtr.experiments.published import published_tables
from adtr.settings import unknown


@dataclass(frozen=True, kw_only=True, eq=False)
class Subject:
    """Good images to learn from, and labelled images to judge with."""

    name: str
    train: Sequence[object]
    test: Sequence[object]
    types: Sequence[str]
    """Of each test image: "good", or what is wrong with it."""
    masks: Sequence[Path | None]
    """Of each test image, where there is one."""
    root: Path | None = None

    @property
    def has_masks(self) -> bool:
        """Whether any pixel is labelled."""
        return any(mask is not None for mask in self.masks)

    def truth(self, i: int, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """Anomalous pixels of a test image; none are in a good one; None where nobody marked them."""
        if self.types[i] == GOOD:
            return np.zeros(size, np.bool_)
        mask = self.masks[i]
        return None if mask is None else read_mask(mask, size)

    def balanced(self, seed: int) -> list[int]:
        """The good test images, and as many anomalous ones drawn at random (Section 4.1)."""
        good = [i for i, kind in enumerate(self.types) if kind == GOOD]
        others = [i for i, kind in enumerate(self.types) if kind != GOOD]
        count = min(len(good), len(others))
        drawn = np.random.default_rng(seed).choice(others, count, replace=False)
        return [*good, *sorted(int(i) for i in drawn)]


class InCifarSize(Lazy[object]):
    """Images of an irrelevant data set at CIFAR-10's own size, 32 x 32, which makes them no sharper than its images.

    Args:
        source: a folder or a parquet file.

    Raises:
        DataError: it holds no images.
    """

    def __init__(self, source: Path) -> None:
        self._images = external_sources(source)

    def __len__(self) -> int:
        return len(self._images)

    def item(self, index: int) -> object:
        """One image, (SIDE, SIDE, 3) uint8."""
        return resize(read_image(self._images[index]), (SIDE, SIDE))


class Subjects:
    """The categories of a data set, each opened when it is asked for.

    Args:
        data: which kind of data set.
        root: for MVTec AD a folder of categories, or a single category; for CIFAR-10 see `open_cifar10`.
        wanted: the categories' names; none means all.

    Raises:
        DataError: there is none, or not the wanted one.
    """

    def __init__(self, data: Data, root: Path, wanted: Sequence[str] = ()) -> None:
        self.data, self.root = data, root
        self._cifar: Cifar10 | None = None
        self._folders = {} if data == "cifar10" else _categories(root)
        known = list(CLASSES) if data == "cifar10" else list(self._folders)
        for name in wanted:
            if name not in known:
                raise DataError(unknown("category", name, known))
        self.names = [name for name in known if name in wanted] if wanted else known

    def open(self, name: str) -> Subject:
        """One of them."""
        return self._open_class(name) if self.data == "cifar10" else self._open_category(name)

    def _open_category(self, name: str) -> Subject:
        dataset = open_dataset(self._folders[name])
        if not dataset.train or not dataset.defect_types:
            raise DataError(f"{dataset.root} lacks {'test images' if dataset.train else 'good images to learn from'}")
        return Subject(
            name=name,
            train=[sample.path for sample in dataset.train],
            test=[sample.path for sample in dataset.test],
            types=[sample.defect_type for sample in dataset.test],
            masks=[sample.mask for sample in dataset.test],
            root=dataset.root,
        )

    def _open_class(self, name: str) -> Subject:
        self._cifar = self._cifar or open_cifar10(self.root)
        train, test = self._cifar.train, self._cifar.test
        return Subject(
            name=name,
            train=train.of_class(name),
            test=test.images,
            types=[GOOD if CLASSES[label] == name else CLASSES[label] for label in test.labels],
            masks=[None] * len(test.images),
        )


def _categories(root: Path) -> dict[str, Path]:
    """Folders with train/ inside, in the paper's order, then by name; the root itself if it is one."""
    if (root / "train").is_dir():
        return {root.resolve().name: root}
    found = {folder.name: folder for folder in subfolders(root) if (folder / "train").is_dir()}
    if not found:
        raise DataError(f"no category in {root}: expected CATEGORY/train/good/ and CATEGORY/test/, as in MVTec AD")
    order = published_tables()["table-1"].columns
    return {name: found[name] for name in [*(n for n in order if n in found), *sorted(set(found) - set(order))]}

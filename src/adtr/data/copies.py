"""Finds copies among images: identical files, and one picture saved, resized or lit in several ways."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adtr.data.folder import GOOD, Dataset
from adtr.data.loading import LoadedImage, SkippedImage, load_images
from adtr.data.sources import loaded_hash
from adtr.errors import OnError
from adtr.progress import Progress, Silent

SIDE = 32
"""Pixels on each side of the small gray pictures that are compared."""

NEAR = 0.05
"""Copies are this much nearer than neighbours usually are: a share of the squared distance to a typical neighbour."""

NEIGHBOURS = 0.1
"""The typical neighbour is the last of this share of the nearest pictures, and no nearer than the fifth: there may be
several variants of a product, and several copies of each picture."""

_ROWS = 1024  # of the table of distances that are computed at a time

Kind = Literal["leak", "contradiction", "duplicate"]


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of several copies."""

    source: object
    """What it was read from."""
    part: Literal["train", "validation", "test"]
    label: str
    """Its defect type, or "good"."""

    @property
    def name(self) -> str:
        """For people."""
        return str(self.source) if isinstance(self.source, str | Path) else f"an image in memory ({self.part})"


@dataclass(frozen=True, kw_only=True)
class Copies:
    """Images that show one and the same picture."""

    members: list[Member]
    identical: bool
    """Whether all the files are the same, byte by byte."""

    @property
    def kind(self) -> Kind:
        """What is wrong with them, the worst first.

        "contradiction": they bear several labels. "leak": they lie in several parts, such as training and test.
        "duplicate": neither.
        """
        if len({member.label for member in self.members}) > 1:
            return "contradiction"
        return "leak" if len({member.part for member in self.members}) > 1 else "duplicate"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        members = [{"path": member.name, "part": member.part, "label": member.label} for member in self.members]
        return {"kind": self.kind, "identical": self.identical, "images": members}


def members_of(sources: Sequence[object], dataset: Dataset | None) -> list[Member]:
    """The training images, and the validation and test images where there are some."""
    validation, test = (dataset.validation, dataset.test) if dataset is not None else ([], [])
    return [
        *(Member(source=source, part="train", label=GOOD) for source in sources),
        *(Member(source=sample.path, part="validation", label=GOOD) for sample in validation),
        *(Member(source=sample.path, part="test", label=sample.defect_type) for sample in test),
    ]


def find_copies(
    members: Sequence[Member],
    *,
    on_error: OnError = "raise",
    skipped: list[SkippedImage] | None = None,
    progress: Progress | None = None,
) -> list[Copies]:
    """Groups of images that are copies of each other, the worst kind first; see `Copies.kind`.

    Args:
        members: the images; each is decoded once.
        on_error: "raise" stops at an unreadable image; "skip" leaves it out.
        skipped: receives what was left out.
        progress: told of every image.

    Raises:
        ImageError: an image cannot be read and `on_error` is "raise".
    """
    progress = progress or Silent()
    progress.start("copies", total=len(members))
    found: list[Member] = []
    hashes: list[str] = []
    pictures: list[NDArray[np.float32]] = []
    sources = [member.source for member in members]
    with closing(load_images(sources, (SIDE, SIDE), on_error=on_error, skipped=skipped)) as loaded:
        for image in loaded:
            found.append(members[image.index])
            hashes.append(loaded_hash(image))
            pictures.append(_describe(image))
            progress.advance(1)
    progress.finish()
    if not found:
        return []
    groups = _groups(_near_pairs(np.stack(pictures), hashes), len(found))
    copies = [
        Copies(members=[found[i] for i in group], identical=len({hashes[i] for i in group}) == 1) for group in groups
    ]
    order: tuple[Kind, ...] = ("contradiction", "leak", "duplicate")
    return sorted(copies, key=lambda group: order.index(group.kind))


def _describe(image: LoadedImage) -> NDArray[np.float32]:
    """Gray values with mean 0 and deviation 1, so that brightness and contrast do not count, (SIDE * SIDE,)."""
    gray = image.pixels.mean(axis=-1, dtype=np.float32).ravel()
    gray -= gray.mean()
    return np.asarray(gray / max(float(gray.std()), 1.0), np.float32)  # a plain image stays plain, not noise


def _near_pairs(pictures: NDArray[np.float32], hashes: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of identical files, and of pictures much nearer to each other than neighbours in this set are."""
    first: dict[str, int] = {}
    pairs = [(first[h], i) for i, h in enumerate(hashes) if first.setdefault(h, i) != i]
    pictures = pictures - pictures.mean(axis=0)  # smaller numbers, smaller errors
    neighbour = min(max(5, round(NEIGHBOURS * len(pictures))), len(pictures) - 1)  # the nearest is the picture itself
    typical = [np.partition(rows, neighbour, axis=1)[:, neighbour] for _, rows in _distances(pictures)]
    limit = NEAR * float(np.median(np.concatenate(typical)))
    for start, rows in _distances(pictures):
        i, j = np.nonzero(rows < limit)
        pairs += zip((i + start).tolist(), j.tolist(), strict=True)
    return pairs


def _distances(pictures: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Squared distances of some pictures to all, (rows, n), and the first picture's number."""
    squares = np.square(pictures).sum(axis=1)
    for start in range(0, len(pictures), _ROWS):
        rows = slice(start, start + _ROWS)
        yield start, squares[rows, None] + squares - 2 * pictures[rows] @ pictures.T


def _groups(pairs: Iterable[tuple[int, int]], count: int) -> list[list[int]]:
    """Connected components of at least two, each in order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    table = np.array(list(pairs), np.int64).reshape(-1, 2)
    graph = coo_array((np.ones(len(table)), (table[:, 0], table[:, 1])), shape=(count, count))
    groups: dict[int, list[int]] = {}
    for i, label in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups.setdefault(label, []).append(i)
    return [group for group in groups.values() if len(group) > 1]

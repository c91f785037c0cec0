"""Images wherever fsspec reaches: listed as units of work, and read a part at a time.

A unit is an image's file, or some rows of a row group of a parquet file.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, groupby, islice
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from adtr.data.folder import list_images
from adtr.data.images import IMAGE_SUFFIXES
from adtr.data.loading import load_image
from adtr.data.parquet import encoded_images, image_column
from adtr.errors import DataError, ImageError

PARQUET = ".parquet"
TOGETHER = 64
"""Files that are asked for at a time, so that a distant disk's delay is waited for once."""
PAUSES = (1.0, 5.0)
"""Seconds before a file is asked for again that could not be had for another reason than that it is not there."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)

Batch = dict[str, NDArray[Any]]
"""Columns by name."""


def find_units(paths: Sequence[str]) -> pa.Table:
    """What lies at some places, images first, in the order of `adtr predict`.

    Args:
        paths: images, parquet files, or folders that are searched through for images or, where there is none, for
            parquet files; paths of this machine or fsspec's URLs.

    Returns:
        A row for each unit: `path` of the file, `group` (the row group, or -1 for an image), `first` (the number of
        the first row in the file), `rows` (number of images), and `number` (of the first image, among all).

    Raises:
        DataError: no such place, or no image there.
    """
    files = [file for path in paths for file in _files(path)]
    images = [file for file in files if not file.endswith(PARQUET)]
    tables = [file for file in files if file.endswith(PARQUET)]
    with ThreadPoolExecutor(32) as pool:
        groups = [group for found in pool.map(_groups, tables) for group in found]
    rows = np.array([1] * len(images) + [rows for _, _, _, rows in groups], np.int64)
    if not rows.sum():
        raise DataError(f"no images in {', '.join(paths)}")
    try:
        return pa.table(
            {
                "path": pa.array([*images, *(path for path, *_ in groups)], pa.large_string()),
                "group": np.array([-1] * len(images) + [group for _, group, _, _ in groups], np.int64),
                "first": np.array([0] * len(images) + [first for _, _, first, _ in groups], np.int64),
                "rows": rows,
                "number": np.cumsum(rows) - rows,
            }
        )
    except UnicodeEncodeError as error:
        raise DataError(f"the name {error.object!r} is not UTF-8; rename it") from error


def without_first(units: pa.Table, done: int) -> pa.Table:
    """The units without the first images."""
    number, rows = units["number"].to_numpy(), units["rows"].to_numpy()
    kept = int(np.searchsorted(number + rows, done, side="right"))
    rest = units.slice(kept)
    if not rest.num_rows or (cut := done - int(number[kept])) <= 0:
        return rest
    columns = {name: rest[name].to_numpy().copy() for name in ("first", "rows", "number")}
    columns["first"][0] += cut
    columns["rows"][0] -= cut
    columns["number"][0] += cut
    return pa.table({name: columns.get(name, rest[name]) for name in rest.column_names})


def in_blocks(units: pa.Table, images: int) -> list[pa.Table]:
    """Consecutive units, about so many images in each block."""
    ends = np.cumsum(units["rows"].to_numpy())
    starts = np.unique(np.searchsorted(ends, np.arange(0, ends[-1], images), side="right"))
    return [units.slice(a, b - a) for a, b in zip(starts, [*starts[1:], units.num_rows], strict=True)]


def load(units: Mapping[str, NDArray[Any]], size: tuple[int, int], batch_size: int, root: str) -> Iterator[Batch]:
    """The images of some units at network size, a batch at a time.

    Args:
        units: columns of `find_units`.
        size: height and width, pixels.
        batch_size: images in a batch.
        root: the folder that relative paths start from.

    Yields:
        `number`, `path` as it is shown, `pixels` (B, h, w, 3), `height` and `width` of the original, and `error`,
        which says why an image could not be read, and is empty otherwise.
    """
    found = _read(units, root)
    while batch := list(islice(found, batch_size)):
        columns: dict[str, list[Any]] = {
            name: [] for name in ("number", "path", "pixels", "height", "width", "error")
        }  # fmt: skip
        for number, path, content in batch:
            pixels, (height, width), error = np.zeros((*size, 3), np.uint8), (0, 0), ""
            try:
                if isinstance(content, Exception):
                    error = _reason(content)
                else:
                    loaded = load_image(content, size)
                    pixels, (height, width) = loaded.pixels, loaded.size
            except ImageError as problem:
                error = str(problem).removeprefix("cannot read image (bytes): ")
            for name, value in zip(columns, (number, path, pixels, height, width, error), strict=True):
                columns[name].append(value)
        yield {
            name: np.array(values, object) if name in ("path", "error") else np.stack(values)
            for name, values in columns.items()
        }


def _files(path: str) -> list[str]:
    if "://" not in path:
        place = Path(path)
        if place.is_dir():
            found = list_images(place, recursive=True) or sorted(place.rglob(f"*{PARQUET}"))
            return [str(file) for file in found]
        if not place.exists():
            raise DataError(f"no such file or folder: {path}")
        return [path]
    try:
        system, root = fsspec.core.url_to_fs(path)
        found_there = system.find(root)  # of a file: itself
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"cannot list {path}: {_reason(error)}") from error
    _, sign, rest = path.partition("::")
    seen = [
        (PurePosixPath(name).suffix.lower(), f"{system.unstrip_protocol(name)}{sign}{rest}")
        for name in found_there
        if not any(part.startswith(".") for part in name.removeprefix(root).split("/"))
    ]
    images = [url for suffix, url in seen if suffix in IMAGE_SUFFIXES]
    return images or [url for suffix, url in seen if suffix == PARQUET]


def _groups(path: str) -> list[tuple[str, int, int, int]]:
    """Path, number, first row and number of rows of each row group of a parquet file."""
    try:
        with _open(path) as file:
            metadata = parquet.ParquetFile(file).metadata
            image_column(metadata.schema.to_arrow_schema(), path)
    except DataError:
        raise
    except Exception as error:  # each file system has errors of its own
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    rows = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    firsts = [0, *accumulate(rows)]
    return [(path, group, firsts[group], count) for group, count in enumerate(rows)]


def _read(units: Mapping[str, NDArray[Any]], root: str) -> Iterator[tuple[int, str, bytes | Exception]]:
    """Number, shown name and content of each image of some units."""
    rows = zip(*(units[name].tolist() for name in ("number", "path", "group", "first", "rows")), strict=True)
    for is_image, some in groupby(rows, key=lambda row: row[2] < 0):
        if is_image:
            while together := list(islice(some, TOGETHER)):
                places = [_place(path, root) for _, path, *_ in together]
                for (number, path, *_), content in zip(together, _fetch(places), strict=True):
                    yield number, path, content
        else:
            for number, path, group, first, count in some:
                place = _place(path, root)
                yield from (
                    (number + i, f"{path}#{first + i}", content)
                    for i, content in enumerate(_read_group(place, group, first, count))
                )


def _place(path: str, root: str) -> str:
    return path if "://" in path else str(Path(root, path))


def _fetch(paths: Sequence[str]) -> Iterable[bytes | Exception]:
    """Contents of files, or what kept each from being read; in the order of the paths."""
    contents: dict[int, bytes | Exception] = {}
    wanted = list(range(len(paths)))
    for pause in (*PAUSES, None):
        places = [(i, *fsspec.core.url_to_fs(paths[i])) for i in wanted]
        for system, some in groupby(places, key=lambda place: place[1]):
            here = list(some)
            found = system.cat_ranges([place for *_, place in here], None, None, on_error="return")
            contents.update(zip((i for i, *_ in here), found, strict=True))
        wanted = [i for i in wanted if isinstance(contents[i], Exception) and not isinstance(contents[i], _FINAL)]
        if not wanted or pause is None:
            break
        time.sleep(pause)
    return [contents[i] for i in range(len(paths))]


def _read_group(place: str, group: int, first: int, rows: int) -> Iterator[bytes | Exception]:
    """Encoded images of a row group, from a row of the file on; or what kept the rest of them from being read."""
    left = rows
    try:
        with _open(place) as opened:
            file = parquet.ParquetFile(opened)
            column = image_column(file.schema_arrow, place)
            skipped = first - sum(file.metadata.row_group(i).num_rows for i in range(group))
            batches = file.iter_batches(batch_size=TOGETHER, row_groups=[group], columns=[column])
            contents = (content.as_py() or b"" for batch in batches for content in encoded_images(batch[column]))
            for content in islice(contents, skipped, skipped + rows):
                left -= 1
                yield content
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own
        yield from [error] * left


def _open(place: str) -> Any:  # noqa: ANN401 - fsspec has no types
    system, path = fsspec.core.url_to_fs(place)
    return system.open(path, "rb")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__

"""CIFAR-10 in the forms in which it is handed around: official batches, the hub's parquet files, folders of images.

The official python batches are pickles, which are never unpickled: their opcodes are read without running any, and a
file with an opcode or a name that such a batch does not have is refused.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adtr.data.folder import list_images
from adtr.errors import DataError
from adtr.files import read_bounded

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
"""Pixels."""
PIXELS = 3 * SIDE * SIDE

_BINARY = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
_PYTHON = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
_FOLDERS = ("", "cifar-10-batches-bin", "cifar-10-batches-py")
_OPCODES = {
    *("PROTO", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK", "STOP", "SETITEM", "SETITEMS", "APPEND", "APPENDS"),
    *("BINSTRING", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2", "NONE", "NEWFALSE", "NEWTRUE"),
    *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("GLOBAL", "REDUCE", "BUILD"),
}
_NAMES = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
_LARGEST = 64 << 20
"""Bytes of a batch, of which an official one has half."""
_LARGEST_ARCHIVE = 512 << 20
"""Bytes of an archive, packed or unpacked, of which an official one has a third."""
_MOST_OPCODES = 1_000_000
"""Of a pickled batch, of which an official one has some 60,000."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images and their classes, in one order."""

    images: Sequence[object]
    """Anything that `adtr.data.images.read_image` accepts."""
    labels: NDArray[np.int64]
    """Places in `CLASSES`, (n,)."""

    def of_class(self, name: str) -> list[object]:
        """The images of a class."""
        return [self.images[int(i)] for i in np.flatnonzero(self.labels == CLASSES.index(name))]


@dataclass(frozen=True, kw_only=True)
class Cifar10:
    """The training and test images."""

    train: LabelledImages
    test: LabelledImages
    form: str
    """What they were read from."""


def open_cifar10(root: Path) -> Cifar10:
    """Recognise the form by the names of the files.

    Args:
        root: a folder with the official batches (binary or python version; in their own subfolder or not), with
            `train*.parquet` and `test*.parquet`, or with `train/<class>/` and `test/<class>/`; or one of the official
            archives.

    Raises:
        DataError: it is none of these, or a file is damaged or incomplete.
        ConfigError: pyarrow is not installed, which parquet files need.
    """
    if root.is_file() and root.name.endswith((".tar.gz", ".tar")):
        return _from_batches(_read_archive(root), root)
    for folder in (root / name for name in _FOLDERS):
        for names in (_BINARY, _PYTHON):
            present = [name for name in names if (folder / name).is_file()]
            if len(present) == len(names):
                return _from_batches({name: _read_file(folder / name) for name in names}, folder)
            if present:
                raise DataError(f"{folder} lacks {min(set(names) - set(present))}; unpack the whole archive again")
    for archive in ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz"):
        if (root / archive).is_file():
            return open_cifar10(root / archive)
    parts = {part: sorted(root.glob(f"**/{part}*.parquet")) for part in ("train", "test")}
    if all(parts.values()):
        train, test = (_from_parquet(parts[part]) for part in ("train", "test"))
        return Cifar10(train=train, test=test, form="parquet files")
    if all((root / part / CLASSES[0]).is_dir() for part in ("train", "test")):
        train, test = (_from_folders(root / part) for part in ("train", "test"))
        return Cifar10(train=train, test=test, form="folders")
    raise DataError(
        f"no CIFAR-10 in {root}: expected cifar-10-binary.tar.gz or its data_batch_1.bin ..., the python version's "
        "data_batch_1 ..., train*.parquet and test*.parquet, or train/airplane/ ... and test/airplane/ ..."
    )


def read_binary_batch(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and labels (n,) of a batch of the binary version: a label and 3,072 pixels for each.

    Raises:
        DataError: it is damaged.
    """
    if not data or len(data) % (1 + PIXELS):
        raise DataError(f"{name} is no CIFAR-10 batch: {len(data)} bytes are no multiple of {1 + PIXELS}")
    rows = np.frombuffer(data, np.uint8).reshape(-1, 1 + PIXELS)
    return _images(rows[:, 1:]), _labels(rows[:, 0], name)


def read_python_batch(data: bytes, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and labels (n,) of a batch of the python version, without unpickling it.

    Raises:
        DataError: it is damaged, or holds anything that an official batch does not.
    """
    pixels, labels, key = b"", [], ""
    try:
        for opcode, argument, _ in islice(pickletools.genops(data), _MOST_OPCODES):
            if opcode.name not in _OPCODES or (opcode.name == "GLOBAL" and argument not in _NAMES):
                what = f"{opcode.name} {argument}" if opcode.name == "GLOBAL" else opcode.name
                raise DataError(
                    f"{name} is a pickle that holds {what[:80]}, which no official batch does, and is not read; take "
                    "the binary version, cifar-10-binary.tar.gz"
                )
            if isinstance(argument, str) and opcode.name.endswith("BINSTRING"):
                key = argument if len(argument) < PIXELS else key
                if len(argument) >= PIXELS:
                    pixels = argument.encode("latin-1")
            elif key == "labels" and opcode.name == "BININT1":
                labels.append(argument)
    except DataError:
        raise
    except (ValueError, IndexError, UnicodeError) as error:
        raise DataError(f"{name} is no CIFAR-10 batch: {' '.join(str(error).split())[:80]}") from error
    if not labels or len(pixels) != PIXELS * len(labels):
        raise DataError(
            f"{name} is no CIFAR-10 batch: {len(labels)} labels and {len(pixels)} bytes of pixels; take the binary "
            "version, cifar-10-binary.tar.gz"
        )
    return _images(np.frombuffer(pixels, np.uint8).reshape(-1, PIXELS)), _labels(np.array(labels), name)


def _images(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(n, 3072), the red, green and blue planes one after another, to (n, 32, 32, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _labels(values: NDArray[np.integer], name: str) -> NDArray[np.int64]:
    if values.max() >= len(CLASSES):
        raise DataError(f"{name} is no CIFAR-10 batch: it has a label {values.max()}, of {len(CLASSES)} classes")
    return values.astype(np.int64)


def _from_batches(files: dict[str, bytes], source: Path) -> Cifar10:
    binary = _BINARY[0] in files
    read: Callable[[bytes, str], tuple[NDArray[np.uint8], NDArray[np.int64]]]
    read = read_binary_batch if binary else read_python_batch
    batches = [read(files[name], str(source / name)) for name in (_BINARY if binary else _PYTHON)]

    def joined(parts: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> LabelledImages:
        images = np.concatenate([images for images, _ in parts])
        return LabelledImages(images=list(images), labels=np.concatenate([labels for _, labels in parts]))

    form = "official batches, binary version" if binary else "official batches, python version"
    return Cifar10(train=joined(batches[:-1]), test=joined(batches[-1:]), form=form)


def _read_file(path: Path) -> bytes:
    try:
        return read_bounded(path, _LARGEST)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_archive(path: Path) -> dict[str, bytes]:
    """The batches of an official archive; nothing is unpacked to the disk."""
    try:
        data = read_bounded(path, _LARGEST_ARCHIVE)
        if path.suffix == ".gz":  # unpacked no further than an archive goes
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(_LARGEST_ARCHIVE)
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            files = dict(_batches(archive))
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    for names in (_BINARY, _PYTHON):
        if set(names) <= set(files):
            return files
    raise DataError(f"{path} does not hold the six batches of CIFAR-10; fetch it again")


def _batches(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        name = member.name.rsplit("/", 1)[-1]
        if member.isfile() and name in (*_BINARY, *_PYTHON) and member.size <= _LARGEST:
            file = archive.extractfile(member)
            assert file is not None
            yield name, file.read()


def _from_parquet(paths: Sequence[Path]) -> LabelledImages:
    from adtr.data.parquet import ParquetImages, parquet_column

    images: list[object] = []
    labels: list[NDArray[np.int64]] = []
    for path in paths:
        part = ParquetImages(path)
        images += part[:]
        labels.append(_labels(parquet_column(path, "label"), str(path)))
    return LabelledImages(images=images, labels=np.concatenate(labels))


def _from_folders(root: Path) -> LabelledImages:
    found = [list_images(root / name) for name in CLASSES]
    labels = np.repeat(np.arange(len(CLASSES)), [len(paths) for paths in found])
    return LabelledImages(images=[path for paths in found for path in paths], labels=labels)

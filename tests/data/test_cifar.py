import io
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.data import cifar
from adtr.data.cifar import CLASSES, Cifar10, open_cifar10, read_binary_batch, read_python_batch
from adtr.data.images import read_image
from adtr.errors import DataError

IMAGES = 6


def batch(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8), rng.integers(0, 10, IMAGES)


def planes(images: np.ndarray) -> bytes:
    return images.transpose(0, 3, 1, 2).tobytes()


def as_binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + planes(image[None]) for image, label in zip(images, labels, strict=True))


def as_python(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What Python 2 wrote: the official batches, opcode by opcode."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value

    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    pixels = planes(images)
    shape = b"(K\x01M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    dtype = b"cnumpy\ndtype\nq\n" + text(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + text(b"|") + b"NNNJ" + b"\xff" * 4
    dtype += b"J" + b"\xff" * 4 + b"K\x00tb\x89T" + struct.pack("<i", len(pixels)) + pixels + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + text(b"b") + b"\x87Rq\x09"
    names = b"]q\x0c(" + b"".join(text(b"some_image_s_000001.png") for _ in labels) + b"e"
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels")
        + b"]q\x05(" + numbers + b"e" + text(b"data") + array + shape + dtype + text(b"filenames") + names + b"u."
    )  # fmt: skip


def write_official(folder: Path, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    folder.mkdir(parents=True)
    batches = [batch(i) for i in range(6)]
    for i, (images, labels) in enumerate(batches):
        name = f"data_batch_{i + 1}" if i < 5 else "test_batch"
        content = as_binary(images, labels) if kind == "bin" else as_python(images, labels)
        (folder / (f"{name}.bin" if kind == "bin" else name)).write_bytes(content)
    return batches


def assert_is(opened: Cifar10, batches: list[tuple[np.ndarray, np.ndarray]]) -> None:
    for part, expected in ((opened.train, batches[:-1]), (opened.test, batches[-1:])):
        assert np.array_equal(np.stack(part.images), np.concatenate([images for images, _ in expected]))
        assert np.array_equal(part.labels, np.concatenate([labels for _, labels in expected]))


@pytest.mark.parametrize("kind", ["bin", "py"])
def test_both_official_versions_are_read_folder_and_archive(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "data" / f"cifar-10-batches-{kind}"
    batches = write_official(folder, kind)
    opened = open_cifar10(tmp_path / "data")
    assert_is(opened, batches)
    assert_is(open_cifar10(folder), batches)
    assert opened.form.startswith("official batches")
    archive = tmp_path / f"cifar-10-{'binary' if kind == 'bin' else 'python'}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    assert_is(open_cifar10(archive), batches)
    assert_is(open_cifar10(tmp_path), batches)


def test_the_crafted_pickle_is_one() -> None:
    """The test's own batch is a real pickle, with the arrays of the official ones."""
    images, labels = batch(0)

    class Numpy(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            return getattr(np._core.multiarray if module.startswith("numpy.core") else np, name)

    loaded = Numpy(io.BytesIO(as_python(images, labels)), encoding="bytes").load()
    assert loaded[b"labels"] == labels.tolist()
    assert np.array_equal(loaded[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), images)
    assert np.array_equal(read_python_batch(as_python(images, labels), "batch")[0], images)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("it-ran"),)


def test_a_pickle_with_anything_else_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    images, labels = batch(0)
    good = as_python(images, labels)
    harmful = [pickle.dumps({"labels": [1], "data": Evil()}, protocol=p) for p in (0, 2, 4)]
    harmful.append(good.replace(b"cnumpy\ndtype\n", b"cos\nsystem\n"))
    for data in harmful:
        with pytest.raises(DataError, match="no official batch does"):
            read_python_batch(data, "data_batch_1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "data",
    [b"", b"no pickle at all", as_python(*batch(0))[:-200], as_python(batch(0)[0], batch(0)[1][:-1]), b"\x80\x02."],
)
def test_a_damaged_python_batch_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        read_python_batch(data, "data_batch_1")


def test_a_damaged_binary_batch_is_refused() -> None:
    whole = as_binary(*batch(0))
    with pytest.raises(DataError, match="no multiple of 3073"):
        read_binary_batch(whole[:-1], "b")
    with pytest.raises(DataError, match="label 10"):
        read_binary_batch(b"\x0a" + whole[1:], "b")
    with pytest.raises(DataError, match="no multiple"):
        read_binary_batch(b"", "b")


def test_an_incomplete_folder_is_named(tmp_path: Path) -> None:
    write_official(tmp_path / "c", "bin")
    (tmp_path / "c" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_3\.bin"):
        open_cifar10(tmp_path / "c")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no CIFAR-10"):
        open_cifar10(tmp_path / "empty")


def test_parquet_files_and_folders_hold_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images, _ = batch(0)
    labels = np.arange(IMAGES)
    for part in ("train", "test"):
        for name in CLASSES:
            (tmp_path / "folders" / part / name).mkdir(parents=True)
        encoded = []
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / "folders" / part / CLASSES[label] / f"{i}.png"
            Image.fromarray(image).save(path)
            encoded.append({"bytes": path.read_bytes(), "path": None})
        (tmp_path / "hub").mkdir(exist_ok=True)
        table = pyarrow.table({"img": encoded, "label": labels})
        parquet.write_table(table, tmp_path / "hub" / f"{part}-00000-of-00001.parquet")
    for root in (tmp_path / "folders", tmp_path / "hub"):
        opened = open_cifar10(root)
        for part in (opened.train, opened.test):
            assert np.array_equal(np.stack([np.asarray(read_image(i)) for i in part.images]), images)
            assert np.array_equal(part.labels, labels)
            assert len(part.of_class("bird")) == 1
            assert part.of_class("truck") == []


def test_an_archive_is_unpacked_no_further_than_one_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_LARGEST_ARCHIVE", 1 << 20)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("nothing")
        entry.size = 1 << 24
        tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(packed.getvalue())
    with pytest.raises(DataError, match=r"fetch it again|cannot read"):
        open_cifar10(tmp_path)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    write_official(tmp_path / "data", "bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "data", arcname="cifar-10-batches-bin")
    whole = (tmp_path / "cifar-10-binary.tar.gz").read_bytes()
    for damaged in (whole[:-2000], whole[:3000] + bytes(100) + whole[3100:], b"text", b""):
        (tmp_path / "cifar-10-binary.tar.gz").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cifar-10-binary\.tar\.gz"):
            open_cifar10(tmp_path / "cifar-10-binary.tar.gz")


def test_a_pickle_of_endless_opcodes_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "_MOST_OPCODES", 1000)
    with pytest.raises(DataError, match="0 labels"):
        read_python_batch(b"\x80\x02" + b"N" * 10_000_000 + b".", "data_batch_1")

"""Units of work: found in the order of predict, wherever they lie; read and decoded in batches."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from adtr.data.loading import load_image
from adtr.errors import DataError
from adtr.scaling import sources
from adtr.scaling.sources import find_units, in_blocks, load, without_first

SIZE = (24, 32)


def encoded(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((10, 12 + shade, 3), shade, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def loaded(units: pa.Table, root: Path, batch_size: int = 3) -> list[dict[str, Any]]:
    """Rows of all batches."""
    columns = {name: units[name].to_numpy() for name in units.column_names}
    batches = list(load(columns, SIZE, batch_size, str(root)))
    assert all(len(batch["path"]) == batch_size for batch in batches[:-1])
    return [{name: batch[name][i] for name in batch} for batch in batches for i in range(len(batch["path"]))]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Seven images, one of them broken, and what is none."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b[1].PNG", "deep/c.png", "deep/d.png", "deep/e.png", "z.png")):
        (folder / name).write_bytes(encoded(i))
    (folder / "deep/broken.png").write_bytes(b"no image")
    (folder / ".hidden.png").write_bytes(encoded(9))
    (folder / "notes.txt").write_text("no image")
    return folder


def test_a_folder_is_read_in_order_and_what_is_broken_is_named(
    images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    units = find_units([images.name])
    assert units["path"].to_pylist() == [
        f"images/{name}"
        for name in ("a.png", "b[1].PNG", "deep/broken.png", "deep/c.png", "deep/d.png", "deep/e.png", "z.png")
    ]
    monkeypatch.chdir("/")  # a worker may start anywhere
    rows = loaded(units, tmp_path)
    assert [row["number"] for row in rows] == list(range(7))
    assert [bool(row["error"]) for row in rows] == [i == 2 for i in range(7)]
    assert rows[2]["error"]
    assert "(bytes)" not in rows[2]["error"]
    for row in rows:
        if not row["error"]:
            expected = load_image(tmp_path / row["path"], SIZE)
            assert np.array_equal(row["pixels"], expected.pixels)
            assert (row["height"], row["width"]) == expected.size


def test_urls_of_any_file_system(images: Path, tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    archive = tmp_path / "images.zip"
    with ZipFile(archive, "w") as file:
        for path in sorted(images.rglob("*.*")):
            name = path.relative_to(images).as_posix()
            file.write(path, f"images/{name}")
            memory.pipe(f"/bucket/images/{name}", path.read_bytes())
    expected = [(row["path"], row["error"], row["pixels"]) for row in loaded(find_units([str(images)]), tmp_path)]
    for root in (f"file://{images}", "memory://bucket/images", f"zip://images::file://{archive}"):
        rows = loaded(find_units([root]), tmp_path)
        assert len(rows) == 7
        for row, (path, error, pixels) in zip(rows, expected, strict=True):
            assert path.removeprefix(str(images)) in row["path"]
            assert row["path"].startswith(root.split("://")[0])
            assert row["error"] == error
            assert np.array_equal(row["pixels"], pixels)
    single = find_units(["memory://bucket/images/a.png", str(images / "z.png")])
    assert [row["error"] for row in loaded(single, tmp_path)] == ["", ""]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Ten images in the hub's layout, in row groups of four; one is missing."""
    rows = [{"image": {"bytes": encoded(i), "path": f"{i}.png"}, "label": 0} for i in range(10)]
    rows[5]["image"]["bytes"] = None
    path = tmp_path / "tables" / "train.parquet"
    path.parent.mkdir()
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=4)
    return path


@pytest.mark.parametrize("given_as", ["file", "folder", "url"])
def test_parquet(table: Path, tmp_path: Path, given_as: str) -> None:
    place = {"file": str(table), "folder": str(table.parent), "url": f"file://{table.parent}"}[given_as]
    rows = loaded(find_units([place]), tmp_path)
    assert [row["path"].rpartition("/")[2] for row in rows] == [f"train.parquet#{i}" for i in range(10)]
    assert [row["width"] for row in rows] == [0 if i == 5 else 12 + i for i in range(10)]
    assert [i for i, row in enumerate(rows) if row["error"]] == [5]


def test_a_damaged_row_group_is_named_row_by_row(table: Path, tmp_path: Path) -> None:
    column = parquet.read_metadata(table).row_group(1).column(0)
    content = bytearray(table.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    table.write_bytes(content)
    rows = loaded(find_units([str(table)]), tmp_path)
    assert [i for i, row in enumerate(rows) if row["error"]] == [4, 5, 6, 7]


def test_images_come_before_parquet_files(table: Path, images: Path, tmp_path: Path) -> None:
    units = find_units([str(table), str(images)])
    rows = loaded(units, tmp_path)
    assert [row["number"] for row in rows] == list(range(17))
    assert [row["path"].endswith("png") or row["path"].endswith("PNG") for row in rows] == [True] * 7 + [False] * 10


@given(st.lists(st.integers(0, 7), min_size=1, max_size=20), st.data())
def test_blocks_and_what_is_left_are_the_same_images(counts: list[int], data: st.DataObject) -> None:
    rows = np.array(counts, np.int64)
    first = np.array([i * 100 for i in range(len(counts))])
    units = pa.table({"first": first, "rows": rows, "number": np.cumsum(rows) - rows})

    def images(table: pa.Table) -> list[tuple[int, int]]:
        return [(u["first"] + i, u["number"] + i) for u in table.to_pylist() for i in range(u["rows"])]

    whole = images(units)
    done = data.draw(st.integers(0, len(whole)))
    rest = without_first(units, done)
    assert images(rest) == whole[done:]
    if done < len(whole):
        size = data.draw(st.integers(1, 10))
        blocks = in_blocks(rest, size)
        assert [image for block in blocks for image in images(block)] == whole[done:]
        assert all(block.num_rows for block in blocks)


def test_what_fails_for_a_moment_is_asked_for_again(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = LocalFileSystem.cat_file

    def flaky(self: LocalFileSystem, path: str, *args: object, **kwargs: object) -> bytes:
        asked.append(Path(path).name)
        if asked.count("c.png") < 3 and path.endswith("c.png"):
            raise TimeoutError("too slow")
        return real(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "cat_file", flaky)
    monkeypatch.setattr(sources, "PAUSES", (0.0, 0.0))
    (images / "deep/d.png").unlink()
    units = pa.table(
        {
            "path": [str(images / name) for name in ("a.png", "deep/c.png", "deep/d.png")],
            "group": [-1] * 3,
            "first": [0] * 3,
            "rows": [1] * 3,
            "number": [0, 1, 2],
        }
    )
    rows = loaded(units, images)
    assert asked == ["a.png", "c.png", "d.png", "c.png", "c.png"]  # what is not there is not asked for again
    assert [row["error"] for row in rows] == ["", "", "No such file or directory"]


def test_mistakes(tmp_path: Path, table: Path) -> None:
    for place, message in {
        str(tmp_path / "nowhere"): "no such file or folder",
        "nosuch://bucket": "cannot list nosuch://bucket: Protocol not known",
        "memory://empty": "no images in memory://empty",
    }.items():
        with pytest.raises(DataError, match=message):
            find_units([place])
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"cannot read .*bad\.parquet"):
        find_units([str(tmp_path / "bad.parquet")])
    parquet.write_table(pa.table({"label": [1]}), table)
    with pytest.raises(DataError, match="holds no images: expected a column"):
        find_units([str(table)])

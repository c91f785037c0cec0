"""Rows about images, in order, kept in parts, so that a run that was cut goes on behind the last whole part."""

from __future__ import annotations

import io
import json
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from adtr.data.loading import SkippedImage
from adtr.errors import AdtrError, ConfigError
from adtr.files import check_writable, parse_json, replace_file

MANIFEST = "_manifest.json"
"""Begins with _, which readers of folders of parquet files pass over."""
PART_ROWS, PART_SECONDS = 10_000, 30.0
"""A part is written after so many rows, or so much time: what a killed run does again."""

_PART = re.compile(r"part-(\d{12})-(\d{12})\.parquet")
_REGION = pa.struct([("box", pa.list_(pa.int32())), ("area", pa.int64()), ("peak", pa.float64())])
SCHEMA = pa.schema(
    [
        ("path", pa.large_string()),
        ("score", pa.float64()),
        ("p_value", pa.float64()),
        ("severity", pa.float64()),
        ("threshold", pa.float64()),
        ("verdict", pa.string()),
        ("is_anomalous", pa.bool_()),
        ("regions", pa.list_(_REGION)),
        ("brightness", pa.float64()),
        ("sharpness", pa.float64()),
        ("error", pa.string()),
    ]
)
"""The keys of `adtr predict`, and `error`: why an image could not be read; the others are null then."""


def parts_folder(output: Path) -> Path:
    """Where the parts lie until all rows are there; it is made, and can be written.

    Raises:
        ConfigError: the output is a file that ends in something else than .parquet or .jsonl.
        AdtrError: it cannot be written.
    """
    if output.suffix not in ("", ".parquet", ".jsonl"):
        raise ConfigError(f"--output must be a folder, or end in .parquet or .jsonl, not {output.name!r}")
    if output.suffix and output.is_dir():
        raise AdtrError(f"{output} is a folder, not a file; choose another --output")
    folder = output.with_name(f"{output.name}.partial") if output.suffix else output
    check_writable(folder)
    return folder


class Answers:
    """The rows of one run, which nobody else may be at work on.

    The parts lie in the output, if that is a folder, or in `FILE.partial`, from which the file is made in the end. Each
    is written beside and renamed; `_manifest.json` tells what they are about, and whether they are all.

    Args:
        output: a folder, or a file that ends in .parquet or .jsonl.
        about: JSON values that tell this run from others.

    Raises:
        ConfigError: a file that ends in something else.
        AdtrError: the output cannot be written, or holds something else or another run.
    """

    def __init__(self, output: Path, about: dict[str, Any]) -> None:
        self.output, self._about = output, about
        self.is_file = output.suffix != ""
        self.folder = parts_folder(output)
        self.counts: Counter[str] = Counter()
        """Of verdicts, and of unreadable images."""
        self.skipped: list[SkippedImage] = []
        self.done = 0
        """Rows so far."""
        self._rows: list[dict[str, Any]] = []
        self._written = time.monotonic()
        self.is_complete = self._read_manifest()
        for part in self.parts():
            for row in _read_part(part, ["path", "verdict", "error"]).to_pylist():
                self._count(row)
        self._kept = self.done

    def parts(self) -> list[Path]:
        """The parts so far, in order."""
        found = sorted(path for path in self.folder.iterdir() if _PART.fullmatch(path.name))
        expected = 0
        for path in found:
            first, end = _range(path)
            if first != expected:
                raise AdtrError(f"{self.folder} lacks the part with row {expected}; choose another --output")
            expected = end
        return found

    def add(self, row: dict[str, Any]) -> None:
        """The next row."""
        self._rows.append(row)
        self._count(row)
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._written > PART_SECONDS:
            self.keep()

    def keep(self) -> None:
        """Write the rows that are not in a part yet.

        Raises:
            AdtrError: they cannot be written.
        """
        if self._rows:
            buffer = io.BytesIO()
            parquet.write_table(pa.Table.from_pylist(self._rows, SCHEMA), buffer, compression="zstd")
            replace_file(self.folder / f"part-{self._kept:012}-{self.done:012}.parquet", buffer.getvalue())
        self._rows, self._kept, self._written = [], self.done, time.monotonic()

    def finish(self) -> None:
        """All rows are there: say so, and make the file where one is wanted.

        Raises:
            AdtrError: it cannot be written.
        """
        self.keep()
        self.is_complete = True
        self._write_manifest()
        if self.is_file:
            joined = self.folder / "joined"
            try:
                _join(self.parts(), joined, as_parquet=self.output.suffix == ".parquet")
                joined.replace(self.output)
            except OSError as error:
                raise AdtrError(f"cannot write {self.output}: {error.strerror or error}; make room") from error
            shutil.rmtree(self.folder)

    def _count(self, row: dict[str, Any]) -> None:
        self.done += 1
        self.counts[row.get("verdict") or "unreadable"] += 1
        if row.get("error"):
            self.skipped.append(SkippedImage(row["path"], row["error"]))

    def _read_manifest(self) -> bool:
        path = self.folder / MANIFEST
        if not path.exists():
            if any(not path.name.startswith(".") for path in self.folder.iterdir()):
                raise AdtrError(f"{self.folder} holds something else than results; choose another --output")
            self.is_complete = False
            self._write_manifest()
            return False
        try:
            found = parse_json(path.read_text("utf-8"))
            different = [name for name, value in self._about.items() if found["about"].get(name) != value]
            is_complete = bool(found["complete"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise AdtrError(f"{path} is no manifest; choose another --output") from error
        if different:
            raise AdtrError(
                f"{self.folder} holds results of another run (with another {', '.join(different)}); remove it, or "
                "choose another --output"
            )
        return is_complete

    def _write_manifest(self) -> None:
        values = {"about": self._about, "complete": self.is_complete, "counts": dict(self.counts)}
        replace_file(self.folder / MANIFEST, json.dumps(values, indent=2) + "\n")


def as_json(row: dict[str, Any]) -> str:
    """A row as `adtr predict` prints it."""
    return json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)


def _range(part: Path) -> tuple[int, int]:
    found = _PART.fullmatch(part.name)
    assert found
    return int(found[1]), int(found[2])


def _join(parts: list[Path], file: Path, *, as_parquet: bool) -> None:
    if as_parquet:
        with parquet.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
            for part in parts:
                writer.write_table(_read_part(part))
    else:
        with file.open("w", encoding="utf-8") as lines:
            lines.writelines(f"{as_json(row)}\n" for row in _rows(parts))


def _rows(parts: list[Path]) -> Iterator[dict[str, Any]]:
    for part in parts:
        yield from _read_part(part).to_pylist()


def _read_part(path: Path, columns: list[str] | None = None) -> pa.Table:
    try:
        return parquet.read_table(path, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise AdtrError(f"{path} is damaged; remove it and those after it, and give the command again") from error

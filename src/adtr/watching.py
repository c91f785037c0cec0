"""Predicts what lands in a folder: each image once, whatever happens in between."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from adtr.data.folder import list_images
from adtr.data.loading import load_image
from adtr.errors import AdtrError, ConfigError, ImageError
from adtr.files import append_line, check_writable, explained, open_lines, parse_json, read_bounded, replace_file
from adtr.prediction import Prediction
from adtr.predictor import Predictor

RESULTS = "results.jsonl"
MAX_BYTES = 2 << 30
"""Of an image's file."""
VERDICTS = ("good", "unsure", "anomalous")
Sort = Literal["copy", "link"]
Stamp = tuple[int, int]
"""Size and time of the last change, of a file."""


class FolderWatch:
    """Looks at a folder again and again.

    A file is predicted once its size and time are the same in two looks: it is written completely then. What was
    predicted is known from `results.jsonl` alone, by path, size and time, so that a restart repeats nothing, and an
    image that replaces another of its name is predicted too.

    Args:
        folder: is searched through with its subfolders; nothing in it is changed.
        output: receives `results.jsonl` and, with `sort`, the folders good, unsure and anomalous.
        sort: "copy" or "link" (symbolic links) puts each image into the folder of its verdict.

    Raises:
        DataError: no such folder.
        ConfigError: one of the two folders lies inside the other.
        AdtrError: the output cannot be written, or its results cannot be read.
    """

    def __init__(self, folder: Path, output: Path, *, sort: Sort | None = None) -> None:
        check_apart(folder, output)
        check_writable(output)
        self._folder, self._output, self._sort = folder, output, sort
        self._results = output / RESULTS
        self._done = _read_done(self._results)
        self._before: dict[str, Stamp] = {}

    def look(self, detector: Predictor, *, stop: Callable[[], bool] = lambda: False) -> Iterator[dict[str, Any]]:
        """Predict the images that are complete and not known yet.

        Args:
            detector: judges them.
            stop: asked before each image; what is left then is found in the next look.

        Yields:
            What was written for each: the keys of `adtr predict`, or `error` for what is no readable image.

        Raises:
            AdtrError: the output cannot be written.
        """
        now = {name: stamp for name, stamp in self._list() if self._done.get(name) != stamp}
        ready = [name for name, stamp in now.items() if self._before.get(name) == stamp]
        self._before = now
        for name in ready:
            if stop():
                return
            row = self._judge(detector, name, now[name])
            if row is None:
                continue
            append_line(self._results, json.dumps(row, ensure_ascii=False))
            self._done[name] = now[name]
            yield row

    def _list(self) -> Iterator[tuple[str, Stamp]]:
        for path in list_images(self._folder, recursive=True):
            try:
                stat = path.stat()
            except OSError:  # gone, or a broken link
                continue
            yield path.relative_to(self._folder).as_posix(), (stat.st_size, stat.st_mtime_ns)

    def _judge(self, detector: Predictor, name: str, stamp: Stamp) -> dict[str, Any] | None:
        """The row of an image, which is sorted already; None if it has gone or changed meanwhile."""
        path = self._folder / name
        row: dict[str, Any] = {
            "path": name,
            "size": stamp[0],
            "mtime_ns": stamp[1],
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        try:
            data = read_bounded(path, MAX_BYTES)
        except OSError as error:
            if not path.exists():
                return None
            return {**row, "error": f"cannot read image {path}: {error.strerror}"}
        if len(data) != stamp[0]:
            return None
        try:
            image = load_image(data, detector.fitted_config_.embedding.image_size)
        except ImageError as error:
            return {**row, "error": str(error).replace("(bytes)", str(path), 1)}
        prediction = detector.judge([image])[0]
        if self._sort is not None:
            self._put(name, data, prediction)
        return {**row, **prediction.to_dict(), "brightness": image.brightness, "sharpness": image.sharpness}

    def _put(self, name: str, data: bytes, prediction: Prediction) -> None:
        """Before the row is written: after a crash in between it is put again, to the same place."""
        for verdict in VERDICTS:
            target = self._output / verdict / name
            if verdict != prediction.verdict:
                with explained(target):
                    target.unlink(missing_ok=True)  # of an earlier image of this name
            elif self._sort == "copy":
                replace_file(target, data)
            else:
                _link(target, (self._folder / name).absolute())


def check_apart(folder: Path, output: Path) -> None:
    """Fail where a folder cannot be watched, or where what is written would be watched too.

    Raises:
        DataError: no such folder.
        ConfigError: one of the two folders lies inside the other.
    """
    list_images(folder)  # fails with the right message
    inside, outside = folder.resolve(), output.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise ConfigError(f"{output} and {folder} lie inside each other; choose another output")


def _read_done(results: Path) -> dict[str, Stamp]:
    """What was predicted before.

    Raises:
        AdtrError: a line is none of ours.
    """
    try:
        rows = [parse_json(line) for line in open_lines(results)]
        return {row["path"]: (int(row["size"]), int(row["mtime_ns"])) for row in rows}
    except AdtrError:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise AdtrError(f"{results} holds something else than the results of a watch; choose another output") from error


def _link(target: Path, source: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source)
    except OSError as error:
        raise AdtrError(f"cannot link {target}: {error.strerror}; take --sort copy") from error

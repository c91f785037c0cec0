"""Files: written so that nobody ever sees half of one, and read as what anybody may have made."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from adtr.errors import AdtrError
from adtr.locks import hold_file, hold_folder


def replace_file(path: Path, data: bytes | str) -> None:
    """Write beside, then rename: `path` holds the old content or the new, never a part.

    The draft's name is always the same: what a killed process left is written over, not left behind.

    Raises:
        AdtrError: the place cannot be written, or the disk is full.
    """
    payload = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path)
        with hold_file(draft):
            try:
                with open(draft, "wb", opener=_unless_a_link) as file:
                    file.write(payload)
                    file.flush()
                    os.fsync(file.fileno())
                draft.replace(path)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
        _sync_folder(path.parent)


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` when the block ends well, and vanishes when it does not.

    Linux exchanges the two in one step. Elsewhere `path` is absent for a moment; where the process is killed just then,
    the next call puts the old folder back.

    Raises:
        AdtrError: the place cannot be written, the disk is full, or another process is writing it.
    """
    with explained(path):
        path = path.resolve()  # a link's target is replaced, not the link
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(path)
        old = draft.with_suffix(".old")
        with hold_folder(draft, output=path):
            try:
                if old.exists() and not path.exists():
                    old.rename(path)
                _clear(draft)  # of what a killed process left
                yield draft
                _sync_folder(draft)
                if path.exists():
                    with hold_folder(path):  # which takes the draft's name: nobody may fill it before it is gone
                        if not _exchange(draft, path):
                            _replace_in_two_steps(draft, path, old)
                        shutil.rmtree(draft, ignore_errors=True)
                else:
                    draft.rename(path)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
        _sync_folder(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add a line to a file that `open_lines` has opened, whole or not at all; several processes may at a time.

    Raises:
        AdtrError: the file has gone or cannot be written, or the disk is full.
    """
    with explained(path), hold_file(path, create=False), open(path, "ab+", buffering=0, opener=_if_there) as file:
        end = _cut_part_of_a_line(file)
        rest = memoryview(line.encode("utf-8", "backslashreplace") + b"\n")
        try:
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except BaseException:
            file.truncate(end)
            raise


def open_lines(path: Path) -> list[bytes]:
    """The lines of a file that `append_line` writes. Creates it, and cuts off what a killed process left of a line.

    Raises:
        AdtrError: the file cannot be written, or ends in something else than a part of an object in JSON.
    """
    with explained(path), hold_file(path):
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            if content[end : end + 1] != b"{":
                raise AdtrError(f"{path} holds something else than lines of JSON; choose another output")
            os.truncate(path, end)
    return content[:end].splitlines()


def check_disposable(path: Path, kind: str, *, needs: Collection[str], may_hold: Collection[str] = ()) -> None:
    """Fail before the work where `replace_folder` would fail, or would destroy what adtr has not written.

    Args:
        path: may be absent, or an empty folder, or one that holds what it needs and nothing but what it may hold.
        kind: what such a folder is, for the message.
        needs: names of files and folders.
        may_hold: more of them.

    Raises:
        AdtrError: it would.
    """
    with explained(path):
        resolved = path.resolve()
        if resolved == Path.cwd() or resolved.is_mount():
            what = "the current folder" if resolved == Path.cwd() else "a mount point"
            raise AdtrError(f"{path} is {what}, which cannot be replaced; choose a folder inside it")
        if path.is_dir():
            names = {entry.name for entry in path.iterdir()}
            if names and not names.issuperset(needs):
                raise AdtrError(f"{path} exists and is not {kind}; choose another output")
            if foreign := sorted(names.difference(needs, may_hold)):
                raise AdtrError(f"{path} holds {foreign[0]}, which is no part of {kind}; choose another output")
        elif path.exists():
            raise AdtrError(f"{path} is a file; choose another output")


def check_writable(folder: Path) -> None:
    """Fail before the work, not after it, where a folder cannot be made or written.

    Raises:
        AdtrError: it cannot.
    """
    with explained(folder):
        if folder.exists() and not folder.is_dir():
            raise AdtrError(f"{folder} is a file, not a folder; choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def explained(path: Path) -> Iterator[None]:
    """What the system says against writing, as one line about `path`.

    Raises:
        AdtrError: it said so.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not from the system, but from a bug
            raise
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "choose another output or make room" if is_full else "choose another output"
        raise AdtrError(f"cannot write {path}: {error.strerror}; {remedy}") from error


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe, which may never end, or a device.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # of a folder the system says so itself
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    data = bytearray()
    if status.st_size <= limit:
        with path.open("rb") as file:  # piece by piece: the whole limit at once would be asked of the memory
            while len(data) <= limit and (piece := file.read(1 << 24)):
                data += piece
    if max(status.st_size, len(data)) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return bytes(data)


def parse_json(text: str | bytes) -> Any:  # noqa: ANN401 - whatever it holds
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}.draft")


def _unless_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _if_there(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_CREAT)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_folder(folder: Path) -> None:
    """Let the names of new files outlive a failure of the power; not every disk can promise that."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # may be entered, not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(handle)


def _exchange(a: Path, b: Path) -> bool:
    """Let two folders swap names in one step; False where that cannot be done.

    Raises:
        OSError: it failed.
    """
    import ctypes

    at_cwd, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if renameat2 is None:
        return False
    if renameat2(at_cwd, os.fsencode(a), at_cwd, os.fsencode(b), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(b))


def _replace_in_two_steps(draft: Path, path: Path, old: Path) -> None:
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    try:
        draft.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _cut_part_of_a_line(file: io.FileIO) -> int:
    """Where the last whole line ends; what follows, the rest of a killed process, is cut off."""
    size = end = file.seek(0, os.SEEK_END)
    while end and (file.seek(end - 1), file.read(1))[1] != b"\n":
        end -= 1
    if end < size:
        file.truncate(end)
    return end

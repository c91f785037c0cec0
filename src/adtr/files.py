"""Writing files so that nobody ever sees half of one, and reading those that anybody may have made."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from adtr.errors import AdtrError


def replace_file(path: Path, data: bytes | str) -> None:
    """Write beside, then rename: `path` holds the old content or the new, never a part.

    Raises:
        AdtrError: the place cannot be written, or the disk is full.
    """
    payload = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """A new folder to fill; it takes the place of `path` when the block ends well, and vanishes when it does not.

    Raises:
        AdtrError: the place cannot be written, or the disk is full.
    """
    with _explained(path):
        path = path.resolve()  # a link's target is replaced, not the link
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield draft
            draft.chmod(0o777 & ~_umask())
            if path.exists():
                old = draft.with_name(f"{draft.name}.old")
                path.rename(old)
                try:
                    draft.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                shutil.rmtree(old, ignore_errors=True)
            else:
                draft.rename(path)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise


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
    with _explained(path):
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
    with _explained(folder):
        if folder.exists() and not folder.is_dir():
            raise AdtrError(f"{folder} is a file, not a folder; choose another output")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not from the system, but from a bug
            raise
        raise AdtrError(f"cannot write {path}: {error.strerror}; choose another output or make room") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a file of at most so many bytes.

    Raises:
        OSError: it cannot be read, is larger, or is a pipe, which may never end, or a device.
    """
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):  # of a folder the system says so itself
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    with path.open("rb") as file:
        data = file.read(limit + 1) if status.st_size <= limit else None
    if data is None or len(data) > limit:
        raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
    return data


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

"""Locks of the operating system: they end with the process that holds them, however it ends, and leave no file behind.

Where the system (Windows) or the disk (some network shares) has no such locks, nothing is locked.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from adtr.errors import AdtrError

if sys.platform != "win32":
    import fcntl

ATTEMPTS = 20
"""So often a folder is made anew that somebody removed before it could be locked."""


@contextlib.contextmanager
def hold_folder(folder: Path, *, output: Path | None = None) -> Iterator[None]:
    """Be the only one at work in a folder, which is made where it is missing, as long as the block runs.

    Args:
        folder: is locked.
        output: what is being written, for the message; by default the folder.

    Raises:
        AdtrError: another process is at work there.
        OSError: the folder cannot be made.
    """
    with _held(folder, None) as is_ours:
        if not is_ours:
            raise AdtrError(
                f"another process is writing {output or folder}; wait until it has ended, or choose another output"
            )
        yield


@contextlib.contextmanager
def hold_file(path: Path, *, create: bool = True) -> Iterator[None]:
    """Be the only one who writes a file, as long as the block runs; waits for whoever is writing it.

    Args:
        path: is locked.
        create: make it where it is missing.

    Raises:
        OSError: the file cannot be opened.
    """
    with _held(path, os.O_RDWR | (os.O_CREAT if create else 0)):
        yield


@contextlib.contextmanager
def _held(path: Path, flags: int | None) -> Iterator[bool]:
    """Whether the lock could be had of a folder, or (which always comes to pass) of a file to be opened with flags."""
    if sys.platform == "win32":
        if flags is None:
            path.mkdir(parents=True, exist_ok=True)
        yield True
        return
    for attempt in count():
        try:
            handle, is_ours = _lock(path, flags)
        except FileNotFoundError:
            if flags is not None or attempt == ATTEMPTS:
                raise
            continue  # its last holder removed the folder just now
        try:
            # Whoever held the lock before may have moved or removed what bore the name when it was opened.
            if not is_ours or _bears_name(handle, path):
                yield is_ours
                return
        finally:
            os.close(handle)


def _lock(path: Path, flags: int | None) -> tuple[int, bool]:
    if flags is None:
        path.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDONLY if flags is None else flags, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if flags is None else 0))
    except BlockingIOError:
        return handle, False
    except OSError:  # this disk knows no locks
        pass
    except BaseException:
        os.close(handle)
        raise
    return handle, True


def _bears_name(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False

"""Models that are looked after: replaced on disk, they are loaded anew; the old one answers until the new is ready."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adtr.errors import AdtrError, ConfigError, ModelError
from adtr.files import file_sha256
from adtr.predictor import Predictor
from adtr.store import METADATA

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
Load = Callable[[Path], Predictor]
Stamp = tuple[tuple[str, int, int, int], ...]

log = logging.getLogger("adtr.models")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory."""

    name: str
    path: Path
    detector: Predictor
    version: str
    """The first 12 hexadecimal digits of the SHA-256 of the model's metadata, or of its only file."""
    loaded_at: float
    """Seconds since 1970."""


class Models:
    """Named models.

    Args:
        paths: folder or file of each model by its name.
        load: makes a detector of a path.

    Raises:
        ModelError: one cannot be loaded.
    """

    def __init__(self, paths: Mapping[str, Path], load: Load) -> None:
        self._paths, self._load = dict(paths), load
        self._seen: dict[str, Stamp | None] = {name: _stamp(path) for name, path in paths.items()}
        self._tried = dict(self._seen)
        self._loaded = {name: self._read(name) for name in paths}

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(list(self._loaded.values()))

    def get(self, name: str) -> LoadedModel | None:
        """The newest of this name that is ready; None of an unknown name."""
        return self._loaded.get(name)

    def look(self) -> list[LoadedModel]:
        """Load anew what has changed on disk since it was loaded and has not changed since the last look.

        What cannot be loaded (copied half, altered) is logged once, and the old one stays.

        Returns:
            The models that were replaced.
        """
        replaced = []
        for name, path in self._paths.items():
            stamp = _stamp(path)
            settled, self._seen[name] = stamp == self._seen[name], stamp
            if not settled or stamp is None or stamp == self._tried[name]:
                continue
            self._tried[name] = stamp
            if self._replace(name):
                replaced.append(self._loaded[name])
        return replaced

    def look_after(self, stop: threading.Event, *, seconds: float = 1.0) -> None:
        """Look every so many seconds until told to stop."""
        while not stop.wait(seconds):
            try:
                self.look()
            except Exception:  # noqa: PERF203 - a bug must not end the looking
                log.exception("looking for new models failed")

    def _replace(self, name: str) -> bool:
        try:
            new = self._loaded[name] = self._read(name)
        except AdtrError as error:
            log.warning("model kept", extra={"fields": {"model": name, "error": str(error)}})
            return False
        log.info("model replaced", extra={"fields": {"model": name, "version": new.version}})
        return True

    def _read(self, name: str) -> LoadedModel:
        path = self._paths[name]
        detector = self._load(path)
        try:
            version = file_sha256(path / METADATA if path.is_dir() else path)[:12]
        except OSError as error:
            raise ModelError(f"the model {path} cannot be read: {error.strerror}") from error
        return LoadedModel(name=name, path=path, detector=detector, version=version, loaded_at=time.time())


def name_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Paths by name, of arguments `PATH` or `NAME=PATH`; a path's own name without its suffix is its name.

    Raises:
        ConfigError: a name that cannot stand in an address, or that two models have.
    """
    paths: dict[str, Path] = {}
    for argument in arguments:
        name, sign, rest = argument.partition("=")
        if sign and not Path(argument).exists():
            path = Path(rest)
        else:
            path = Path(argument)
            name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(path.resolve().name).stem).strip("-._") or "model"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name!r} cannot name a model; take up to 64 letters, digits, dots and dashes")
        if name in paths:
            raise ConfigError(f"two models are named {name}; give one another name: NAME={path}")
        paths[name] = path
    return paths


def _stamp(path: Path) -> Stamp | None:
    """What changes when a model is replaced or one of its files is written; None while there is none."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        stats = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return tuple((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)

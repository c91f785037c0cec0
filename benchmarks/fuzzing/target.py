"""What a target of a campaign is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeAlias


class Special(NamedTuple):
    """A file that is none: a link to somewhere, a folder, or a pipe."""

    kind: str
    to: str = ""


Files: TypeAlias = dict[str, bytes | Special]
"""Contents by name."""


class Target(ABC):
    """What reads hostile files."""

    name: str
    needs: tuple[str, ...] = ()
    """What must lie in the folder of whole models: of "model", "model.onnx" and "model.xml"."""
    allowed: tuple[str, ...] = ()
    """Audit events that are part of its work."""

    def open(self, folder: Path, out: Path) -> None:  # noqa: B027 - most start nothing
        """Start what is asked again and again.

        Args:
            folder: of whole models.
            out: may be written to.
        """

    @abstractmethod
    def make(self, rng: Random, folder: Path) -> Files:
        """An input; the same from the same random numbers."""

    @abstractmethod
    def run(self, case: Path, out: Path) -> None:
        """Give it to adtr, which may raise an `AdtrError`.

        Args:
            case: holds the files of the input.
            out: may be written to.
        """

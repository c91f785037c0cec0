"""`audit`: which of the good images may not be good, and which images are copies of each other."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.data.copies import Copies, Kind
from adtr.data.loading import SkippedImage


@dataclass(frozen=True, kw_only=True)
class AuditedImage:
    """One image that is held to be good."""

    source: object
    """What it was read from."""
    rank: int
    """1 for the most suspicious one."""
    score: float
    severity: float
    """Robust standard deviations above the typical image; see `Calibration.severity`."""
    score_map: NDArray[np.float32] = field(repr=False)
    """Where the suspicion comes from, on the token grid, (h, w)."""

    @property
    def name(self) -> str:
        """For people."""
        return str(self.source) if isinstance(self.source, str | os.PathLike) else "an image in memory"


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit found."""

    images: list[AuditedImage]
    """All that could be read, the most suspicious first."""
    copies: list[Copies]
    skipped: list[SkippedImage]
    seconds: float

    def count(self, kind: Kind) -> int:
        """Groups of copies of a kind."""
        return sum(copies.kind == kind for copies in self.copies)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "images": [
                {"path": image.name, "rank": image.rank, "score": image.score, "severity": image.severity}
                for image in self.images
            ],
            "copies": [copies.to_dict() for copies in self.copies],
            "skipped": [{"path": str(image.path), "reason": image.reason} for image in self.skipped],
            "seconds": self.seconds,
        }


def audit(
    images: object,
    *,
    preset: str = "quick",
    device: str = "auto",
    backbone_weights: str | os.PathLike[str] | None = None,
    on_error: OnError = "raise",
    progress: Progress | None = None,
    **overrides: Any,  # noqa: ANN401 - checked by Config.override
) -> Audit:
    """Rank good images by how little the others explain them, and find copies.
    """
    started = time.perf_counter()

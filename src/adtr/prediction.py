"""What the detector says of one image."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.calibration import Thresholds, Verdict, exceeds
from adtr.regions import Region, find_regions, label_regions
from adtr.settings import Size


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The verdict on one image."""

    score: float
    """Anomaly score of the image, at least 0, higher is more anomalous."""
    p_value: float
    """A good image's is at most a with probability at most a; see `Calibration.p_value`."""
    severity: float
    """Robust standard deviations above a typical good image, whatever the thresholds; see `Calibration.severity`."""
    thresholds: Thresholds
    """What decides."""
    size: Size
    """Height and width of the image, pixels."""
    score_map: NDArray[np.float32] = field(repr=False)
    """s(u) of Eq. 3 on the token grid, (h, w), or with a memory's details on a grid twice as fine."""
    path: Path | None = None
    """Where the image came from, if from a file."""

    @property
    def verdict(self) -> Verdict:
        """The decision: good, unsure or anomalous."""
        return self.thresholds.verdict(self.score)

    @property
    def is_anomalous(self) -> bool:
        """Whether the verdict is anomalous."""
        return self.verdict == "anomalous"

    @cached_property
    def anomaly_map(self) -> NDArray[np.float32]:
        """s(u) at the image's own height and width, (H, W) float32; made when first asked for."""
        return upsample(self.score_map, self.size)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Marked pixels, (H, W)."""
        return exceeds(self.anomaly_map, self.thresholds.pixel)

    @cached_property
    def region_labels(self) -> NDArray[np.int32]:
        """Which region each pixel belongs to, numbered from 1; 0 where it is not marked, (H, W)."""
        return label_regions(self.mask)

    @cached_property
    def regions(self) -> list[Region]:
        """Marked pixels as connected regions, the highest peak first."""
        if self.score_map.max() * (1 + 1e-5) <= self.thresholds.pixel:  # nor does the enlarged map exceed it, anywhere
            return []
        return find_regions(self.anomaly_map, self.region_labels)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the map, ready for JSON."""
        return {
            "score": self.score,
            "p_value": self.p_value,
            "severity": self.severity,
            "threshold": self.thresholds.image,
            "verdict": self.verdict,
            "is_anomalous": self.is_anomalous,
            "regions": [region.to_dict() for region in self.regions],
        }


def upsample(grid: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    """Bilinear interpolation of a map (h, w) to (H, W), pixel centres aligned as in torch's `align_corners=False`."""
    # Not as matrix products: NumPy's threads for those would take the cores from the network's.
    low, high, share = _neighbours(size[1], grid.shape[1])
    wide = grid[:, low] * (1 - share) + grid[:, high] * share
    low, high, share = _neighbours(size[0], grid.shape[0])
    enlarged = wide[low] * (1 - share)[:, None]
    enlarged += wide[high] * share[:, None]
    return enlarged


def _neighbours(target: int, source: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """The two nearest source positions of each target position, and the share of the second, 0..1."""
    position = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, source - 1), (position - low).astype(np.float32)

"""Decisions against the truth: false alarms and missed defects, with intervals, at any rate that can be promised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from adtr.calibration import Calibration, exceeds

CONFIDENCE = 0.95
POINTS = 100
"""Of a trade-off curve, at most."""


@dataclass(frozen=True, kw_only=True)
class Proportion:
    """So many of so many, and what that tells of the true share."""

    count: int
    total: int

    @property
    def rate(self) -> float | None:
        """The observed share; None of nothing."""
        return self.count / self.total if self.total else None

    @property
    def interval(self) -> tuple[float, float]:
        """The exact (Clopper-Pearson) 95 % confidence interval of the true share; (0, 1) of nothing."""
        from scipy.stats import binomtest

        if not self.total:
            return 0.0, 1.0
        bounds = binomtest(self.count, self.total).proportion_ci(CONFIDENCE, method="exact")
        return float(bounds.low), float(bounds.high)

    def describe(self) -> str:
        """The counts, the share and its interval for people."""
        if not self.total:
            return "0 of 0"
        low, high = self.interval
        return f"{self.count} of {self.total} ({self.rate:.1%}; 95 % interval {low:.1%} to {high:.1%})"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        low, high = self.interval
        return {**asdict(self), "rate": self.rate, "low": low, "high": high}


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What one threshold does to labelled images."""

    threshold: float
    promised_rate: float
    """Of false alarms, by the calibration."""
    false_alarms: Proportion
    """Of the good images, those above the threshold."""
    missed: Proportion
    """Of the anomalous images, those at or below the threshold."""
    missed_per_type: dict[str, Proportion]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "threshold": self.threshold,
            "promised_rate": self.promised_rate,
            "false_alarms": self.false_alarms.to_dict(),
            "missed": self.missed.to_dict(),
            "missed_per_type": {name: missed.to_dict() for name, missed in self.missed_per_type.items()},
        }


def decide(
    threshold: float, promised_rate: float, good: Sequence[float], anomalous: Sequence[float], types: Sequence[str]
) -> Decisions:
    """Count what a threshold does.

    Args:
        threshold: images that score above it are anomalous.
        promised_rate: what the calibration promises for it.
        good: scores of good images.
        anomalous: scores of anomalous images.
        types: their defect types.
    """
    missed = ~exceeds(np.asarray(anomalous, np.float64), threshold)
    per_type = {}
    for name in sorted(set(types)):
        of_type = np.array([other == name for other in types])
        per_type[name] = Proportion(count=int(missed[of_type].sum()), total=int(of_type.sum()))
    return Decisions(
        threshold=threshold,
        promised_rate=promised_rate,
        false_alarms=Proportion(count=int(exceeds(np.asarray(good, np.float64), threshold).sum()), total=len(good)),
        missed=Proportion(count=int(missed.sum()), total=len(anomalous)),
        missed_per_type=per_type,
    )


def trade_off(
    calibration: Calibration, good: Sequence[float], anomalous: Sequence[float], types: Sequence[str]
) -> list[Decisions]:
    """Decisions at rates up to one half that the calibration can promise, the lowest first, `POINTS` at most.

    Args:
        calibration: of the detector that gave the scores.
        good: scores of good images that the calibration did not use.
        anomalous: scores of anomalous images.
        types: their defect types.
    """
    most = (calibration.images + 1) // 2
    curve = []
    for alarms in np.unique(np.geomspace(1, most, min(most, POINTS)).round().astype(int)).tolist():
        thresholds = calibration.thresholds(alarms / (calibration.images + 1))
        curve.append(decide(thresholds.image, thresholds.promised_rate, good, anomalous, types))
    return curve

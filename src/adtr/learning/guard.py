"""The guard of ADTR+: a detector before and after, on images that neither learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.calibration import Calibration, exceeds

FEW = 4
"""Of a defect type with fewer images than this, none is held out."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a detector does on images that it did not learn from."""

    good: int
    false_alarms: int
    """Good images above the threshold that the other half of them sets: each half judges the other."""
    anomalies: int
    missed: int
    """Anomalies at or below the threshold that all good images set."""
    image_auroc: float | None
    """None where no anomaly was held out."""
    missed_by_type: dict[str, int]
    anomalies_by_type: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What a detector learned anomalies from, and what came of it."""

    sources: list[str]
    """Where the anomalies came from: "labelled", the synthetic kinds, "external"."""
    learned: dict[str, int]
    """Labelled images that were learned from, by defect type."""
    with_mask: int
    """How many of them had masks."""
    external: int
    """Images of the external data set."""
    before: Judgement
    after: Judgement
    hashes: list[str]
    """Contents of the labelled images that were learned from."""
    losses: list[float]
    seconds: float
    notes: list[str]
    """Remarks for people."""

    @property
    def is_worse_on_good(self) -> bool:
        """Whether more good images raise an alarm than before."""
        return self.after.false_alarms > self.before.false_alarms

    @property
    def is_better(self) -> bool:
        """Not worse on good images, and no more anomalies missed; by AUROC where both counts are the same."""
        before, after = self.before, self.after
        if self.is_worse_on_good or after.missed > before.missed:
            return False
        if (after.false_alarms, after.missed) == (before.false_alarms, before.missed):
            return (after.image_auroc or 0) >= (before.image_auroc or 0)
        return True

    def describe(self) -> list[str]:
        """Lines for people: a small table, and a plain word where the new detector is worse."""
        b, a = self.before, self.after
        rows = [("", "before", "after"), ("false alarms", f"{b.false_alarms}/{b.good}", f"{a.false_alarms}/{a.good}")]
        if b.anomalies:
            rows.append(("missed defects", f"{b.missed}/{b.anomalies}", f"{a.missed}/{a.anomalies}"))
            rows += [
                (f"  {name}", f"{b.missed_by_type[name]}/{count}", f"{a.missed_by_type[name]}/{count}")
                for name, count in b.anomalies_by_type.items()
            ]
            rows.append(("image AUROC", f"{b.image_auroc:.4f}", f"{a.image_auroc:.4f}"))
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{width}}  {before:>8}  {after:>8}" for name, before, after in rows]
        if not b.anomalies:
            lines.append(f"no labelled anomalies were held out (a type needs {FEW}), so missed defects are not known")
        if self.is_worse_on_good:
            lines.append("WORSE on good images: more of them raise an alarm than before")
        if a.missed > b.missed:
            lines.append("WORSE on the anomalies held out: more of them are missed than before")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def judge(
    scores: NDArray[np.floating],
    maps: NDArray[np.floating],
    anomaly_scores: NDArray[np.floating],
    types: Sequence[str],
    false_alarm_rate: float,
) -> Judgement:
    """Judge a detector by what it says of images that it did not learn from.

    Args:
        scores: of good images, (n,).
        maps: their score maps, (n, H, W).
        anomaly_scores: of anomalies, (m,); m may be 0.
        types: their defect types.
        false_alarm_rate: what the thresholds are asked for.
    """
    from sklearn.metrics import roc_auc_score

    halves = np.arange(len(scores)) % 2
    false_alarms = 0
    for half in (0, 1):
        judges, judged = halves != half, halves == half
        threshold = Calibration.of(scores[judges], maps[judges]).thresholds(false_alarm_rate).image
        false_alarms += int(exceeds(scores[judged], threshold).sum())
    threshold = Calibration.of(scores, maps).thresholds(false_alarm_rate).image
    missed = Counter(name for name, score in zip(types, anomaly_scores, strict=True) if not exceeds(score, threshold))
    counts = Counter(types)
    auroc = None
    if len(anomaly_scores):
        truth = np.repeat([0, 1], [len(scores), len(anomaly_scores)])
        auroc = float(roc_auc_score(truth, np.concatenate([scores, anomaly_scores]).astype(np.float64)))
    return Judgement(
        good=len(scores),
        false_alarms=false_alarms,
        anomalies=len(anomaly_scores),
        missed=missed.total(),
        image_auroc=auroc,
        missed_by_type={name: missed[name] for name in counts},
        anomalies_by_type=dict(counts),
    )

"""How well scores and maps find the anomalies: AUROC, AP and F1-max of images, AUROC, AP and AUPRO of pixels.

Everything is computed on raw scores; nothing is normalised or clamped, since that changes ranks. Images stream through
a `MetricsAccumulator`: of each it keeps one number, and adds its pixels to a histogram whose size does not grow with
the number of images.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

GOOD = "good"
MAX_BINS = 2**17  # 3.5 MB for each defect type
SIGN_BIT = np.uint32(1 << 31)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The metrics of one group of images: fractions in 0..1, None where they are not defined.

    Image metrics need good and anomalous images, pixel metrics need normal and anomalous pixels.

    Attributes:
        image_auroc: Area under the ROC curve of the image scores.
        image_ap: Average precision of the image scores, anomalous being the positive class.
        image_f1_max: The highest F1 that any threshold on the image scores reaches.
        pixel_auroc: Area under the ROC curve of the pixels of all maps together.
        pixel_ap: Average precision of the pixels of all maps together.
        aupro: Area under the per-region overlap as a function of the pixels' false positive rate, up to a rate of 0.3
            and divided by it (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021).
        images: How many images are in the group.
        anomalous: How many of them are anomalous.
    """

    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    images: int
    anomalous: int


@dataclass(frozen=True, kw_only=True)
class Metrics(Scores):
    """The metrics of a whole test set.

    Attributes:
        per_type: The metrics of each defect type, its images against all the good ones.
    """

    per_type: dict[str, Scores]

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries of plain numbers, ready for JSON."""
        return asdict(self)


class MetricsAccumulator:
    """Collects the scores and maps of a test set, image by image, in any order.

    Pixel scores are counted in bins of at most `MAX_BINS` per defect type. Up to that many distinct values the pixel
    metrics are exact; beyond it neighbouring values share a bin and count as ties, which moves them by some 1e-6.

    Args:
        aupro_limit: The false positive rate at which the integration of AUPRO ends, in (0, 1].

    Raises:
        ValueError: If `aupro_limit` is out of range.
    """

    def __init__(self, *, aupro_limit: float = 0.3) -> None:
        if not 0 < aupro_limit <= 1:
            raise ValueError(f"aupro_limit must be in (0, 1], not {aupro_limit}")
        self._aupro_limit = aupro_limit
        self._groups: dict[str, _Group] = {}

    def add(
        self,
        score: float,
        anomaly_map: NDArray[Any] | None,
        mask: NDArray[Any] | None,
        *,
        defect_type: str = GOOD,
    ) -> None:
        """Add one image.

        Args:
            score: The image's raw score; higher is more anomalous.
            anomaly_map: The raw pixel scores, shape (H, W), read as float32; None where only images are scored.
            mask: The truth, shape (H, W), nonzero where anomalous. None means all normal for a good image; for an
                anomalous one it means unknown, and its pixels are left out.
            defect_type: What is wrong with the image; "good" where nothing is.

        Raises:
            ValueError: If a score is not finite, a shape is wrong, or a good image has a mask that is not empty.
        """
        score = float(score)
        if not math.isfinite(score):
            raise ValueError(f"the image score is {score}, not a finite number")
        truth = None if mask is None else np.asarray(mask) != 0
        if defect_type == GOOD and truth is not None and truth.any():
            raise ValueError("an image of type 'good' has anomalous pixels in its mask")
        if anomaly_map is not None:
            pixels = np.asarray(anomaly_map, dtype=np.float32)
            if pixels.ndim != 2:
                raise ValueError(f"the anomaly map must have the shape (H, W), not {pixels.shape}")
            if truth is not None and truth.shape != pixels.shape:
                raise ValueError(f"the mask's shape {truth.shape} is not the anomaly map's {pixels.shape}")
            if not np.isfinite(pixels).all():
                raise ValueError("the anomaly map has values that are not finite float32 numbers")

        group = self._groups.setdefault(defect_type, _Group())
        group.scores.append(score)
        if anomaly_map is not None and (truth is not None or defect_type == GOOD):
            group.pixels.add(pixels, truth)

    def compute(self) -> Metrics:
        """The metrics of all the images added so far; more may be added afterwards."""
        good = self._groups.get(GOOD, _Group())
        types = {name: self._groups[name] for name in sorted(self._groups) if name != GOOD}
        return Metrics(
            **vars(self._scores(good, types.values())),
            per_type={name: self._scores(good, [group]) for name, group in types.items()},
        )

    def _scores(self, good: _Group, anomalous: Iterable[_Group]) -> Scores:
        anomalous = list(anomalous)
        positives = [score for group in anomalous for score in group.scores]
        image_auroc, image_ap, image_f1_max = _image_metrics(good.scores, positives)
        pixels = _Histogram()
        for group in (good, *anomalous):
            pixels.merge(group.pixels)
        pixel_auroc, pixel_ap, aupro = _pixel_metrics(pixels, self._aupro_limit)
        return Scores(
            image_auroc=image_auroc,
            image_ap=image_ap,
            image_f1_max=image_f1_max,
            pixel_auroc=pixel_auroc,
            pixel_ap=pixel_ap,
            aupro=aupro,
            images=len(good.scores) + len(positives),
            anomalous=len(positives),
        )


class _Histogram:
    """Pixels counted by their score, in sorted bins of which only the occupied are kept, never more than `MAX_BINS`.

    A bin is what is left of a float32's order-preserving bit pattern without its `shift` lowest bits. While the
    distinct values are few the shift is 0 and the histogram exact. When they become too many, one more bit is dropped,
    which merges pairs of bins; the relative width of a bin is then 2 ** (shift - 23), so the result depends neither on
    the scale of the scores nor on the order of the images.
    """

    def __init__(self) -> None:
        self.shift = 0
        self.bins: NDArray[np.uint32] = np.empty(0, np.uint32)
        # Rows: normal pixels, anomalous pixels, and the anomalous pixels each weighted by 1 / its region's area.
        self.counts: NDArray[np.float64] = np.empty((3, 0))

    def add(self, anomaly_map: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> None:
        """Count the pixels of one image; without a mask all are normal."""
        keys = _ordered_bits(anomaly_map) >> np.uint32(self.shift)
        bins, count = np.unique(keys, return_counts=True)
        counts = np.zeros((3, bins.size))
        counts[0] = count
        if mask is not None and mask.any():
            index = np.searchsorted(bins, keys[mask])
            counts[1] = np.bincount(index, minlength=bins.size)
            counts[2] = np.bincount(index, weights=_region_weights(mask), minlength=bins.size)
            counts[0] -= counts[1]
        self._insert(bins, counts, self.shift)

    def merge(self, other: _Histogram) -> None:
        """Count all that `other` has counted."""
        self._insert(other.bins, other.counts, other.shift)

    def _insert(self, bins: NDArray[np.uint32], counts: NDArray[np.float64], shift: int) -> None:
        """Add sorted bins that already lack their `shift` lowest bits."""
        self._coarsen(shift - self.shift)
        bins = np.concatenate([self.bins, bins >> np.uint32(self.shift - shift)])
        order = np.argsort(bins, kind="stable")  # merges two sorted runs in linear time
        self.bins, self.counts = _merge_equal(bins[order], np.concatenate([self.counts, counts], axis=1)[:, order])
        while self.bins.size > MAX_BINS:
            self._coarsen(1)

    def _coarsen(self, bits: int) -> None:
        if bits > 0:
            self.shift += bits
            self.bins, self.counts = _merge_equal(self.bins >> np.uint32(bits), self.counts)


@dataclass
class _Group:
    """The images of one defect type."""

    scores: list[float] = field(default_factory=list)
    pixels: _Histogram = field(default_factory=_Histogram)


def _ordered_bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the floats, equal where they are equal."""
    bits = (values + np.float32(0)).view(np.uint32)  # the sum turns -0.0 into 0.0
    return np.where(bits & SIGN_BIT, ~bits, bits | SIGN_BIT)


def _merge_equal(
    bins: NDArray[np.uint32], counts: NDArray[np.float64]
) -> tuple[NDArray[np.uint32], NDArray[np.float64]]:
    """Sorted bins without repetitions, and the sums of their counts."""
    if bins.size == 0:
        return bins, counts
    first = np.flatnonzero(np.concatenate([[True], bins[1:] != bins[:-1]]))
    return bins[first], np.add.reduceat(counts, first, axis=1)


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1 / area of its 8-connected region for each anomalous pixel, in the order of `scores[mask]`."""
    from scipy import ndimage

    labels = ndimage.label(mask, structure=np.ones((3, 3)))[0][mask]
    weights: NDArray[np.float64] = 1 / np.bincount(labels)[labels]
    return weights


def _image_metrics(good: list[float], anomalous: list[float]) -> tuple[float, float, float] | tuple[None, None, None]:
    """AUROC, AP and F1-max."""
    if not good or not anomalous:
        return None, None, None
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    labels = np.repeat([0, 1], [len(good), len(anomalous)])
    scores = np.array(good + anomalous)
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    return float(roc_auc_score(labels, scores)), float(average_precision_score(labels, scores)), float(f1.max())


def _pixel_metrics(pixels: _Histogram, aupro_limit: float) -> tuple[float, float, float] | tuple[None, None, None]:
    """AUROC, AP and AUPRO; the pixels of a bin count as ties."""
    # What lies above each threshold, from the highest threshold down; the first column is above them all.
    above = np.cumsum(np.pad(pixels.counts[:, ::-1], ((0, 0), (1, 0))), axis=1)
    normal, anomalous, regions = above[:, -1]
    if normal == 0 or anomalous == 0:
        return None, None, None
    false_positives, true_positives, overlap = above
    fpr, tpr, pro = false_positives / normal, true_positives / anomalous, overlap / regions

    precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
    inside = fpr <= aupro_limit
    limited_fpr = np.append(fpr[inside], aupro_limit)
    limited_pro = np.append(pro[inside], np.interp(aupro_limit, fpr, pro))
    return (
        _area(fpr, tpr),
        float(np.sum(np.diff(tpr) * precision)),
        _area(limited_fpr, limited_pro) / aupro_limit,
    )


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """The area under a curve by the trapezoidal rule."""
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)

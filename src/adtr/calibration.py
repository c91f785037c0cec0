"""Decisions with a promise: p-values and thresholds from good images that training never saw."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adtr.config import CalibrationConfig
from adtr.errors import ConfigError, DataError

ROUNDING = 1.001
"""Scores of one image differ a little between batches, machines and the feature cache; thresholds lie above that."""

Verdict = Literal["good", "unsure", "anomalous"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where good ends, and what that promises."""

    image: float
    """An image whose score exceeds this is anomalous."""
    pixel: float
    """A pixel whose anomaly-map value exceeds this is marked."""
    images: int
    """Good images that the thresholds come from."""
    false_alarm_rate: float
    """The rate asked for."""
    promised_rate: float
    """What `images` good images can promise: at least 1 / (images + 1)."""
    unsure: float | None = None
    """An image whose score exceeds this, but not `image`, is unsure; None where every verdict is sure."""
    unsure_rate: float = 0.0
    """The rate of good images above `unsure` that was asked for; 0 where every verdict is sure."""
    folds: int = 0
    """Number of networks that scored the good images, each some that it had not learned from; 0: held-out ones."""

    def verdict(self, score: float) -> Verdict:
        """The decision on an image."""
        if exceeds(score, self.image):
            return "anomalous"
        return "unsure" if self.unsure is not None and exceeds(score, self.unsure) else "good"

    def describe(self) -> str:
        """One sentence for people."""
        if self.folds:
            origin, promise = f"{self.images} good images in {self.folds} folds", "expects (no proof)"
        else:
            origin, promise = f"{self.images} held-out good images", "promises"
        text = f"threshold {self.image:.4g} from {origin}; {promise} a false-alarm rate of at most "
        text += f"{self.promised_rate:.3%}" if self.promised_rate < 0.001 else f"{self.promised_rate:.1%}"
        if self.false_alarm_rate == 0:
            text += " (no number of images promises 0)"
        elif self.promised_rate > self.false_alarm_rate + 1e-12:
            needed = math.ceil(1 / self.false_alarm_rate - 1e-9) - 1
            text += f" (for {self.false_alarm_rate:.1%} hold out at least {needed})"
        if self.unsure is not None:
            text += f"; unsure above {self.unsure:.4g} ({self.unsure_rate:.1%})"
        return text


def exceeds(values: NDArray[np.floating] | float, threshold: float) -> NDArray[np.bool_]:
    """The one decision rule of images and pixels: strictly above the threshold is anomalous."""
    return np.asarray(values) > threshold


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scores of good images by a network that did not learn from them: what every promise rests on.

    Split conformal prediction: among n such images and a new good one, exchangeable with them, each rank of the new
    one is equally likely.
    """

    image_scores: tuple[float, ...]
    """Ascending, (n,)."""
    pixel_maxima: tuple[float, ...]
    """Maxima of the images' anomaly maps, ascending, (n,)."""
    folds: int = 0
    """See `Thresholds.folds`."""

    def __post_init__(self) -> None:
        if not self.image_scores or len(self.image_scores) != len(self.pixel_maxima):
            raise ValueError("a calibration needs one score and one map's maximum of each good image")

    @classmethod
    def of(cls, scores: NDArray[np.floating], maps: NDArray[np.floating], *, folds: int = 0) -> Calibration:
        """From image scores (n,) and score maps (n, H, W), raised by a margin for rounding."""
        return cls(
            image_scores=tuple(np.sort(scores * ROUNDING).tolist()),
            pixel_maxima=tuple(np.sort(maps.max(axis=(1, 2)) * ROUNDING).tolist()),
            folds=folds,
        )

    @property
    def images(self) -> int:
        """n, the number of good images."""
        return len(self.image_scores)

    @property
    def lowest_rate(self) -> float:
        """The lowest false-alarm rate that n images can promise, 1 / (n + 1)."""
        return 1 / (self.images + 1)

    def p_value(self, score: float) -> float:
        """How unusual a score is: a good image gets a p-value of at most a with probability at most a.

        Returns:
            (1 + number of the n scores that are at least as high) / (n + 1), from 1 / (n + 1) to 1.
        """
        return (1 + self.images - bisect_left(self.image_scores, score)) / (self.images + 1)

    def severity(self, score: float) -> float:
        """How far a score lies above a typical good one, in robust standard deviations of good scores; at least 0.

        It depends on no rate and no threshold: median and median absolute deviation (times 1.4826) of the n scores.
        """
        center, spread = self._typical
        return max(0.0, (score - center) / spread)

    @cached_property
    def _typical(self) -> tuple[float, float]:
        center = median(self.image_scores)
        deviation = 1.4826 * median(abs(score - center) for score in self.image_scores)
        return center, max(deviation, 1e-3 * abs(center), 1e-12)  # equal scores have no spread of their own

    def thresholds(self, false_alarm_rate: float, unsure_rate: float = 0.0) -> Thresholds:
        """Thresholds that good images exceed with at most the asked rate.

        The new one of n + 1 exchangeable scores ranks above the k-th smallest of the others with probability at most
        1 - k / (n + 1). So the threshold is the k-th smallest with k = ceil((1 - rate) (n + 1)), or the largest when n
        is too small for the rate; what n can promise is kept beside what was asked. A score exceeds the threshold
        just where its p-value is at most the promised rate.

        Args:
            false_alarm_rate: from 0 to 0.5; of pixels it is the share of good images with any marked pixel.
            unsure_rate: share of good images above the lower threshold, from which a verdict is unsure; 0: none.
        """
        k = self._rank(false_alarm_rate)
        return Thresholds(
            image=self.image_scores[k - 1],
            pixel=self.pixel_maxima[k - 1],
            images=self.images,
            false_alarm_rate=false_alarm_rate,
            promised_rate=1 - k / (self.images + 1),
            unsure=self.image_scores[self._rank(unsure_rate) - 1] if unsure_rate else None,
            unsure_rate=unsure_rate,
            folds=self.folds,
        )

    def _rank(self, rate: float) -> int:
        return min(self.images, max(1, math.ceil((1 - rate) * (self.images + 1) - 1e-9)))


def split_holdout(
    images: int, config: CalibrationConfig, seed: int, chosen: Sequence[int] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the good images train the network and which set the thresholds: two sorted arrays of indices.

    With folds, all of them do both.

    Args:
        images: their number.
        config: how many are drawn.
        seed: of the draw.
        chosen: indices of those that set the thresholds, where somebody chose them; None: they are drawn.

    Raises:
        DataError: too few images.
        ConfigError: some are chosen, but folds hold nothing out.
    """
    if chosen is not None:
        if config.folds:
            raise ConfigError(
                f"{config.folds} folds hold nothing out, but {len(chosen)} images are given to be held out; leave "
                "--folds away, or --held-out and validation/good"
            )
        if not chosen or images - len(chosen) < 2:
            raise DataError(
                f"{images - len(chosen)} good images to train on and {len(chosen)} held-out ones are too few; at "
                "least 2 and 1 are needed"
            )
        return np.delete(np.arange(images), chosen), np.sort(chosen)
    if config.folds:
        if images < max(3, config.folds):
            raise DataError(f"{images} good images are too few for {config.folds} folds; add images or lower --folds")
        return np.arange(images), np.arange(images)
    held = max(config.holdout_min, round(config.holdout * images))
    if images - held < 2:
        raise DataError(
            f"{images} good images are too few: {held} are held out for the threshold (holdout_min "
            f"{config.holdout_min}) and at least 2 must be left to train on; add images, lower --holdout-min, or "
            "let --folds make each image serve both"
        )
    order = np.random.default_rng(seed).permutation(images)
    return np.sort(order[held:]), np.sort(order[:held])

"""Decision thresholds, from good images that training never saw."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adtr.config import CalibrationConfig
from adtr.errors import DataError

ROUNDING = 1.001
"""Scores of one image differ a little between batches, machines and the feature cache; thresholds lie above that."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Where good ends, and what that promises."""

    image: float
    """An image whose score exceeds this is anomalous."""
    pixel: float
    """A pixel whose anomaly-map value exceeds this is marked."""
    images: int
    """Good images held out to find the thresholds."""
    false_alarm_rate: float
    """The rate asked for."""
    promised_rate: float
    """What `images` held-out images can promise: at least 1 / (images + 1)."""

    def describe(self) -> str:
        """One sentence for people."""
        text = (
            f"threshold {self.image:.4g} from {self.images} held-out good images; "
            f"promises a false-alarm rate of at most {self.promised_rate:.1%}"
        )
        if self.false_alarm_rate == 0:
            text += " (no number of images promises 0)"
        elif self.promised_rate > self.false_alarm_rate + 1e-12:
            needed = math.ceil(1 / self.false_alarm_rate - 1e-9) - 1
            text += f" (for {self.false_alarm_rate:.1%} hold out at least {needed})"
        return text


def exceeds(values: NDArray[np.floating] | float, threshold: float) -> NDArray[np.bool_]:
    """The one decision rule of images and pixels: strictly above the threshold is anomalous."""
    return np.asarray(values) > threshold


def split_holdout(images: int, config: CalibrationConfig, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which of the good images train the network and which set the thresholds: two sorted arrays of indices.

    Raises:
        DataError: too few images.
    """
    held = max(config.holdout_min, round(config.holdout * images))
    if images - held < 2:
        raise DataError(
            f"{images} good images are too few: {held} are held out for the threshold (holdout_min "
            f"{config.holdout_min}) and at least 2 must be left to train on; add images or lower --holdout-min"
        )
    order = np.random.default_rng(seed).permutation(images)
    return np.sort(order[held:]), np.sort(order[:held])


def calibrate(
    image_scores: NDArray[np.floating], pixel_maxima: NDArray[np.floating], false_alarm_rate: float
) -> Thresholds:
    """Thresholds that good images exceed with at most the asked rate (split conformal prediction).

    Of n exchangeable good scores and one more, the new one ranks above the k-th smallest with probability at most
    1 - k / (n + 1). So the threshold is the k-th smallest with k = ceil((1 - rate) (n + 1)), or the largest when n is
    too small for the rate; what n can promise is kept beside what was asked.

    Args:
        image_scores: scores of the held-out images, (n,).
        pixel_maxima: maxima of their anomaly maps, (n,): the rate of pixels is the share of good images with any
            marked pixel.
        false_alarm_rate: from 0 to 0.5.
    """
    n = len(image_scores)
    k = min(n, math.ceil((1 - false_alarm_rate) * (n + 1) - 1e-9))
    return Thresholds(
        image=float(np.sort(image_scores)[k - 1]),
        pixel=float(np.sort(pixel_maxima)[k - 1]),
        images=n,
        false_alarm_rate=false_alarm_rate,
        promised_rate=1 - k / (n + 1),
    )


def calibrate_detector(
    image_scores: NDArray[np.floating], score_maps: NDArray[np.floating], false_alarm_rate: float
) -> Thresholds:
    """`calibrate` on held-out images' scores (n,) and maps (n, H, W), with a margin for rounding."""
    return calibrate(image_scores * ROUNDING, score_maps.max(axis=(1, 2)) * ROUNDING, false_alarm_rate)

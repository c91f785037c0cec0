"""One image of a data set beside its verdict."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from adtr.data.folder import Sample
from adtr.data.images import read_mask
from adtr.metrics import MetricsAccumulator
from adtr.prediction import Prediction

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One image of a data set with its verdict."""

    sample: Sample
    prediction: Prediction
    image: Image.Image | None = None
    """The image itself, where it was asked for."""

    def truth(self) -> NDArray[np.bool_] | None:
        """Anomalous pixels, (H, W); none are in a good image; None where nobody marked them."""
        if not self.sample.is_anomalous:
            return np.zeros(self.prediction.size, np.bool_)
        return None if self.sample.mask is None else read_mask(self.sample.mask, self.prediction.size)


def labelled_scores(judged: Iterable[tuple[Sample, float]]) -> tuple[list[float], list[float], list[str]]:
    """Scores of the good images, scores of the anomalous ones and their types, as `adtr.decisions` takes them."""
    good: list[float] = []
    anomalous: list[float] = []
    types: list[str] = []
    for sample, score in judged:
        if sample.is_anomalous:
            anomalous.append(score)
            types.append(sample.defect_type)
        else:
            good.append(score)
    return good, anomalous, types


def add_to_metrics(accumulator: MetricsAccumulator, item: Evaluated) -> None:
    """Let one evaluated image count."""
    accumulator.add(
        item.prediction.score,
        item.prediction.anomaly_map,
        item.truth() if item.sample.is_anomalous else None,
        defect_type=item.sample.defect_type,
    )

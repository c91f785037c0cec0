"""How far an exported graph is from the detector that it was made of, on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.data.folder import Sample
from adtr.deploy.exported import Runtime
from adtr.evaluation import Evaluated, add_to_metrics
from adtr.metrics import MetricsAccumulator
from adtr.prediction import Prediction
from adtr.predictor import Predictor
from adtr.progress import Progress, Silent

OUTPUTS = ("score", "is_anomalous", "anomaly_map")


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between an exported graph, which got the raw images, and a detector."""

    images: int
    score_max: float
    """Largest difference of an image score, as a share of the detector's image threshold."""
    score_mean: float
    """Mean difference, likewise."""
    map_max: float
    """Largest difference of a value of the anomaly maps, as a share of the detector's pixel threshold."""
    map_mean: float
    """Mean difference, likewise."""
    flipped: int
    """Images that one calls anomalous and the other does not, each by its own threshold."""
    image_auroc_change: float | None = None
    """The graph's minus the detector's; None where no labels were given."""
    pixel_auroc_change: float | None = None
    """Likewise."""

    @property
    def worst(self) -> float:
        """The larger of both largest differences."""
        return max(self.score_max, self.map_max)

    def describe(self) -> str:
        """One sentence for people."""
        text = (
            f"{self.images} images: scores differ by at most {self.score_max:.2g} of the threshold (mean "
            f"{self.score_mean:.2g}), maps by {self.map_max:.2g} (mean {self.map_mean:.2g}), "
            f"{self.flipped} decisions flipped"
        )
        changes = {"image": self.image_auroc_change, "pixel": self.pixel_auroc_change}
        return text + "".join(f", {name} AUROC {x:+.5f}" for name, x in changes.items() if x is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def measure(
    runtime: Runtime,
    references: Mapping[str, Predictor],
    sources: Sequence[object],
    samples: Sequence[Sample] = (),
    *,
    progress: Progress | None = None,
) -> dict[str, Parity]:
    """Run the graph on raw images, and detectors beside it.

    Args:
        runtime: of the graph, which decides by the thresholds that it will be written with.
        references: detectors by name.
        sources: images in any form that `read_image` accepts.
        samples: labelled images, which count too, and tell the change of AUROC.
        progress: told of every image.

    Returns:
        The differences from each of the detectors.
    """
    progress = progress or Silent()
    every: list[object] = [*sources, *(sample.path for sample in samples)]
    progress.start("comparing", total=len(every))
    comparisons = {name: _Comparison(reference) for name, reference in references.items()}
    streams = [reference.stream(every, batch_size=1, keep_images=True) for reference in references.values()]
    for i, items in enumerate(zip(*streams, strict=True)):
        image = items[0][1].image
        assert image is not None
        score, is_anomalous, anomaly_map = (output[0] for output in runtime(np.asarray(image)[None], OUTPUTS))
        for comparison, (prediction, _) in zip(comparisons.values(), items, strict=True):
            sample = samples[i - len(sources)] if i >= len(sources) else None
            comparison.add(prediction, float(score), bool(is_anomalous), anomaly_map, sample)
        progress.advance(1)
    progress.finish()
    return {name: comparison.result() for name, comparison in comparisons.items()}


class _Comparison:
    """Gathers the differences from one detector."""

    def __init__(self, reference: Predictor) -> None:
        self._thresholds = reference.thresholds_
        self._scores: list[float] = []
        self._maps: list[tuple[float, float]] = []
        self._flipped = 0
        self._metrics = MetricsAccumulator(), MetricsAccumulator()

    def add(
        self,
        prediction: Prediction,
        score: float,
        is_anomalous: bool,
        anomaly_map: NDArray[np.float32],
        sample: Sample | None,
    ) -> None:
        """One image."""
        self._scores.append(abs(score - prediction.score))
        difference = np.abs(anomaly_map - prediction.anomaly_map)
        self._maps.append((float(difference.max()), float(difference.mean())))
        self._flipped += is_anomalous != prediction.is_anomalous
        if sample is not None:
            item = Evaluated(sample=sample, prediction=prediction)
            add_to_metrics(self._metrics[0], item)
            truth = item.truth() if sample.is_anomalous else None
            self._metrics[1].add(score, anomaly_map, truth, defect_type=sample.defect_type)

    def result(self) -> Parity:
        """The differences so far."""
        before, after = (metrics.compute() for metrics in self._metrics)
        return Parity(
            images=len(self._scores),
            score_max=max(self._scores) / self._thresholds.image,
            score_mean=float(np.mean(self._scores)) / self._thresholds.image,
            map_max=max(largest for largest, _ in self._maps) / self._thresholds.pixel,
            map_mean=float(np.mean([mean for _, mean in self._maps])) / self._thresholds.pixel,
            flipped=self._flipped,
            image_auroc_change=_change(before.image_auroc, after.image_auroc),
            pixel_auroc_change=_change(before.pixel_auroc, after.pixel_auroc),
        )


def _change(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before

"""What a report tells: every test image judged once, and the few that are worth a look read once more."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from adtr.calibration import Calibration, Thresholds, Verdict
from adtr.config import Config
from adtr.data.folder import Dataset, open_dataset
from adtr.data.images import read_mask
from adtr.data.loading import SkippedImage
from adtr.decisions import Decisions, decide, trade_off
from adtr.errors import OnError
from adtr.evaluation import add_to_metrics, labelled_scores
from adtr.metrics import GOOD, Metrics, MetricsAccumulator
from adtr.predictor import Predictor
from adtr.progress import Progress, Silent
from adtr.report.pictures import shown_range, tiles

if TYPE_CHECKING:
    from PIL import Image

    from adtr.data.folder import Sample

TYPICAL = 2
"""Images of each type that stand for it."""
HEIGHT = 240
"""Of a picture, pixels."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One test image, and what the detector says of it."""

    sample: Sample
    score: float
    p_value: float
    severity: float
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A test image that the report shows."""

    judged: Judged
    pictures: dict[str, bytes]
    """JPEG files by what they show: image, truth (where somebody marked it), anomaly map, marked."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that a report tells."""

    root: Path
    """The data set's folder."""
    images: list[Judged]
    """In the order of the data set."""
    metrics: Metrics
    decisions: Decisions
    """At the detector's threshold."""
    trade_off: list[Decisions]
    """At the rates that can be promised."""
    calibration: Calibration
    thresholds: Thresholds
    skipped: list[SkippedImage]
    left_out: int
    """Test images that the detector learned from."""
    false_alarms: list[Shown]
    """Good images above the threshold, the highest score first."""
    misses: list[Shown]
    """Anomalous images at or below the threshold, the lowest score first."""
    typical: dict[str, list[Shown]]
    """Of each type those with scores nearest its median, "good" first."""
    config: Config
    metadata: dict[str, Any]
    """Of the detector."""

    @property
    def good(self) -> list[Judged]:
        """The good test images."""
        return [image for image in self.images if not image.sample.is_anomalous]

    @property
    def anomalous(self) -> list[Judged]:
        """The anomalous test images."""
        return [image for image in self.images if image.sample.is_anomalous]

    def name(self, path: Path) -> str:
        """A file as the report names it: below the data set's folder, with forward slashes."""
        return (path.relative_to(self.root) if path.is_relative_to(self.root) else path).as_posix()


def gather(
    detector: Predictor,
    data: Dataset | str | os.PathLike[str],
    *,
    panels: int = 12,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> Findings:
    """Judge the test images of a data set. Of each only a few numbers are kept, whatever the size of the images.

    Args:
        detector: fitted; it decides by its own rates.
        data: a data set or its folder.
        panels: of the false alarms, and of the misses, that are shown at most; 0 shows no image at all.
        on_error: "raise" stops at an unreadable image; "skip" names it in the report and goes on.
        progress: is told of every image.

    Raises:
        DataError: no test images, an unreadable image, or a mask of another size than its image.
    """
    dataset = data if isinstance(data, Dataset) else open_dataset(data, reserve=False)
    accumulator = MetricsAccumulator()
    images: list[Judged] = []
    with closing(detector.evaluate_each(dataset, on_error=on_error, progress=progress)) as items:
        for item in items:
            add_to_metrics(accumulator, item)
            prediction = item.prediction
            images.append(
                Judged(
                    sample=item.sample,
                    score=prediction.score,
                    p_value=prediction.p_value,
                    severity=prediction.severity,
                    verdict=prediction.verdict,
                )
            )
    skipped = detector.skipped_
    anomalous = [image for image in images if image.sample.is_anomalous]
    scores = labelled_scores((image.sample, image.score) for image in images)
    thresholds, calibration = detector.thresholds_, detector.calibration_

    alarms = [image for image in images if not image.sample.is_anomalous and image.verdict == "anomalous"]
    misses = [image for image in anomalous if image.verdict != "anomalous"]
    alarms = sorted(alarms, key=lambda image: -image.score)[:panels]
    misses = sorted(misses, key=lambda image: image.score)[:panels]
    typical = _typical(images, min(TYPICAL, panels))
    chosen = [*alarms, *misses, *(image for several in typical.values() for image in several)]
    pictures = _pictures(detector, chosen, progress or Silent())

    def show(several: Sequence[Judged]) -> list[Shown]:
        return [Shown(judged=image, pictures=pictures[image.sample.path]) for image in several]

    return Findings(
        root=dataset.root,
        images=images,
        metrics=accumulator.compute(),
        decisions=decide(thresholds.image, thresholds.promised_rate, *scores),
        trade_off=trade_off(calibration, *scores),
        calibration=calibration,
        thresholds=thresholds,
        skipped=skipped,
        left_out=len(dataset.test) - len(images) - len(skipped),
        false_alarms=show(alarms),
        misses=show(misses),
        typical={name: show(several) for name, several in typical.items()},
        config=detector.fitted_config_,
        metadata=detector.metadata_,
    )


def _typical(images: Sequence[Judged], count: int) -> dict[str, list[Judged]]:
    """Of each type the images nearest its median score, "good" first."""
    types = sorted({image.sample.defect_type for image in images}, key=lambda name: (name != GOOD, name))
    nearest = {}
    for name in types:
        of_type = [image for image in images if image.sample.defect_type == name]
        middle = median(image.score for image in of_type)
        nearest[name] = sorted(of_type, key=lambda image: abs(image.score - middle))[:count]
    return nearest


def _pictures(detector: Predictor, images: Sequence[Judged], progress: Progress) -> dict[Path, dict[str, bytes]]:
    """Pictures by the path of their image; the images are read once more, each once."""
    samples = list({image.sample.path: image.sample for image in images}.values())
    if not samples:
        return {}
    progress.start("pictures", total=len(samples))
    pictures = {}
    for prediction, loaded in detector.stream([s.path for s in samples], keep_images=True, progress=progress):
        assert loaded.image is not None
        sample = samples[loaded.index]
        low, high = shown_range(prediction.thresholds.pixel)
        of_image = tiles(
            loaded.image,
            prediction.anomaly_map,
            truth=None if sample.mask is None else read_mask(sample.mask, prediction.size),
            low=low,
            high=high,
            threshold=prediction.thresholds.pixel,
            height=HEIGHT,
        )
        pictures[sample.path] = {name: _jpeg(picture) for name, picture in of_image.items() if picture is not None}
    progress.finish()
    return pictures


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()

"""What every detector does with images, however its network runs: predict and evaluate."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.calibration import Calibration, Thresholds
from adtr.config import Config
from adtr.data.datasets import DatasetImages, is_dataset
from adtr.data.folder import GOOD, Dataset, Sample, content_hash, open_dataset
from adtr.data.loading import LoadedImage, SkippedImage, load_images
from adtr.data.sources import as_sources, in_batches, loaded_hash
from adtr.errors import ConfigError, DataError, ModelError, OnError, memory_for
from adtr.evaluation import Evaluated, add_to_metrics
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.prediction import Prediction
from adtr.progress import Progress, Silent


class Predictor(ABC):
    """A fitted detector: scores become verdicts.

    Attributes:
        fitted_config_: the configuration of what was learned.
        calibration_: scores of good images that no training saw.
        thresholds_: decision thresholds, in the units of the scores.
        metadata_: versions, data, training record.
        skipped_: images that could not be read in the latest call.
    """

    fitted_config_: Config
    calibration_: Calibration
    thresholds_: Thresholds
    metadata_: dict[str, Any]
    skipped_: list[SkippedImage]

    @abstractmethod
    def _compare(self, batch: Sequence[LoadedImage]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Image scores (B,) and score maps (B, h, w) of loaded images."""

    @abstractmethod
    def _require_fitted(self) -> None:
        """Raise an `AdtrError` where there is nothing to predict with."""

    # Deciding.

    def set_rates(self, false_alarm_rate: float | None = None, unsure_rate: float | None = None) -> Thresholds:
        """Decide from now on by other rates; nothing is trained again.

        Args:
            false_alarm_rate: share of good images that may be called anomalous, 0 to 0.5; None leaves it as it is.
            unsure_rate: share of good images that may be called unsure or anomalous; 0 makes every verdict sure.

        Returns:
            The new thresholds, which tell what the calibration can promise.

        Raises:
            ConfigError: a rate is out of range, or `unsure_rate` is not above `false_alarm_rate`.
        """
        self._require_fitted()
        given = {"false_alarm_rate": false_alarm_rate, "unsure_rate": unsure_rate}
        given = {name: rate for name, rate in given.items() if rate is not None}
        self.fitted_config_ = self.fitted_config_.override(**given)
        rates = self.fitted_config_.calibration
        self.thresholds_ = self.calibration_.thresholds(rates.false_alarm_rate, rates.unsure_rate)
        return self.thresholds_

    # Predicting.

    def predict(
        self, images: object, *, on_error: OnError = "raise", batch_size: int = 16, progress: Progress | None = None
    ) -> list[Prediction]:
        """The verdict on each image, in order.

        Args:
            images: a folder (searched through), or paths, PIL images, uint8 arrays (H, W, 3) or tensors, one or many;
                or a table of `datasets`.
            on_error: "raise" stops at an unreadable image; "skip" names it in `skipped_` and goes on.
            batch_size: images in a forward pass; the verdicts do not depend on it.
            progress: is told of every image.

        Raises:
            DataError: nothing to predict, or an unreadable image.
        """
        sources = as_sources(images)
        return [p for p, _ in self.stream(sources, on_error=on_error, batch_size=batch_size, progress=progress)]

    def stream(
        self,
        sources: Iterable[object],
        *,
        on_error: OnError = "raise",
        batch_size: int = 16,
        keep_images: bool = False,
        progress: Progress | None = None,
    ) -> Generator[tuple[Prediction, LoadedImage], None, None]:
        """Verdicts as they come, with bounded memory, for any number of images; see `predict`.

        Yields:
            The prediction, and what was loaded (`index` among the sources; with `keep_images` the image too).
        """
        self._require_fitted()
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        progress = progress or Silent()
        self.skipped_ = []
        loaded = load_images(
            sources,
            self.fitted_config_.embedding.image_size,
            on_error=on_error,
            skipped=self.skipped_,
            keep_original=keep_images,
            prefetch=max(8, 2 * batch_size),
        )
        lower = "take a smaller --batch-size, or smaller images"
        with closing(loaded), memory_for(f"{batch_size} images at a time", lower=lower):
            for batch in in_batches(loaded, batch_size):
                yield from zip(self._verdicts(batch), batch, strict=True)
                progress.advance(len(batch))

    def judge(self, batch: Sequence[LoadedImage]) -> list[Prediction]:
        """The verdicts on images that are loaded already, in one forward pass; may be called by several threads."""
        return list(self._verdicts(batch))

    def _verdicts(self, batch: Sequence[LoadedImage]) -> Iterator[Prediction]:
        """One by one, so that a large anomaly map that was looked at can be let go before the next."""
        scores, maps = self._compare(batch)
        if not (np.isfinite(scores).all() and np.isfinite(maps).all()):  # no threshold is below what is no number
            raise ModelError("the model's scores are no finite numbers: its weights are broken; fit it anew")
        for image, score, score_map in zip(batch, scores.tolist(), maps, strict=True):
            yield Prediction(
                score=score,
                p_value=self.calibration_.p_value(score),
                severity=self.calibration_.severity(score),
                thresholds=self.thresholds_,
                size=image.size,
                score_map=score_map,
                path=image.path,
            )

    def score_samples(self, images: object) -> NDArray[np.float64]:
        """The negated anomaly scores, (n,): the lower, the more anomalous (scikit-learn's convention)."""
        return np.array([-prediction.score for prediction, _ in self.stream(as_sources(images))], np.float64)

    def decision_function(self, images: object) -> NDArray[np.float64]:
        """Threshold minus score, (n,): negative for anomalies (scikit-learn's convention)."""
        return self.score_samples(images) + self.thresholds_.image

    # Evaluating.

    def evaluate(
        self,
        dataset: Dataset | str | os.PathLike[str] | Any,  # noqa: ANN401 - a `datasets.Dataset` is not known here
        *,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> Metrics:
        """Metrics on a data set's test images; images that the detector learned from are left out.

        Args:
            dataset: a folder, or a table of `datasets` with a column of labels (see `adtr.data.datasets`).
            on_error: "raise" stops at an unreadable image; "skip" names it in `skipped_` and goes on.
            progress: is told of every image.

        Raises:
            DataError: no test images, an unreadable image, or a mask of another size than its image.
        """
        if is_dataset(dataset):
            return self._evaluate_rows(DatasetImages(dataset, "test"), on_error=on_error, progress=progress)
        accumulator = MetricsAccumulator()
        with closing(self.evaluate_each(dataset, on_error=on_error, progress=progress)) as items:
            for item in items:
                add_to_metrics(accumulator, item)
        return accumulator.compute()

    def _evaluate_rows(self, images: DatasetImages, *, on_error: OnError, progress: Progress | None) -> Metrics:
        types = images.types()
        good, anomalous = self.learned_hashes()
        accumulator, judged = MetricsAccumulator(), 0
        progress = progress or Silent()
        progress.start("evaluating", total=len(types))
        with closing(self.stream(images, on_error=on_error, progress=progress)) as stream:
            for prediction, loaded in stream:
                kind = types[loaded.index]
                if kind is None or loaded_hash(loaded) in (good if kind == GOOD else anomalous):
                    continue
                truth = None if kind == GOOD else images.truth(loaded.index, prediction.size)
                accumulator.add(prediction.score, prediction.anomaly_map, truth, defect_type=kind)
                judged += 1
        progress.finish()
        if not judged:
            raise DataError("no labelled test images in the data set (images that the model learned from do not count)")
        return accumulator.compute()

    def evaluate_each(
        self,
        dataset: Dataset | str | os.PathLike[str],
        *,
        on_error: OnError = "raise",
        keep_images: bool = False,
        progress: Progress | None = None,
    ) -> Generator[Evaluated, None, None]:
        """The test images of a data set one by one with their verdicts; see `evaluate`."""
        self._require_fitted()
        samples = self.test_samples(dataset)
        progress = progress or Silent()
        progress.start("evaluating", total=len(samples))
        stream = self.stream(
            [sample.path for sample in samples], on_error=on_error, keep_images=keep_images, progress=progress
        )
        with closing(stream):
            for prediction, loaded in stream:
                yield Evaluated(sample=samples[loaded.index], prediction=prediction, image=loaded.image)
        progress.finish()

    def test_samples(self, dataset: Dataset | str | os.PathLike[str]) -> list[Sample]:
        """The test images of a data set without those that the detector learned from, found by their contents.

        Raises:
            DataError: none.
        """
        self._require_fitted()
        if not isinstance(dataset, Dataset):
            dataset = open_dataset(dataset, reserve=False)
        good, anomalous = self.learned_hashes()
        samples = [
            sample
            for sample in dataset.test
            if not (learned := anomalous if sample.is_anomalous else good)
            or not sample.path.is_file()
            or content_hash(sample.path) not in learned
        ]
        if not samples:
            raise DataError(
                f"no test images in {dataset.root}: expected test/<type>/, or defect folders beside good/ "
                "(images that the model learned from do not count)"
            )
        return samples

    def learned_hashes(self) -> tuple[set[str], set[str]]:
        """Contents of the good images, and of the anomalous ones, that the detector learned from."""
        self._require_fitted()
        data = self.metadata_["data"]
        good = {*data["image_hashes"], *data.get("earlier_hashes", [])}
        return good, {digest for past in self.metadata_.get("improvements", []) for digest in past["hashes"]}

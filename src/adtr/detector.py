"""`AnomalyDetector`: fit, predict, evaluate, save, load. The one object that people hold."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

import adtr
from adtr.calibration import Thresholds, calibrate, split_holdout
from adtr.config import Config, load_preset
from adtr.data.folder import Dataset, Sample, content_hash, open_dataset
from adtr.data.loading import LoadedImage, SkippedImage, load_images
from adtr.data.sources import as_sources, in_batches, loaded_hash, training_sources
from adtr.errors import AdtrError, ConfigError, DataError
from adtr.evaluation import Evaluated, add_to_metrics
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.prediction import Prediction
from adtr.progress import Progress, Silent

if TYPE_CHECKING:
    from torch import Tensor

    from adtr.model.network import ADTR
    from adtr.training.feature_cache import FeatureCache

ROUNDING = 1.001
"""Scores of one image differ a little between batches, machines and the feature cache; thresholds lie above that."""

OnError = Literal["raise", "skip"]


class AnomalyDetector:
    """Learns what good looks like, and shows where an image departs from it.

    Scikit-learn's habits: parameters in the constructor, `fit` returns self, what was learned ends in `_`, and
    `score_samples` and `decision_function` are low for anomalies.

    Args:
        preset: a named configuration; `adtr.list_presets()` lists them.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        backbone_weights: a safetensors file or state dict in place of the package's or the hub's weights; "random"
            leaves the backbone untrained.
        **overrides: any field of any section of `adtr.Config`, such as `epochs=50`.

    Attributes:
        config: the resolved configuration.
        network_: the trained network.
        thresholds_: decision thresholds, in the units of the scores.
        metadata_: versions, data, training record.
        skipped_: images that could not be read in the latest fit, predict or evaluate.

    Raises:
        ConfigError: unknown preset or field, or a value out of range.
    """

    network_: ADTR
    thresholds_: Thresholds
    metadata_: dict[str, Any]

    def __init__(
        self,
        preset: str = "quick",
        *,
        device: str = "auto",
        backbone_weights: str | os.PathLike[str] | None = None,
        **overrides: Any,  # noqa: ANN401 - checked by Config.override
    ) -> None:
        self.preset = preset
        self.device = device
        self.backbone_weights = backbone_weights
        self._overrides = overrides
        self.config = load_preset(preset).override(**overrides)
        self.skipped_: list[SkippedImage] = []

    @classmethod
    def from_config(
        cls, config: Config, *, device: str = "auto", backbone_weights: str | os.PathLike[str] | None = None
    ) -> AnomalyDetector:
        """A detector with a complete configuration, of a preset that may have been renamed since."""
        detector = cls.__new__(cls)
        detector.preset, detector.device, detector.backbone_weights = config.preset, device, backbone_weights
        detector._overrides = config.flat()  # noqa: SLF001 - of this very class
        detector.config = config
        detector.skipped_ = []
        return detector

    # Parameters, the way scikit-learn asks for them.

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's signature
        """The constructor's arguments, every field of the configuration among them."""
        own = {"preset": self.preset, "device": self.device, "backbone_weights": self.backbone_weights}
        return {**own, **self.config.flat(), **self._overrides}

    def set_params(self, **params: Any) -> AnomalyDetector:  # noqa: ANN401
        """Change some of the constructor's arguments; a new preset keeps the fields that were given by name.

        Raises:
            ConfigError: unknown preset or field, or a value out of range.
        """
        preset = params.pop("preset", self.preset)
        device = params.pop("device", self.device)
        weights = params.pop("backbone_weights", self.backbone_weights)
        overrides = {**self._overrides, **params}
        self.config = load_preset(preset).override(**overrides)
        self.preset, self.device, self.backbone_weights, self._overrides = preset, device, weights, overrides
        return self

    def __repr__(self) -> str:
        state = "fitted" if self.is_fitted else "not fitted"
        return f"AnomalyDetector(preset={self.preset!r}, backbone={self.config.embedding.backbone!r}, {state})"

    @property
    def is_fitted(self) -> bool:
        """Whether the detector has learned or loaded something."""
        return hasattr(self, "network_")

    # Fitting.

    def fit(
        self,
        images: object,
        y: object = None,  # noqa: ARG002 - scikit-learn's signature
        *,
        on_error: OnError = "raise",
        work_folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> AnomalyDetector:
        """Learn from good images; a part of them is held out to set the thresholds.

        Args:
            images: a data set's folder (its good training images are taken), or good images: paths, PIL images,
                uint8 arrays (H, W, 3) or tensors, one or many.
            y: ignored; scikit-learn's pipelines pass it.
            on_error: "raise" stops at an unreadable image; "skip" names it in `skipped_` and goes on.
            work_folder: checkpoints are kept there, so that a run that was cut can be resumed.
            resume: go on from the work folder's checkpoint, if there is one.
            progress: is told of the stages.

        Returns:
            The detector itself.

        Raises:
            DataError: no images, too few, or unreadable ones.
            ConfigError: the backbone or its weights cannot be had.
            ModelError: the checkpoint belongs to another run.
        """
        import torch

        from adtr.device import choose_device, choose_precision
        from adtr.model.network import ADTR
        from adtr.training.batches import GoodImages
        from adtr.training.loop import train

        progress = progress or Silent()
        started = time.perf_counter()
        sources, root = training_sources(images)
        split_holdout(len(sources), self.config.calibration, 0)  # too few images fail before any work
        device = choose_device(self.device)
        torch.manual_seed(self.config.training.seed)
        precision = choose_precision(self.config.training.precision, device)
        network = ADTR(self.config, self.backbone_weights).place(device, precision)

        cache, hashes = self._embed(network, sources, on_error, progress)
        seed = self.config.training.seed
        training, held_out = split_holdout(len(cache), self.config.calibration, seed)
        if self.config.embedding.standardize:
            mean, std = cache.statistics(torch.from_numpy(training))
            network.feature_mean.copy_(mean)
            network.feature_std.copy_(std)
        embedded = time.perf_counter()
        data_fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
        record = train(
            network,
            GoodImages(network, cache, torch.from_numpy(training)),
            self.config.training,
            device=device,
            fingerprint=hashlib.sha256(
                f"{data_fingerprint}{network.embedding.sha256}{self.config}".encode()
            ).hexdigest(),
            checkpoint=Path(work_folder) if work_folder is not None else None,
            resume=resume,
            progress=progress,
        )
        maps, scores = _score_cached(network, cache, torch.from_numpy(held_out), device)
        cache.close()
        self.network_ = network
        self.thresholds_ = calibrate(
            scores * ROUNDING, maps.max(axis=(1, 2)) * ROUNDING, self.config.calibration.false_alarm_rate
        )
        self.metadata_ = {
            "adtr": adtr.__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {name: _version(name) for name in ("torch", "timm", "numpy", "pillow")},
            "python": platform.python_version(),
            "data": {
                "folder": root,
                "images": len(hashes),
                "skipped": len(self.skipped_),
                "held_out": len(held_out),
                "fingerprint": data_fingerprint,
                "image_hashes": hashes,
            },
            "training": {
                **asdict(record),
                "device": str(device),
                "embedding_seconds": embedded - started,
                "total_seconds": time.perf_counter() - started,
            },
        }
        return self

    def _embed(
        self, network: ADTR, sources: Sequence[object], on_error: OnError, progress: Progress
    ) -> tuple[FeatureCache, list[str]]:
        """Raw features of all readable images, and a hash of the contents of each."""
        import torch

        from adtr.training.feature_cache import FeatureCache

        self.skipped_ = []
        height, width = self.config.embedding.grid_size
        exact = self.config.training.precision == "fp32"
        cache = FeatureCache(
            len(sources),
            height * width,
            network.embedding.channels,
            dtype=torch.float32 if exact else torch.float16,
        )
        hashes: list[str] = []
        loaded = load_images(sources, self.config.embedding.image_size, on_error=on_error, skipped=self.skipped_)
        progress.start("features", total=len(sources))
        for batch in in_batches(loaded, 16):
            cache.append(network.embedding(_to_tensor(batch, network)))
            hashes += [loaded_hash(image) for image in batch]
            progress.advance(len(batch))
        progress.finish()
        if not len(cache):
            raise DataError("none of the images could be read")
        return cache, hashes

    # Predicting.

    def predict(
        self, images: object, *, on_error: OnError = "raise", batch_size: int = 16, progress: Progress | None = None
    ) -> list[Prediction]:
        """The verdict on each image, in order.

        Args:
            images: a folder (searched through), or paths, PIL images, uint8 arrays (H, W, 3) or tensors, one or many.
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
    ) -> Iterator[tuple[Prediction, LoadedImage]]:
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
            self.network_.config.embedding.image_size,
            on_error=on_error,
            skipped=self.skipped_,
            keep_original=keep_images,
            prefetch=max(8, 2 * batch_size),
        )
        for batch in in_batches(loaded, batch_size):
            scores, maps = self._compare(batch)
            for image, score, score_map in zip(batch, scores, maps, strict=True):
                yield (
                    Prediction(
                        score=float(score),
                        threshold=self.thresholds_.image,
                        pixel_threshold=self.thresholds_.pixel,
                        size=image.size,
                        score_map=score_map,
                        path=image.path,
                    ),
                    image,
                )
            progress.advance(len(batch))

    def _compare(self, batch: Sequence[LoadedImage]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        import torch

        with torch.inference_mode():
            comparison = self.network_(_to_tensor(batch, self.network_))
        return comparison.scores.float().cpu().numpy(), comparison.maps.float().cpu().numpy()

    def score_samples(self, images: object) -> NDArray[np.float64]:
        """The negated anomaly scores, (n,): the lower, the more anomalous (scikit-learn's convention)."""
        return np.array([-prediction.score for prediction in self.predict(images)], np.float64)

    def decision_function(self, images: object) -> NDArray[np.float64]:
        """Threshold minus score, (n,): negative for anomalies (scikit-learn's convention)."""
        return self.score_samples(images) + self.thresholds_.image

    # Evaluating.

    def evaluate(
        self,
        dataset: Dataset | str | os.PathLike[str],
        *,
        on_error: OnError = "raise",
        progress: Progress | None = None,
    ) -> Metrics:
        """Metrics on a data set's test images; images that the detector learned from are left out.

        Raises:
            DataError: no test images, an unreadable image, or a mask of another size than its image.
        """
        accumulator = MetricsAccumulator()
        for item in self.evaluate_each(dataset, on_error=on_error, progress=progress):
            add_to_metrics(accumulator, item)
        return accumulator.compute()

    def evaluate_each(
        self,
        dataset: Dataset | str | os.PathLike[str],
        *,
        on_error: OnError = "raise",
        keep_images: bool = False,
        progress: Progress | None = None,
    ) -> Iterator[Evaluated]:
        """The test images of a data set one by one with their verdicts; see `evaluate`."""
        self._require_fitted()
        samples = self.test_samples(dataset)
        if progress is not None:
            progress.start("evaluating", total=len(samples))
        stream = self.stream(
            [sample.path for sample in samples], on_error=on_error, keep_images=keep_images, progress=progress
        )
        for prediction, loaded in stream:
            yield Evaluated(sample=samples[loaded.index], prediction=prediction, image=loaded.image)
        if progress is not None:
            progress.finish()

    def test_samples(self, dataset: Dataset | str | os.PathLike[str]) -> list[Sample]:
        """The test images of a data set without those that the detector learned from, found by their contents.

        Raises:
            DataError: none.
        """
        self._require_fitted()
        if not isinstance(dataset, Dataset):
            dataset = open_dataset(dataset, reserve=False)
        learned = set(self.metadata_["data"]["image_hashes"])
        samples = [
            s for s in dataset.test if s.is_anomalous or not s.path.is_file() or content_hash(s.path) not in learned
        ]
        if not samples:
            raise DataError(
                f"no test images in {dataset.root}: expected test/<type>/, or defect folders beside good/ "
                "(images that the model learned from do not count)"
            )
        return samples

    # Keeping.

    def save(self, folder: str | os.PathLike[str], *, store_backbone: bool = False) -> None:
        """Write the model folder, whole or not at all; an older model there is replaced.

        Args:
            folder: receives `model.safetensors`, `config.json` and `metadata.json`.
            store_backbone: put the backbone's weights inside too, so that the folder needs nothing else. Weights that
                came from a file, or from nowhere, are always stored.

        Raises:
            AdtrError: the folder cannot be written, or holds something that is no model.
        """
        from adtr.store import save_model

        self._require_fitted()
        source = self.network_.embedding.source
        stored = store_backbone or not source.startswith(("package", "hub"))
        save_model(Path(folder), self.network_, self.thresholds_, self.metadata_, store_backbone=stored)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        backbone_weights: str | os.PathLike[str] | None = None,
    ) -> AnomalyDetector:
        """Read a model folder; no code from it is run, and every file's hash is checked.

        Raises:
            ModelError: the folder is incomplete or altered, or the backbone is not the one of training.
        """
        from adtr.device import choose_device, choose_precision
        from adtr.store import load_model

        chosen = choose_device(device)
        network, thresholds, metadata = load_model(Path(folder), backbone_weights)
        detector = cls.from_config(network.config, device=device, backbone_weights=backbone_weights)
        detector.network_ = network.place(chosen, choose_precision(network.config.training.precision, chosen))
        detector.thresholds_ = thresholds
        detector.metadata_ = {
            k: v for k, v in metadata.items() if k not in ("format", "thresholds", "backbone", "files")
        }
        return detector

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise AdtrError("this detector has learned nothing yet; call fit(), or AnomalyDetector.load(folder)")


def _to_tensor(batch: Sequence[LoadedImage], network: ADTR) -> Tensor:
    import torch

    pixels = torch.from_numpy(np.stack([image.pixels for image in batch]))
    return pixels.to(network.feature_mean.device)


def _score_cached(
    network: ADTR,
    cache: FeatureCache,
    index: Tensor,
    device: Any,  # noqa: ANN401 - torch is imported by callers
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score maps (n, h, w) and image scores (n,) of images whose features are at hand."""
    import torch

    maps, scores = [], []
    with torch.inference_mode():
        for rows in torch.split(index, 16):
            comparison = network.compare(network.standardize(cache[rows].to(device)))
            maps.append(comparison.maps.float().cpu().numpy())
            scores.append(comparison.scores.float().cpu().numpy())
    return np.concatenate(maps), np.concatenate(scores)


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)

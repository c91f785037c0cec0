"""`AnomalyDetector`: fit, predict, evaluate, save, load. The one object that people hold."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from adtr.calibration import Thresholds
from adtr.config import Config, load_preset
from adtr.data.loading import LoadedImage
from adtr.data.sources import GoodSources, good_sources, labelled_good
from adtr.errors import DataError, OnError
from adtr.estimator import Estimator
from adtr.integrations.hub import Shareable
from adtr.predictor import Predictor
from adtr.progress import Progress, Silent
from adtr.store import is_exported

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor

    from adtr.data.anomalies import Anomalies
    from adtr.learning.guard import Improvement
    from adtr.learning.improve import Labels
    from adtr.learning.learned import Learned
    from adtr.model.network import ADTR
    from adtr.tracking import Tracker


class AnomalyDetector(Shareable, Estimator, Predictor):
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
        network_: the trained network; the other attributes are those of `Predictor`.
        improvement_: what the latest `improve` did; None for a detector that was only fitted.

    Raises:
        ConfigError: unknown preset or field, or a value out of range.
    """

    network_: ADTR
    keeps_features_: bool = False
    """Whether `fit` was asked to keep the good images' features."""
    improvement_: Improvement | None = None
    _good: GoodSources | None = None
    """Good images that `fit` got from memory."""
    _features: Tensor | Callable[[], Tensor | None] | None = None
    """Or what reads them."""

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
        self.skipped_ = []

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

    @classmethod
    def from_learned(
        cls, learned: Learned, *, device: str = "auto", backbone_weights: str | os.PathLike[str] | None = None
    ) -> AnomalyDetector:
        """A detector around what `adtr.learning` gave."""
        detector = cls.from_config(learned.network.config, device=device, backbone_weights=backbone_weights)
        detector._take(learned)  # noqa: SLF001 - of this very class
        return detector

    @property
    def features_(self) -> Tensor | None:
        """Features of the good images, (n, N, C), where `fit` kept them, else None; a model folder's are read just now.

        Damaged ones are named in an `AdtrWarning`, and None: `improve` computes them again from the images.
        """
        if callable(self._features):
            self._features = self._features()
        return self._features

    @features_.setter
    def features_(self, features: Tensor | None) -> None:
        self._features, self.keeps_features_ = features, features is not None

    # Fitting.

    def fit(
        self,
        images: object,
        y: ArrayLike | None = None,
        *,
        held_out: object = None,
        on_error: OnError = "raise",
        keep_features: bool = False,
        work_folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
        fabric: Fabric | None = None,
        tracker: Tracker | None = None,
    ) -> AnomalyDetector:
        """Learn from good images; a part of them, or images of your own choice, is held out to set the thresholds.

        Args:
            images: a data set's folder (its good training images are taken), or good images: paths, PIL images,
                uint8 arrays (H, W, 3) or tensors, one or many; or a table of `datasets` (see `adtr.data.datasets`).
            y: 1 for each good image and -1 for each anomalous one, (n,), as scikit-learn marks outliers: only the good
                ones are learned from. None: all are good.
            held_out: good images that set the thresholds, in any of these forms; all others train then, whatever
                `holdout` says. None: those in `validation/good/` of a data set's folder, or else a part of the images.
            on_error: "raise" stops at an unreadable image; "skip" names it in `skipped_` and goes on.
            keep_features: keep the images' features in `features_` and in the saved model, for `improve`.
            work_folder: checkpoints are kept there, so that a run that was cut can be resumed.
            resume: go on from the work folder's checkpoint, if there is one.
            progress: is told of the stages.
            fabric: launched, with the strategy "ddp": its processes, on one machine or several, share the work on its
                devices and in its precision. Each makes the same call and ends with the same detector; only the first
                writes into the work folder, and only one should `save`.
            tracker: is told of configuration, losses and thresholds; see `adtr.tracking.tracked`.

        Returns:
            The detector itself.

        Raises:
            DataError: no images, too few, unreadable ones, or one that is both trained on and held out.
            ConfigError: the backbone or its weights cannot be had, or both folds and images to hold out were given.
            ModelError: the checkpoint belongs to another run.
        """
        from adtr.learning.fit import fit
        from adtr.learning.learned import Reader

        good = good_sources(images, held_out)
        if y is not None:
            good = GoodSources(labelled_good(good.training, y), None, good.held_out, good.held_out_root)
        reader = Reader(on_error=on_error, progress=progress or Silent(), fabric=fabric)
        self.skipped_ = reader.skipped
        if tracker is not None:
            tracker.log_config({"preset": self.preset, **self.config.flat(), "data": str(good.root or "memory")})
        learned = fit(
            self.config,
            good,
            device=self.device,
            backbone_weights=self.backbone_weights,
            reader=reader,
            keep_features=keep_features,
            work_folder=Path(work_folder) if work_folder is not None else None,
            resume=resume,
            tracker=tracker,
        )
        self._take(learned)
        if tracker is not None:
            tracker.log_results({"training": learned.metadata["training"], "thresholds": asdict(self.thresholds_)})
        self.improvement_ = None
        self._good = None if good.is_found_again else good
        return self

    def _take(self, learned: Learned) -> None:
        self.network_, self.calibration_, self.metadata_ = learned.network, learned.calibration, learned.metadata
        self.fitted_config_, self.features_ = learned.network.config, learned.features
        self.set_rates()

    def set_rates(self, false_alarm_rate: float | None = None, unsure_rate: float | None = None) -> Thresholds:
        """See `Predictor.set_rates`; `save` keeps the rates."""
        thresholds = super().set_rates(false_alarm_rate, unsure_rate)
        self.network_.config = self.fitted_config_
        return thresholds

    # Learning from anomalies.

    def improve(
        self,
        anomalies: str | os.PathLike[str] | Anomalies | None = None,
        *,
        labels: Labels = "auto",
        synthetic: Sequence[str] = (),
        external: object = None,
        good: object = None,
        annotations: str | os.PathLike[str] | None = None,
        on_error: OnError = "raise",
        work_folder: str | os.PathLike[str] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
        fabric: Fabric | None = None,
        tracker: Tracker | None = None,
        **overrides: Any,  # noqa: ANN401 - checked by Config.override
    ) -> AnomalyDetector:
        """ADTR+ (Section 3.3): a new detector that went on to learn from anomalies; this one stays as it is.

        The thresholds are set anew on held-out good images. A part of each defect type and the held-out good images
        judge both detectors; see `improvement_` of the new one.

        Args:
            anomalies: a folder of labelled images (see `adtr.data.anomalies.open_anomalies`).
            labels: "pixel" asks for a mask of every image, "image" ignores masks, "auto" takes those that exist.
            synthetic: kinds of made anomalies: "confetti", "scar", "blend".
            external: an irrelevant data set, whose images all count as anomalies: a folder, a parquet file or images.
            good: the good images; by default the features that `fit` kept, or the folder that it read.
            annotations: a COCO file for `anomalies`.
            on_error: "raise" stops at an unreadable image; "skip" names it in `skipped_` and goes on.
            work_folder: checkpoints are kept there, so that a run that was cut can be resumed.
            resume: go on from the work folder's checkpoint, if there is one.
            progress: is told of the stages.
            fabric: see `fit`; the detector must be on its device.
            tracker: is told of configuration, losses and the guard's judgement.
            **overrides: fields of the training, improvement and calibration sections.

        Returns:
            The new detector.

        Raises:
            ConfigError: nothing to learn from, or a field that cannot change now.
            DataError: no good images at hand, a mask is missing, or a folder holds nothing.
            ImageError: an unreadable image or mask.
            ModelError: the checkpoint belongs to another run.
        """
        from adtr.learning.improve import Lesson, improve, improved_config
        from adtr.learning.learned import Reader

        self._require_fitted()
        lesson = Lesson(
            anomalies=anomalies,
            annotations=annotations,
            labels=labels,
            synthetic=synthetic,
            external=external,
            good=good,
        )
        config = improved_config(self.fitted_config_, overrides)
        reader = Reader(on_error=on_error, progress=progress or Silent(), fabric=fabric)
        if tracker is not None:
            tracker.log_config({"preset": config.preset, **config.flat()})
        learned, improvement = improve(
            self,
            lesson,
            config,
            reader=reader,
            work_folder=Path(work_folder) if work_folder is not None else None,
            resume=resume,
            tracker=tracker,
        )
        if tracker is not None:
            tracker.log_results(improvement.to_dict())
        better = self.from_learned(learned, device=self.device, backbone_weights=self.backbone_weights)
        better._good = self._good  # noqa: SLF001
        better.improvement_, better.skipped_ = improvement, reader.skipped
        return better

    def good_sources(self) -> GoodSources:
        """The good images of `fit`, held-out ones too, which are read again where their features were not kept.

        Raises:
            DataError: their folder is not there any more, or was never known.
        """
        self._require_fitted()
        if self._good is not None:
            return self._good
        data = self.metadata_["data"]
        path, held_out = data["path"], data.get("held_out_path")
        gone = [folder for folder in (path, held_out) if folder is not None and not Path(folder).is_dir()]
        if path is None or gone:
            where = f"{gone[0]} is not there any more" if gone else "they came from memory"
            raise DataError(
                f"the good images that the model learned from are not at hand ({where}); give them with --good"
            )
        return good_sources(path, held_out)

    # Predicting: see `Predictor`.

    def _compare(self, batch: Sequence[LoadedImage]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        import torch

        from adtr.training.features import to_tensor

        with torch.inference_mode():
            comparison = self.network_(to_tensor(batch, self.network_))
        return comparison.scores.float().cpu().numpy(), comparison.maps.float().cpu().numpy()

    # Keeping.

    @property
    def needs_backbone(self) -> bool:
        """Whether the backbone's weights can be had nowhere but inside the model."""
        return not self.network_.embedding.source.startswith(("package", "hub", "pixels"))

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
        save_model(
            Path(folder),
            self.network_,
            self.calibration_,
            self.metadata_,
            store_backbone=store_backbone or self.needs_backbone,
            features=self.features_,
        )

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        *,
        device: str = "auto",
        backbone_weights: str | os.PathLike[str] | None = None,
    ) -> AnomalyDetector | Any:  # noqa: ANN401 - an ExportedDetector cannot learn
        """Read a model folder; no code from it is run, and every file's hash is checked.

        Args:
            folder: written by `save`. Of a file that `adtr export` wrote comes an `adtr.deploy.exported.
                ExportedDetector`, which needs no torch; it predicts and evaluates, but does not learn.
            device: see the constructor.
            backbone_weights: see the constructor.

        Raises:
            ModelError: the folder is incomplete or altered, or the backbone is not the one of training.
        """
        if is_exported(Path(folder)):
            from adtr.deploy.exported import ExportedDetector

            return ExportedDetector.load(folder, device=device)
        from adtr.device import choose_device, choose_precision
        from adtr.store import OWN_KEYS, load_model, read_features

        chosen = choose_device(device)
        network, calibration, metadata = load_model(Path(folder), backbone_weights)
        detector = cls.from_config(network.config, device=device, backbone_weights=backbone_weights)
        detector.network_ = network.place(chosen, choose_precision(network.config.training.precision, chosen))
        detector.fitted_config_, detector.calibration_ = network.config, calibration
        detector._features = partial(read_features, Path(folder), metadata)  # noqa: SLF001 - of this very class
        detector.keeps_features_ = metadata.get("features") is not None
        detector.metadata_ = {name: value for name, value in metadata.items() if name not in OWN_KEYS}
        detector.set_rates()
        return detector

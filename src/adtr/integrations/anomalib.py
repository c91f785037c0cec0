"""adtr as a model of anomalib 2.7: `anomalib train --model adtr.integrations.anomalib.Adtr --data ...`.

The backbone is frozen and its features are standardised before training, so one pass of anomalib's data loader gathers
them, as for anomalib's own memory banks. What follows is adtr's own `learn`: the same held-out images, order, schedule,
optimisers and thresholds, hence the same scores as `AnomalyDetector.fit` gives, and a training that takes one minute.
"""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.calibration import Calibration, Thresholds
from adtr.config import load_preset
from adtr.data.loading import LoadedImage
from adtr.data.sources import loaded_hash
from adtr.deploy.graph import resize_planes
from adtr.detector import AnomalyDetector
from adtr.device import choose_device, choose_precision
from adtr.errors import AdtrError, ConfigError
from adtr.learning.fit import learn
from adtr.learning.learned import Learned, Reader
from adtr.model.backbones import import_timm
from adtr.model.network import ADTR
from adtr.settings import Size
from adtr.training.feature_cache import FeatureCache

try:
    import_timm()  # before anomalib, which would fail where torchvision and torch are of different builds
    from anomalib import LearningType
    from anomalib.data import Batch, InferenceBatch
    from anomalib.metrics import Evaluator
    from anomalib.models.components import AnomalibModule, MemoryBankMixin
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from anomalib.visualization import Visualizer
    from torchvision import tv_tensors
    from torchvision.transforms.v2 import Resize
except ImportError as error:
    raise ConfigError("adtr as a model of anomalib needs it: pip install 'adtr[anomalib]'") from error

logger = logging.getLogger(__name__)

UNFITTED = "this model has learned nothing yet; call Engine().fit(model, datamodule=...)"


class PillowResize(Resize):  # type: ignore[misc]
    """adtr's own resize of images, in 0..1, to the pixel values that Pillow gives; masks go by nearest neighbour.

    anomalib's data modules know it as a Resize, and apply it to each image before they make batches.
    """

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:  # noqa: ANN401 - torchvision's signature
        """Resize one of the tensors that belong together."""
        if isinstance(inpt, tv_tensors.Mask):
            return super().transform(inpt, params)
        pixels = resize_planes((inpt * 255).round(), tuple(self.size)) / 255
        return tv_tensors.wrap(pixels, like=inpt) if isinstance(inpt, tv_tensors.TVTensor) else pixels


class ResizeOnly(PreProcessor):  # type: ignore[misc]
    """Brings images to the network's size and leaves them in 0..1: adtr normalises them itself."""

    def __init__(self, size: Size) -> None:
        super().__init__(PillowResize(size))

    def checkpoint_config(self) -> dict[str, Any]:
        """Nothing: the size is the model's."""
        return {}

    def load_checkpoint_config(self, config: dict[str, Any]) -> None:
        """Nothing was kept."""


class CalibratedPostProcessor(PostProcessor):  # type: ignore[misc]
    """Decides by adtr's thresholds, which come from good images held out of training, not from validation images.

    A score s and its threshold t become s / (s + t): 0.5 at the threshold, and every rank is kept, which a
    normalisation that clamps would not do.
    """

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """What to decide by."""
        self._image_threshold.fill_(thresholds.image)
        self._pixel_threshold.fill_(thresholds.pixel)

    def on_validation_batch_end(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - anomalib's signature
        """Validation images have no part in the thresholds."""

    def on_validation_epoch_end(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Validation images have no part in the thresholds."""

    @staticmethod
    def _normalize(preds: Tensor | None, norm_min: Tensor, norm_max: Tensor, threshold: Tensor) -> Tensor | None:  # noqa: ARG004
        if preds is None:
            return None
        return torch.where(torch.isnan(threshold), preds, preds / (preds + threshold))


class AdtrModel(nn.Module):
    """The network between images as anomalib has them and predictions as anomalib wants them."""

    def __init__(self, network: ADTR) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> InferenceBatch:
        """Raw scores (B,) and maps (B, 1, h, w) of images in 0..1 and of the network's size, (B, 3, h, w)."""
        network, size = self.network, self.network.config.embedding.image_size
        features = network.embedding.tokens(self.pixels(images))
        score, score_map = network.compare(network.standardize(features))
        anomaly_map = functional.interpolate(score_map.unsqueeze(1), size=size, mode="bilinear")
        return InferenceBatch(pred_score=score, anomaly_map=anomaly_map)

    def pixels(self, images: Tensor) -> Tensor:
        """The whole numbers, 0..255, that the images had in their files.

        Raises:
            ConfigError: images of another size, which the pre-processor should have resized.
        """
        size = self.network.config.embedding.image_size
        if tuple(images.shape[-2:]) != size:
            raise ConfigError(
                f"the model takes images of {size}, not {tuple(images.shape[-2:])}; keep its pre-processor"
            )
        return (images * 255).round()


class Adtr(MemoryBankMixin, AnomalibModule):  # type: ignore[misc]
    """ADTR (You et al., 2022) for anomalib's engine, data modules and command line.

    Args:
        preset: a named configuration; `adtr.list_presets()` lists them.
        backbone_weights: see `adtr.AnomalyDetector`.
        settings: fields of the configuration by their names, such as {"epochs": 50}; `anomalib train` takes them as
            `--model.settings '{epochs: 50}'`.
        pre_processor: anomalib's; other than the default it must leave images in 0..1.
        post_processor: anomalib's; the default decides by adtr's thresholds, False leaves raw scores.
        evaluator: anomalib's.
        visualizer: anomalib's.

    Raises:
        ConfigError: unknown preset or field, a value out of range, or weights that cannot be had.
    """

    def __init__(
        self,
        preset: str = "quick",
        backbone_weights: str | None = None,
        settings: dict[str, Any] | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        config = load_preset(preset).override(**(settings or {}))
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(config.embedding.image_size)
        super().__init__(
            pre_processor=pre_processor, post_processor=post_processor, evaluator=evaluator, visualizer=visualizer
        )
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.model = AdtrModel(ADTR(config, backbone_weights))
        self._calibration: Calibration | None = None
        self._metadata: dict[str, Any] = {}
        self._images: list[tuple[str, str]] = []

    # What anomalib asks of a model.

    @staticmethod
    def configure_pre_processor(image_size: Size | None = None) -> PreProcessor:
        """Adtr's resize, and no normalisation."""
        return ResizeOnly(image_size or load_preset("quick").embedding.image_size)

    def configure_post_processor(self) -> PostProcessor:
        """Adtr's thresholds."""
        return CalibratedPostProcessor()

    def configure_optimizers(self) -> None:
        """None that Lightning should step: `adtr.learning.fit.learn` has its own, Muon among them."""

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One pass over the images, on one device."""
        return {"gradient_clip_val": 0, "max_epochs": 1, "num_sanity_val_steps": 0, "devices": 1}

    @property
    def learning_type(self) -> LearningType:
        """From good images alone."""
        return LearningType.ONE_CLASS

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's signature
        """Choose the arithmetic for the trainer's device, as adtr does."""
        device = self.trainer.strategy.root_device
        self.model.network.place(device, choose_precision(self.config.training.precision, device))

    # Learning.

    def on_train_epoch_start(self) -> None:
        """Make room for the features.

        Raises:
            AdtrError: the model has learned already.
        """
        if self._is_fitted:
            raise AdtrError("this model has learned already; make a new one, or go on with to_detector().improve(...)")
        embedding = self.config.embedding
        self._started = time.perf_counter()
        self._cache = FeatureCache(
            len(self.trainer.train_dataloader.dataset),
            embedding.grid_size[0] * embedding.grid_size[1],
            self.model.network.embedding.columns,
            dtype=torch.float32 if self.config.training.precision == "fp32" else torch.float16,
        )
        self._images = []  # paths and hashes

    def training_step(self, batch: Batch, *args: Any, **options: Any) -> Tensor:  # noqa: ANN401, ARG002
        """Gather the features of a batch.

        Raises:
            ConfigError: the images are not in 0..1, or of another size.
        """
        if batch.image.min() < 0 or batch.image.max() > 1:
            raise ConfigError("the images are not in 0..1: adtr normalises them itself; keep its pre-processor")
        pixels = self.model.pixels(batch.image).permute(0, 2, 3, 1).to(torch.uint8)
        self._cache.append(self.model.network.embedding(pixels))
        paths = batch.image_path or [""] * len(pixels)
        for path, image in zip(paths, pixels.cpu().numpy(), strict=True):
            size = image.shape[:2]
            source = Path(path) if path else None
            loaded = LoadedImage(index=len(self._images), source=source, path=source, size=size, pixels=image)
            self._images.append((path, loaded_hash(loaded)))
        return torch.zeros((), device=self.device, requires_grad=True)  # Lightning wants a loss

    def fit(self) -> None:
        """Learn from the features; anomalib calls this when all are gathered.

        Raises:
            AdtrError: there are none.
            DataError: too few images.
        """
        if not self._images:
            raise AdtrError(UNFITTED)
        order = sorted(range(len(self._images)), key=lambda i: self._images[i][0])  # the loader shuffled them
        gathered = self._cache
        cache = FeatureCache(len(order), *gathered.features.shape[1:], dtype=gathered.features.dtype)
        for rows in torch.tensor(order).split(64):
            cache.append(gathered[rows])
        gathered.close()
        logger.info("Training the reconstruction of the features of %d images.", len(order))
        with torch.enable_grad():  # a validation loop, which may be the caller, has none
            learned = learn(
                self.model.network,
                cache,
                [self._images[i][1] for i in order],
                None,
                reader=Reader(),
                keep_features=False,
                work_folder=None,
                resume=False,
                started=self._started,
            )
        self._calibration, self._metadata = learned.calibration, learned.metadata
        if isinstance(self.post_processor, CalibratedPostProcessor):
            rates = self.config.calibration
            thresholds = learned.calibration.thresholds(rates.false_alarm_rate, rates.unsure_rate)
            self.post_processor.set_thresholds(thresholds)
        for epoch, loss in enumerate(learned.metadata["training"]["losses"]):
            for sink in self.loggers:
                sink.log_metrics({"train_loss": loss}, step=epoch)

    def validation_step(self, batch: Batch, *args: Any, **options: Any) -> Batch:  # noqa: ANN401, ARG002
        """Raw scores and maps of a batch."""
        return batch.update(**self.model(batch.image)._asdict())

    # Keeping.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what belongs to the weights, as plain values."""
        super().on_save_checkpoint(checkpoint)
        if self._calibration is not None:
            checkpoint["adtr"] = {"calibration": asdict(self._calibration), "metadata": self._metadata}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        super().on_load_checkpoint(checkpoint)
        state, memory = checkpoint["state_dict"], self.model.network.memory
        stored = {n: state.get(f"model.network.memory.{n}") for n in memory.stored()}
        if all(tensor is not None for tensor in stored.values()):  # the buffers have no rows before they are filled
            memory.restore(stored)
        gaussian = {n: state.get(f"model.network.mahalanobis.{n}") for n in self.model.network.mahalanobis.stored()}
        if gaussian["whitening"] is not None:
            self.model.network.mahalanobis.fill(**gaussian)
        if "adtr" in checkpoint:
            self._calibration = Calibration(**checkpoint["adtr"]["calibration"])
            self._metadata = checkpoint["adtr"]["metadata"]

    def to_onnx(self, *args: Any, **options: Any) -> Path:  # noqa: ANN401 - anomalib's signature
        """Anomalib's export, in float32."""
        self.model.network.place(self.device, "fp32")
        options.setdefault("opset_version", 18)  # the exporter's own; anomalib's 14 is converted to, and fails, loudly
        return Path(super().to_onnx(*args, **options))

    def to_detector(self) -> AnomalyDetector:
        """The same as an `AnomalyDetector`: for `save`, `set_rates`, `improve`, `adtr serve`, `adtr export` and so on.

        Raises:
            AdtrError: the model has learned nothing yet.
        """
        if self._calibration is None:
            raise AdtrError(UNFITTED)
        device = choose_device()
        network = copy.deepcopy(self.model.network).eval()
        network.place(device, choose_precision(self.config.training.precision, device))
        return AnomalyDetector.from_learned(
            Learned(network=network, calibration=self._calibration, metadata=self._metadata)
        )

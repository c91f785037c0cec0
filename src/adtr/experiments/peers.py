"""Other methods beside adtr: anomalib's, on the same images, with the same backbone weights and the same metrics code.

anomalib is no dependency of adtr's; it wants an environment of its own, in which adtr is installed too. Only its
networks and losses are used; scores are taken raw. What trains takes as many steps and images as adtr's own training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.config import Config, TrainingConfig
from adtr.data.loading import load_images
from adtr.data.sources import in_batches
from adtr.experiments.subjects import Subject
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.model.backbones import Backbone, create_backbone, import_timm, load_backbone_state
from adtr.settings import Size
from adtr.training.loop import epoch_order
from adtr.training.optimization import training_steps

Scorer = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Normalised images (B, 3, h, w) to image scores (B,) and maps (B, H, W), or no maps."""

WITH_DECODER = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2")
"""Backbones for which Reverse Distillation has a decoder."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What every method gets."""

    sources: Sequence[object]
    """Good images."""
    backbone: Backbone
    """Gives the weights and the normalisation."""
    name: str
    """Its architecture."""
    size: Size
    training: TrainingConfig

    @classmethod
    def of(cls, subject: Subject, config: Config, weights: str | None) -> Bench:
        """As adtr itself would be trained."""
        embedding = config.embedding
        return cls(
            sources=subject.train,
            backbone=create_backbone(embedding.backbone, weights),
            name=embedding.backbone.split(".", maxsplit=1)[0],
            size=embedding.image_size,
            training=config.training,
        )

    def layers(self, *reductions: int) -> list[str]:
        """Names of the backbone's layers of those strides, as timm calls them."""
        info: Any = self.backbone.network.feature_info
        by_reduction = dict(zip(info.reduction(), info.module_name(), strict=True))
        return [by_reduction[reduction] for reduction in reductions]

    def load_weights(self, network: nn.Module) -> None:
        """Put the backbone's weights into a timm feature extractor."""
        load_backbone_state(network, self.backbone.network.state_dict(), self.name)

    def images(self, sources: Sequence[object]) -> Iterator[tuple[Tensor, list[Size]]]:
        """Normalised images (B, 3, h, w) and their original sizes, in order."""
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.backbone.mean, self.backbone.std))
        with closing(load_images(sources, self.size)) as loaded:
            for batch in in_batches(loaded, self.training.batch_size):
                pixels = torch.from_numpy(np.stack([image.pixels for image in batch])).permute(0, 3, 1, 2)
                # anomalib's losses ask for contiguous tensors, which a permuted batch would not lead to
                yield ((pixels.float() / 255 - mean) / std).contiguous(), [image.size for image in batch]

    def training_images(self) -> Iterator[Tensor]:
        """As many batches as adtr's training has, in its order."""
        per_epoch = -(-len(self.sources) // self.training.batch_size)
        left, epoch = training_steps(self.training, per_epoch), 0
        while left > 0:
            order = epoch_order(len(self.sources), self.training.seed, epoch).tolist()
            for images, _ in self.images([self.sources[i] for i in order]):
                if left > 0:
                    yield images
                left -= 1
            epoch += 1


def why_not(peer: str, config: Config) -> str | None:
    """Why a method cannot be run here; None where it can."""
    if find_spec("anomalib") is None:
        return "needs anomalib; install it with adtr in an environment of its own (docs/reproduction.md)"
    if peer == "Reverse Distillation" and config.embedding.backbone.split(".")[0] not in WITH_DECODER:
        return f"has no decoder for {config.embedding.backbone}, only for ResNets"
    return None


def run_peer(peer: str, subject: Subject, config: Config, weights: str | None) -> Metrics:
    """Train a method and judge it."""
    import_timm()  # before anomalib, which would fail where torchvision and torch are of different builds
    torch.manual_seed(config.training.seed)
    bench = Bench.of(subject, config, weights)
    return judge(PEERS[peer](bench), subject, bench)


def judge(score: Scorer, subject: Subject, bench: Bench) -> Metrics:
    """Metrics of a method on the test images, its maps brought to each image's own size."""
    accumulator = MetricsAccumulator()
    i = 0
    with torch.inference_mode():
        for images, sizes in bench.images(subject.test):
            scores, maps = score(images)
            for k, (value, size) in enumerate(zip(scores.double().flatten().tolist(), sizes, strict=True)):
                anomaly_map = None
                if maps is not None:
                    one = maps[k].float().reshape(1, 1, *maps.shape[-2:])
                    anomaly_map = functional.interpolate(one, size=size, mode="bilinear")[0, 0].numpy()
                truth = subject.truth(i, size) if subject.types[i] != "good" and maps is not None else None
                accumulator.add(value, anomaly_map, truth, defect_type=subject.types[i])
                i += 1
    return accumulator.compute()


def patchcore(bench: Bench, *, coreset: float = 0.01) -> Scorer:
    """PatchCore (Roth et al., CVPR 2022)."""
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=bench.layers(8, 16), backbone=bench.name, pre_trained=False)
    bench.load_weights(model.feature_extractor.feature_extractor)
    model.train()
    with torch.no_grad():
        for images, _ in bench.images(bench.sources):
            model(images)
        model.subsample_embedding(coreset)
    return _inference(model)


def padim(bench: Bench) -> Scorer:
    """PaDiM (Defard et al., 2021)."""
    from anomalib.models.image.padim.torch_model import PadimModel

    layers = bench.layers(4, 8, 16)
    model = PadimModel(layers=layers, backbone=bench.name, pre_trained=False, n_features=100)
    bench.load_weights(model.feature_extractor.feature_extractor)
    model.train()
    with torch.no_grad():
        for images, _ in bench.images(bench.sources):
            model(images)
        model.fit()
    return _inference(model)


def stfpm(bench: Bench) -> Scorer:
    """STFPM (Wang et al., BMVC 2021)."""
    from anomalib.models.image.stfpm import torch_model
    from anomalib.models.image.stfpm.loss import STFPMLoss

    extractor = torch_model.TimmFeatureExtractor

    def untrained(**options: Any) -> nn.Module:  # noqa: ANN401 - anomalib's options
        return extractor(**{**options, "pre_trained": False})

    with patch.object(torch_model, "TimmFeatureExtractor", untrained):  # it would fetch weights that are replaced below
        model = torch_model.STFPMModel(layers=bench.layers(4, 8, 16), backbone=bench.name)
    bench.load_weights(model.teacher_model.feature_extractor)
    optimizer = torch.optim.SGD(model.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)
    return _trained(model, optimizer, STFPMLoss(), bench)


def reverse_distillation(bench: Bench) -> Scorer:
    """Reverse Distillation (Deng and Li, CVPR 2022)."""
    from anomalib.models.image.reverse_distillation.anomaly_map import AnomalyMapGenerationMode
    from anomalib.models.image.reverse_distillation.loss import ReverseDistillationLoss
    from anomalib.models.image.reverse_distillation.torch_model import ReverseDistillationModel

    model = ReverseDistillationModel(
        backbone=bench.name,
        input_size=bench.size,
        layers=bench.layers(4, 8, 16),
        anomaly_map_mode=AnomalyMapGenerationMode.ADD,
        pre_trained=False,
    )
    bench.load_weights(model.encoder.feature_extractor)
    parameters = [*model.decoder.parameters(), *model.bottleneck.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.005, betas=(0.5, 0.99))
    return _trained(model, optimizer, ReverseDistillationLoss(), bench)


def ganomaly(bench: Bench) -> Scorer:
    """GANomaly (Akcay et al., ACCV 2018), which takes no backbone and gives no map."""
    from anomalib.models.image.ganomaly.loss import DiscriminatorLoss, GeneratorLoss
    from anomalib.models.image.ganomaly.torch_model import GanomalyModel

    model = GanomalyModel(input_size=bench.size, num_input_channels=3, n_features=64, latent_vec_size=100)
    of_generator, of_discriminator = GeneratorLoss(), DiscriminatorLoss()
    generator, discriminator = (
        torch.optim.Adam(part.parameters(), lr=2e-4, betas=(0.5, 0.999))
        for part in (model.generator, model.discriminator)
    )
    model.train()
    for images in bench.training_images():
        real, fake, latent, latent_of_fake = model(images)
        judged_real, judged_fake = model.discriminator(real)[0], model.discriminator(fake)[0]
        generator.zero_grad()
        of_generator(latent, latent_of_fake, real, fake, judged_real, judged_fake).backward(retain_graph=True)
        generator.step()
        discriminator.zero_grad()
        of_discriminator(judged_real, model.discriminator(fake.detach())[0]).backward()
        discriminator.step()
    return _inference(model)


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer, loss: nn.Module, bench: Bench) -> Scorer:
    model.train()
    for images in bench.training_images():
        optimizer.zero_grad()
        loss(*model(images)).backward()
        optimizer.step()
    return _inference(model)


def _inference(model: nn.Module) -> Scorer:
    model.eval()

    def score(images: Tensor) -> tuple[Tensor, Tensor | None]:
        result = model(images)
        maps = result.anomaly_map
        scores = result.pred_score if result.pred_score is not None else maps.amax(dim=(-3, -2, -1))
        return scores, maps

    return score


PEERS: dict[str, Callable[[Bench], Scorer]] = {
    "PaDiM": padim,
    "PatchCore": patchcore,
    "STFPM": stfpm,
    "Reverse Distillation": reverse_distillation,
    "GANomaly": ganomaly,
}
"""anomalib's methods by their names."""

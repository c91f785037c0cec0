from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adtr.config import Config, load_preset
from adtr.experiments.peers import PEERS, Bench, judge, run_peer, why_not
from adtr.experiments.subjects import Subject, Subjects

HAS_ANOMALIB = find_spec("anomalib") is not None


@pytest.fixture(scope="module")
def config() -> Config:
    return load_preset("quick").override(image_size=64, batch_size=10, max_steps=7)


@pytest.fixture(scope="module")
def subject(dataset: Path) -> Subject:
    return Subjects("mvtec", dataset).open(dataset.name)


@pytest.fixture(scope="module")
def bench(subject: Subject, config: Config) -> Bench:
    return Bench.of(subject, config, None)


def test_what_trains_sees_as_many_batches_as_adtr(bench: Bench) -> None:
    sizes = [len(images) for images in bench.training_images()]
    assert sizes == [10, 10, 4, 10, 10, 4, 10]  # 24 images, 7 steps


def test_images_are_normalised_as_the_backbone_was_trained(bench: Bench) -> None:
    images, sizes = next(iter(bench.images(bench.sources[:2])))
    assert images.shape == (2, 3, 64, 64)
    assert sizes == [(96, 96)] * 2
    assert -1 <= float(images.min()) < float(images.max()) <= 1
    assert float(images.min()) < -0.5  # lite2: mean 0.5, deviation 0.5


def test_layers_go_by_their_stride(bench: Bench) -> None:
    assert bench.layers(4, 8, 16) == ["blocks.1", "blocks.2", "blocks.4"]


def test_a_scorer_that_knows_the_truth_is_judged_perfect(subject: Subject, bench: Bench) -> None:
    masks = iter([subject.truth(i, (96, 96)) for i in range(len(subject.test))])

    def knows(images: Tensor) -> tuple[Tensor, Tensor]:
        maps = torch.from_numpy(np.stack([next(masks) for _ in images])).float()
        return maps.amax(dim=(1, 2)), maps[:, None]

    metrics = judge(knows, subject, bench)
    assert (metrics.image_auroc, metrics.pixel_auroc) == (1, 1)
    assert metrics.images == len(subject.test)


def test_a_scorer_without_maps_is_judged_by_images_alone(subject: Subject, bench: Bench) -> None:
    metrics = judge(lambda images: (images.mean(dim=(1, 2, 3)), None), subject, bench)
    assert metrics.image_auroc is not None
    assert metrics.pixel_auroc is None


def test_what_is_missing_is_named(config: Config) -> None:
    if not HAS_ANOMALIB:
        assert "needs anomalib" in str(why_not("PaDiM", config))
    else:
        assert why_not("PaDiM", config) is None
        assert "only for ResNets" in str(why_not("Reverse Distillation", config))
        assert why_not("Reverse Distillation", config.override(backbone="resnet18.tv_in1k")) is None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ANOMALIB, reason="needs anomalib")
@pytest.mark.parametrize("peer", PEERS)
def test_every_peer_runs(peer: str, subject: Subject, config: Config) -> None:
    chosen = config.override(
        max_steps=3, backbone="resnet18" if peer == "Reverse Distillation" else "tf_efficientnet_lite2"
    )
    metrics = run_peer(peer, subject, chosen, "random" if peer == "Reverse Distillation" else None)
    assert metrics.image_auroc is not None
    assert (metrics.pixel_auroc is None) == (peer == "GANomaly")

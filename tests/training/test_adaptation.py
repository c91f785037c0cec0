"""Batches of good and anomalous images, and the loss that each of them takes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adtr.config import Config, load_preset
from adtr.model.losses import image_loss, pixel_loss, pseudo_huber
from adtr.model.network import ADTR
from adtr.training.adaptation import GoodAndAnomalousImages, KnownAnomalies, SyntheticAnomalies, mask_on_grid
from adtr.training.batches import Batch, GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.loop import train
from conftest import SMALL, good_image


@pytest.fixture(scope="module")
def config() -> Config:
    return load_preset("quick").override(**{**SMALL, "backbone": "tf_efficientnet_lite0", "grid_size": 4, "top_k": 3})


@pytest.fixture(scope="module")
def network(config: Config) -> ADTR:
    torch.manual_seed(0)
    return ADTR(config, "random")


@pytest.fixture(scope="module")
def good(network: ADTR) -> GoodImages:
    features = torch.randn(9, 16, network.embedding.channels, generator=torch.Generator().manual_seed(0))
    return GoodImages(network, FeatureCache.of(features), torch.arange(1, 9))


def known(network: ADTR, name: str, marked: list[bool]) -> KnownAnomalies:
    """Anomalies whose features are all their own number."""
    features = torch.arange(1.0, len(marked) + 1).view(-1, 1, 1).expand(-1, 16, network.embedding.channels)
    has_mask = torch.tensor(marked)
    masks = torch.zeros(len(marked), 16)
    masks[has_mask, :5] = 1
    return KnownAnomalies(name, network, features.half(), masks, has_mask, [name] * len(marked))


def picture(i: int) -> np.ndarray:
    return good_image(np.random.default_rng(i), side=64)


# Masks.


@given(
    mask=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 10**6)),
    grid=st.tuples(st.integers(1, 8), st.integers(1, 8)),
)
def test_a_position_is_anomalous_as_soon_as_one_of_its_pixels_is(
    mask: tuple[int, int, int], grid: tuple[int, int]
) -> None:
    height, width, seed = mask
    marked = np.random.default_rng(seed).random((height, width)) < 0.05
    on_grid = mask_on_grid(marked, grid).view(grid)
    for row in range(grid[0]):
        for column in range(grid[1]):
            top, bottom = row * height // grid[0], -(-(row + 1) * height // grid[0])
            left, right = column * width // grid[1], -(-(column + 1) * width // grid[1])
            assert bool(on_grid[row, column]) == bool(marked[top:bottom, left:right].any())


def test_a_single_pixel_survives() -> None:
    mask = np.zeros((500, 700), bool)
    mask[499, 0] = True
    assert mask_on_grid(mask, (16, 16)).view(16, 16).nonzero().tolist() == [[15, 0]]


# Losses.


def test_each_image_takes_the_loss_that_its_label_allows(good: GoodImages, network: ADTR) -> None:
    config = network.config.improvement
    data = GoodAndAnomalousImages(good, [known(network, "labelled", [True, False])], config, seed=0)
    batch = data.batch(torch.arange(2), 0)
    assert batch.labels.tolist() == [0, 0, 1, 1]
    assert batch.has_mask[:2].all()
    assert sorted(batch.has_mask[2:].tolist()) == [False, True]
    reconstructed = torch.zeros_like(batch.features)
    losses = data.loss(batch, reconstructed)
    phi = pseudo_huber(batch.features)
    for i in range(4):
        one = slice(i, i + 1)
        if batch.has_mask[i]:
            expected = pixel_loss(phi[one], batch.masks[one], config.alpha)
        else:
            expected = image_loss(phi[one], torch.ones(1), config.alpha, 3)
        torch.testing.assert_close(losses[one], expected)
    torch.testing.assert_close(losses[0], phi[0].mean())  # a good image: the pull at every position


def test_good_images_are_judged_by_their_worst_positions_where_nothing_has_a_mask(
    good: GoodImages, network: ADTR
) -> None:
    data = GoodAndAnomalousImages(good, [known(network, "external", [False] * 3)], network.config.improvement, seed=0)
    batch = data.batch(torch.arange(2), 0)
    losses = data.loss(batch, torch.zeros_like(batch.features))
    phi = pseudo_huber(batch.features)
    torch.testing.assert_close(losses[:2], phi[:2].sort(dim=1).values[:, -3:].mean(dim=1))


# Batches.


def test_a_batch_depends_on_the_seed_and_the_step_alone(good: GoodImages, network: ADTR) -> None:
    def batch(seed: int, step: int) -> Batch:
        sources = [known(network, "labelled", [True] * 9), SyntheticAnomalies("confetti", network, picture, 8)]
        return GoodAndAnomalousImages(good, sources, network.config.improvement, seed).batch(torch.arange(4), step)

    first = batch(0, 3)
    assert torch.equal(first.features, batch(0, 3).features)
    assert torch.equal(first.masks, batch(0, 3).masks)
    for other in (batch(1, 3), batch(0, 4)):
        assert torch.equal(first.features[:4], other.features[:4])  # the good images are chosen by the loop
        assert not torch.equal(first.features[4:], other.features[4:])


@pytest.mark.parametrize(("share", "rows", "anomalies"), [(0.5, 4, 4), (0.5, 1, 1), (0.2, 8, 2), (0.01, 4, 1)])
def test_anomalies_have_their_share(good: GoodImages, network: ADTR, share: float, rows: int, anomalies: int) -> None:
    config = network.config.override(anomaly_share=share).improvement
    data = GoodAndAnomalousImages(good, [known(network, "labelled", [True] * 2)], config, seed=0)
    assert int(data.batch(torch.arange(rows), 0).labels.sum()) == anomalies


def test_sources_take_turns(good: GoodImages, network: ADTR) -> None:
    """Three sources, one anomaly a step: each is heard in every third step."""
    sources = [known(network, name, [True] * (i + 1)) for i, name in enumerate("abc")]
    heard: list[str] = []
    for source in sources:
        draw = source.draw
        source.draw = lambda n, *rest, draw=draw, name=source.name: heard.extend(name * n) or draw(n, *rest)  # type: ignore[method-assign]
    data = GoodAndAnomalousImages(good, sources, network.config.improvement, seed=0)
    for step in range(6):
        data.batch(torch.arange(1), step)
    assert heard == list("abcabc")


def test_known_anomalies_come_without_repetition_while_they_last(network: ADTR) -> None:
    source = known(network, "labelled", [True] * 5)
    values = (
        source.draw(12, np.random.default_rng(0)).features[:, 0, 0] * network.feature_std[0] + network.feature_mean[0]
    )
    assert sorted(values[:5].round().tolist()) == sorted(values[5:10].round().tolist()) == [1, 2, 3, 4, 5]
    assert len(set(values[10:].tolist())) == 2


@pytest.mark.parametrize("kind", ["confetti", "scar", "blend"])
def test_synthetic_anomalies_are_images_with_their_masks(network: ADTR, kind: str) -> None:
    batch = SyntheticAnomalies(kind, network, picture, 8).draw(3, np.random.default_rng(0))
    assert batch.features.shape == (3, 16, network.embedding.channels)
    assert batch.has_mask.all()
    assert batch.labels.all()
    assert (batch.masks.sum(dim=1) > 0).all()
    assert set(batch.masks.unique().tolist()) <= {0.0, 1.0}
    clean = network.target(network.embedding(torch.from_numpy(np.stack([picture(i) for i in range(8)]))))
    nearest = torch.cdist(batch.features.flatten(1), clean.flatten(1)).amin(dim=1)
    assert (nearest > 0).all()  # none of them is a good image


def test_training_pushes_anomalies_away_and_keeps_good_images(good: GoodImages, network: ADTR) -> None:
    """Anomalies that the network reconstructs like good images no longer are after the training."""
    features = good.cache.features
    similar = features[1:5] + 0.5 * torch.randn(4, 16, features.shape[2], generator=torch.Generator().manual_seed(1))
    marked = KnownAnomalies("labelled", network, similar, torch.ones(4, 16), torch.ones(4, dtype=torch.bool), ["x"] * 4)
    config = network.config.override(improve_epochs=60, improve_learning_rate=3e-3, optimizer="adamw", alpha=0.3)

    def phi(x: torch.Tensor) -> float:
        with torch.no_grad():
            return float(pseudo_huber(x - network.reconstruction(x)).mean())

    before = phi(similar) / phi(features[1:])
    data = GoodAndAnomalousImages(good, [marked], config.improvement, seed=0)
    record = train(network, data, config.improvement_training(), device=torch.device("cpu"))
    assert record.losses[-1] < record.losses[0]
    assert phi(similar) / phi(features[1:]) > 1.5 * before

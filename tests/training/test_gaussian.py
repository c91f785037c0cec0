import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf

from adtr.config import load_preset
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import score_cached
from adtr.training.gaussian import FOLDS, fit_gaussian, whiten
from conftest import SMALL

CONFIG = load_preset("quick").override(**SMALL, memory_size=50)


@pytest.fixture(scope="module")
def network() -> ADTR:
    torch.manual_seed(0)
    return ADTR(CONFIG, "random").eval()


def cache_of(network: ADTR, images: int = 12) -> FeatureCache:
    generator = torch.Generator().manual_seed(1)
    own = torch.randn(images, 1, network.embedding.columns, generator=generator)
    return FeatureCache.of((own + torch.randn(images, 64, network.embedding.columns, generator=generator)).half())


def test_whitened_distances_are_those_of_ledoit_and_wolf() -> None:
    described = np.random.default_rng(0).normal(size=(40, 6)) @ np.random.default_rng(1).normal(size=(6, 6))
    mean, whitening = whiten(described)
    deviation = described.std(axis=0)
    library = LedoitWolf().fit(described / deviation)
    ours = np.square((described - mean) @ whitening).sum(axis=1)
    np.testing.assert_allclose(ours, library.mahalanobis(described / deviation), rtol=1e-8)


def test_a_channel_that_never_varied_does_not_drown_out_the_others() -> None:
    described = np.random.default_rng(0).normal(size=(40, 6))
    described[:, 3] = 0
    mean, whitening = whiten(described)
    gap = np.eye(6)[[0, 3]] - mean
    usual, silent = np.linalg.norm(gap @ whitening, axis=1)
    assert silent < 20 * usual


def test_other_images_are_not_seen_and_the_same_come_out_each_time(network: ADTR) -> None:
    cache, rows = cache_of(network), torch.arange(8)
    fit_gaussian(network, cache, rows, 0)
    first = {name: tensor.clone() for name, tensor in network.mahalanobis.stored().items()}
    cache.features[8:] = 100
    fit_gaussian(network, cache, rows, 0)
    assert network.mahalanobis.is_filled
    assert all(torch.equal(first[name], tensor) for name, tensor in network.mahalanobis.stored().items())


@torch.inference_mode()
def test_distances_of_new_images_have_the_mean_of_the_maps_maxima(network: ADTR) -> None:
    cache = cache_of(network, 300)
    fit_gaussian(network, cache, torch.arange(200), 0)
    new = network.standardize(cache[torch.arange(200, 300)])
    distances = network.mahalanobis(new)
    network.mahalanobis.empty()
    assert float(distances.mean()) == pytest.approx(float(network.compare(new).scores.mean()), rel=0.2)


@torch.inference_mode()
def test_the_image_score_is_the_sum_and_the_map_stays(network: ADTR) -> None:
    cache, rows = cache_of(network), torch.tensor([9, 10])
    network.mahalanobis.empty()
    alone, map_alone = score_cached(network, cache, rows)
    fit_gaussian(network, cache, torch.arange(9), 0)
    both, map_beside = score_cached(network, cache, rows)
    distance = network.mahalanobis(network.standardize(cache[rows])).numpy()
    np.testing.assert_allclose(both, alone + CONFIG.comparison.mahalanobis_weight * distance, rtol=1e-5)
    np.testing.assert_array_equal(map_alone, map_beside)


def test_too_few_images_or_equal_ones_give_none(network: ADTR) -> None:
    cache = cache_of(network)
    fit_gaussian(network, cache, torch.arange(FOLDS - 1), 0)
    assert not network.mahalanobis.is_filled
    cache.features[:] = cache.features[:1]
    fit_gaussian(network, cache, torch.arange(12), 0)
    assert not network.mahalanobis.is_filled


def test_the_paper_has_none(network: ADTR) -> None:
    paper = ADTR(load_preset("paper-mvtec").override(**SMALL, backbone=CONFIG.embedding.backbone), "random").eval()
    fit_gaussian(paper, cache_of(network), torch.arange(12), 0)
    assert not paper.mahalanobis.is_filled

import numpy as np
import pytest
import torch

from adtr.config import load_preset
from adtr.model.memory import SHARES
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import score_cached
from adtr.training.remembering import farthest_points, remember
from conftest import SMALL

CONFIG = load_preset("quick").override(**SMALL, memory_size=50)


def literal_farthest(points: np.ndarray, first: int, count: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        gaps = [min(np.linalg.norm(point - points[i]) for i in chosen) for point in points]
        chosen.append(int(np.argmax(gaps)))
    return chosen


def test_each_chosen_point_is_the_farthest_from_those_before() -> None:
    points = np.random.default_rng(0).normal(size=(60, 5))
    found = farthest_points(torch.tensor(points), 12, torch.Generator().manual_seed(3)).tolist()
    assert found == literal_farthest(points, found[0], 12)


def test_all_points_are_taken_where_there_are_no_more() -> None:
    assert farthest_points(torch.zeros(3, 2), 5, torch.Generator()).tolist() == [0, 1, 2]


def test_equal_points_are_each_chosen_once() -> None:
    chosen = farthest_points(torch.zeros(10, 2), 6, torch.Generator()).tolist()
    assert len(set(chosen)) == 6


@pytest.fixture(scope="module")
def network() -> ADTR:
    torch.manual_seed(0)
    return ADTR(CONFIG, "random").eval()


def cache_of(network: ADTR, images: int = 6) -> FeatureCache:
    torch.manual_seed(1)
    return FeatureCache.of(torch.randn(images, 64, network.embedding.channels).half())


def test_only_training_images_are_remembered_and_the_same_ones_each_time(network: ADTR) -> None:
    cache, rows = cache_of(network), torch.tensor([0, 2, 3, 5])
    remember(network, cache, rows, 7)
    patches, scale = network.memory.patches.clone(), network.memory.scale.clone()
    assert patches.shape == (2, 50, len(network.memory.channels))
    described = network.memory.describe(cache[torch.arange(6)])
    gaps = torch.cdist(patches, described.flatten(1, 2)).min(dim=2)
    assert set((gaps.indices // 64).flatten().tolist()) <= {0, 2, 3, 5}
    assert gaps.values.max() < 0.1  # but for half precision
    remember(network, cache, rows, 7)
    assert torch.equal(network.memory.patches, patches)
    assert torch.equal(network.memory.scale, scale)
    remember(network, cache, rows, 8)
    assert not torch.equal(network.memory.patches, patches)


@torch.inference_mode()
def test_the_scale_gives_distance_and_error_one_mean_over_training_images(network: ADTR) -> None:
    cache = cache_of(network)
    remember(network, cache, torch.arange(6), 0)
    features = cache[torch.arange(6)]
    error = network.difference(features).norm(dim=-1).mean()
    # Each image's own patches, of which it would be at distance 0, are left out of the scale; here every token is new.
    torch.manual_seed(2)
    fresh = network.memory(torch.randn(6, 64, network.embedding.channels)).mean() / sum(SHARES)
    assert 0.8 < float(fresh / error) < 1.25


@torch.inference_mode()
def test_the_map_is_the_sum_of_both_and_the_paper_remembers_nothing(network: ADTR) -> None:
    cache = cache_of(network)
    remember(network, cache, torch.arange(4), 0)
    _, both = score_cached(network, cache, torch.tensor([4, 5]))
    features = cache[torch.tensor([4, 5])]
    error = network.difference(features).norm(dim=-1).unflatten(-1, (8, 8))
    weight = CONFIG.comparison.memory_weight
    np.testing.assert_allclose(both, (error + weight * network.memory(features)), rtol=1e-4)

    paper = ADTR(load_preset("paper-mvtec").override(**SMALL, backbone=CONFIG.embedding.backbone), "random").eval()
    remember(paper, cache, torch.arange(4), 0)
    assert not paper.memory.is_filled


def test_one_image_gives_a_memory_too(network: ADTR) -> None:
    remember(network, cache_of(network), torch.tensor([1]), 0)
    assert network.memory.is_filled
    assert torch.isfinite(network.memory.scale).all()

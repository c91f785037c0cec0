import numpy as np
import pytest
import torch

from adtr.config import load_preset
from adtr.model.network import ADTR
from adtr.training import remembering
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


@pytest.mark.parametrize(("short_list", "at_once"), [(2_048, 64), (7, 64), (20, 3), (1, 1)])
def test_each_chosen_point_is_the_farthest_from_those_before(
    short_list: int, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "SHORT_LIST", short_list)
    monkeypatch.setattr(remembering, "AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(60, 5)), rng.normal(3.0, 0.1, size=(30, 5))])
    found = farthest_points(torch.tensor(points), 40, torch.Generator().manual_seed(3)).tolist()
    assert found == literal_farthest(points, found[0], 40)


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
    return FeatureCache.of(torch.randn(images, 64, network.embedding.columns).half())


def test_only_training_images_are_remembered_and_the_same_ones_each_time(network: ADTR) -> None:
    cache, rows = cache_of(network), torch.tensor([0, 2, 3, 5])
    remember(network, cache, rows, 7)
    first = {name: tensor.clone() for name, tensor in network.memory.stored().items()}
    for kind in network.memory.patches().values():
        assert kind.patches.shape[0] == 50
        described = kind.describe(cache[torch.arange(6)]).flatten(1, 2)
        gaps = torch.cdist(kind.patches, described.flatten(0, 1)).min(dim=1)
        assert set((gaps.indices // described.shape[1]).tolist()) <= {0, 2, 3, 5}
        assert gaps.values.max() < 0.1  # but for half precision
    remember(network, cache, rows, 7)
    assert all(torch.equal(first[name], tensor) for name, tensor in network.memory.stored().items())
    remember(network, cache, rows, 8)
    assert not torch.equal(first["kinds.parts.patches"], network.memory.stored()["kinds.parts.patches"])


@torch.inference_mode()
def test_what_is_typical_are_the_mean_and_the_mean_maximum_of_training_images(network: ADTR) -> None:
    cache = cache_of(network)
    remember(network, cache, torch.arange(6), 0)
    errors = network.difference(cache[torch.arange(6)]).norm(dim=-1)
    mean, highest = errors.mean(), errors.amax(dim=1).mean()
    torch.testing.assert_close(network.memory.typical, torch.stack([mean, highest - mean]))
    # Each image's own patches, of which it would be at distance 0, are left out; here every token is new.
    torch.manual_seed(2)
    fresh = torch.randn(6, 64, network.embedding.columns)
    for kind in network.memory.patches().values():
        apart = kind(fresh)
        assert 0.7 < float(apart.amax(dim=(1, 2)).mean()) < 1.5
        assert 0 < float(apart.mean()) < 0.5


@torch.inference_mode()
def test_the_map_joins_both_and_the_paper_remembers_nothing(network: ADTR) -> None:
    cache = cache_of(network)
    assert network.embedding.columns > network.embedding.channels
    remember(network, cache, torch.arange(4), 0)
    _, both = score_cached(network, cache, torch.tensor([4, 5]))
    assert both.shape == (2, *network.map_size) == (2, 16, 16)
    features = cache[torch.tensor([4, 5])]
    error = network.difference(features).norm(dim=-1).unflatten(-1, (8, 8))
    weight = CONFIG.comparison.memory_weight
    np.testing.assert_allclose(both, network.memory(error, features, weight), rtol=1e-4)

    paper = ADTR(load_preset("paper-mvtec").override(**SMALL, backbone=CONFIG.embedding.backbone), "random").eval()
    assert paper.embedding.columns == paper.embedding.channels
    assert paper.map_size == (8, 8)
    remember(paper, cache, torch.arange(4), 0)
    assert not paper.memory.is_filled


def test_one_image_gives_a_memory_too(network: ADTR) -> None:
    remember(network, cache_of(network), torch.tensor([1]), 0)
    assert network.memory.is_filled
    assert all(torch.isfinite(tensor).all() for tensor in network.memory.stored().values())

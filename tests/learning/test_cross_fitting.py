"""Cross-fitting: each image is scored by a network that learned from the other folds, and from nothing else."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adtr.config import load_preset
from adtr.data.folder import list_images
from adtr.learning import cross_fitting
from adtr.learning.cross_fitting import cross_fit
from adtr.model.network import ADTR
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import embed_images
from adtr.training.gaussian import fit_gaussian
from adtr.training.loop import train
from adtr.training.remembering import remember
from conftest import SMALL

IMAGES, FOLDS = 11, 3
CONFIG = load_preset("quick").override(**{**SMALL, "epochs": 2})


@pytest.fixture(scope="module")
def network() -> ADTR:
    torch.manual_seed(0)
    return ADTR(CONFIG, "random")


@pytest.fixture(scope="module")
def cache(network: ADTR, dataset: Path) -> FeatureCache:
    return embed_images(network, list_images(dataset / "train/good")[:IMAGES]).cache


def test_it_is_training_each_fold_by_hand(network: ADTR, cache: FeatureCache) -> None:
    scores, maps = cross_fit(network, cache, FOLDS, CONFIG.training)
    fold_of = np.random.default_rng(CONFIG.training.seed).permutation(IMAGES) % FOLDS
    for image in range(IMAGES):
        others = torch.from_numpy(np.flatnonzero(fold_of != fold_of[image]))
        assert image not in others
        rows = cache[others]
        other = copy.deepcopy(network)
        other.feature_mean.copy_(rows.mean(dim=(0, 1)))
        other.feature_std.copy_(rows.std(dim=(0, 1), correction=0))
        train(other, GoodImages(other, cache, others), CONFIG.training, device=torch.device("cpu"))
        remember(other, cache, others, CONFIG.training.seed)
        fit_gaussian(other, cache, others, CONFIG.training.seed)
        with torch.inference_mode():
            expected = other.compare(other.standardize(cache[torch.tensor([image])]))
        assert scores[image] == pytest.approx(float(expected.scores[0]), rel=1e-3)
        np.testing.assert_allclose(maps[image], expected.maps[0], rtol=1e-2)


def test_an_image_has_no_say_in_its_own_score(network: ADTR, cache: FeatureCache) -> None:
    """What another image of its fold looks like changes nothing; what an image of another fold looks like does."""
    scores, _ = cross_fit(network, cache, FOLDS, CONFIG.training)
    fold_of = np.random.default_rng(CONFIG.training.seed).permutation(IMAGES) % FOLDS
    features = cache.features.clone()
    features[0] += 3 * torch.randn(features[0].shape, generator=torch.Generator().manual_seed(0))
    changed, _ = cross_fit(network, FeatureCache.of(features), FOLDS, CONFIG.training)
    with_it = fold_of == fold_of[0]
    with_it[0] = False
    assert with_it.any()
    np.testing.assert_array_equal(changed[with_it], scores[with_it])
    assert (changed[fold_of != fold_of[0]] != scores[fold_of != fold_of[0]]).all()


@pytest.mark.parametrize("folds", [2, 4, IMAGES])
def test_the_folds_are_a_partition_of_nearly_equal_parts(
    network: ADTR, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch, folds: int
) -> None:
    learned: list[set[int]] = []
    judged: list[set[int]] = []

    def remember(_: ADTR, __: FeatureCache, rows: np.ndarray, *___: object, **____: object) -> None:
        learned.append(set(rows.tolist()))

    def score(_: ADTR, __: FeatureCache, index: torch.Tensor, *___: object) -> tuple[np.ndarray, np.ndarray]:
        judged.append(set(index.tolist()))
        return index.numpy().astype(np.float32), np.repeat(index.numpy(), 64).reshape(-1, 8, 8).astype(np.float32)

    monkeypatch.setattr(cross_fitting, "train_on_good", remember)
    monkeypatch.setattr(cross_fitting, "score_cached", score)
    scores, maps = cross_fit(network, cache, folds, CONFIG.training)
    everything = set(range(IMAGES))
    assert len(learned) == len(judged) == folds
    assert sorted(image for fold in judged for image in fold) == sorted(everything)
    assert all(a | b == everything and not a & b for a, b in zip(learned, judged, strict=True))
    assert max(map(len, judged)) - min(map(len, judged)) <= 1
    assert scores.tolist() == maps[:, 3, 5].tolist() == list(range(IMAGES))  # each result lands at its own image


def test_it_is_deterministic_and_leaves_the_network_as_it_was(network: ADTR, cache: FeatureCache) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, maps = cross_fit(network, cache, FOLDS, CONFIG.training)
    second, again = cross_fit(network, cache, FOLDS, CONFIG.training)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(maps, again)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    other, _ = cross_fit(network, cache, FOLDS, replace(CONFIG.training, seed=1))
    assert (first != other).any()

import numpy as np
import pytest
import torch

from adtr.model.mahalanobis import CHANNELS, Mahalanobis

LEVELS = ((2, 4), (3, 8), (1, 16), (4, 32))


def features(seed: int = 0, images: int = 3) -> torch.Tensor:
    return torch.randn(images, 12, 10, generator=torch.Generator().manual_seed(seed))


def filled(seed: int = 0, scale: float = 1.0) -> Mahalanobis:
    gaussian, rng = Mahalanobis(LEVELS), np.random.default_rng(seed)
    gaussian.fill(torch.tensor(rng.normal(size=10)), torch.tensor(rng.normal(size=(10, 10))), torch.tensor(scale))
    return gaussian


def described(levels: tuple[tuple[int, int], ...]) -> list[int]:
    gaussian = Mahalanobis(levels)
    return (gaussian.span.start + gaussian.chosen).tolist()


def test_the_coarse_levels_are_described_or_all_where_there_is_none() -> None:
    assert described(LEVELS) == [5, 6, 7, 8, 9]
    assert described(((2, 4), (3, 8))) == [0, 1, 2, 3, 4]


def test_of_many_channels_some_stand_for_all() -> None:
    channels = described(((5, 8), (1000, 16), (2000, 32)))
    assert len(set(channels)) == CHANNELS
    assert (channels[0], channels[-1]) == (5, 3004)
    assert len(described(((CHANNELS, 16),))) == CHANNELS


def test_of_many_channels_those_are_described() -> None:
    levels = ((5, 8), (1000, 16))
    images = torch.randn(2, 12, 1005, generator=torch.Generator().manual_seed(0))
    own = images[..., described(levels)].numpy()
    literal = np.concatenate([own.mean(axis=1), own.std(axis=1)], axis=1)
    np.testing.assert_allclose(Mahalanobis(levels).describe(images), literal, rtol=1e-5, atol=1e-6)


def test_a_description_is_the_mean_and_the_deviation_of_each_channel() -> None:
    own = features()[..., 5:].numpy()
    literal = np.concatenate([own.mean(axis=1), own.std(axis=1)], axis=1)
    np.testing.assert_allclose(Mahalanobis(LEVELS).describe(features()), literal, rtol=1e-5, atol=1e-6)


def test_the_distance_is_the_literal_one() -> None:
    gaussian, images = filled(scale=3.0), features()
    whitening = gaussian.whitening.double().numpy()
    precision = whitening @ whitening.T
    gaps = gaussian.describe(images).double().numpy() - gaussian.mean.double().numpy()
    literal = [3 * np.sqrt(gap @ precision @ gap) for gap in gaps]
    np.testing.assert_allclose(gaussian(images), literal, rtol=1e-4)


def test_it_is_empty_until_it_is_filled_and_when_it_is_emptied() -> None:
    gaussian = filled(scale=3.0)
    assert gaussian.is_filled
    assert not Mahalanobis(LEVELS).is_filled
    gaussian.empty()
    assert not gaussian.is_filled
    assert gaussian.scale == 1


@pytest.mark.parametrize("gaussian", [filled(scale=2.0), Mahalanobis(LEVELS)], ids=["filled", "empty"])
def test_a_stored_one_comes_back_exactly(gaussian: Mahalanobis) -> None:
    other = Mahalanobis(LEVELS)
    other.restore(**gaussian.stored())
    assert other.is_filled == gaussian.is_filled
    assert torch.equal(other(features()), gaussian(features()))


@pytest.mark.parametrize(("mean", "whitening"), [(9, (10, 10)), (10, (9, 9)), (10, (10, 5)), (10, (100,))])
def test_one_of_another_shape_is_refused(mean: int, whitening: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="cannot have the shape"):
        Mahalanobis(LEVELS).restore(torch.zeros(mean), torch.zeros(whitening), torch.ones(()))

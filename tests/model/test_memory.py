import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adtr.model.memory import BLOCK, POWER, SHARES, Memory, excess, lift, nearest_distance

LEVELS = ((2, 4), (3, 8), (1, 16), (4, 32))
CHANNELS, DETAILS = 10, 5


def memory(size: int = 5, details: int = DETAILS) -> Memory:
    return Memory(LEVELS, details, (3, 4), size)


def tokens(seed: int = 0, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 12, CHANNELS + 4 * DETAILS, generator=torch.Generator().manual_seed(seed))


def filled(seed: int = 0) -> Memory:
    made, generator = memory(), torch.Generator().manual_seed(seed)
    for kind in made.patches().values():
        kind.fill(torch.randn(5, kind.patches.shape[1], generator=generator), torch.tensor([0.4, 1.5]))
    made.typical = torch.tensor([0.2, 0.7])
    return made


def literal_mean_around(places: np.ndarray) -> np.ndarray:
    """The weighted mean around each place of (h, w, D)."""
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}
    around = np.zeros_like(places)
    height, width = places.shape[:2]
    for y, x in np.ndindex(height, width):
        for (v, down), (u, right) in itertools.product(weights.items(), repeat=2):
            if 0 <= y + v < height and 0 <= x + u < width:
                around[y, x] += down * right * places[y + v, x + u]
    return around


def test_parts_are_made_of_the_middle_levels_or_of_all_where_there_is_none() -> None:
    assert memory().patches()["parts"].columns == range(2, 6)
    without = Memory(((2, 4), (3, 32)), 0, (3, 4), 5)
    assert without.patches()["parts"].columns == range(5)
    assert list(without.patches()) == ["parts"]
    assert without.map_size == (3, 4)
    assert memory().map_size == (6, 8)


def test_a_part_is_the_weighted_mean_around_a_token() -> None:
    features = tokens()
    described = memory().patches()["parts"].describe(features)
    for image in range(2):
        own = features[image, :, 2:6].unflatten(0, (3, 4)).numpy()
        np.testing.assert_allclose(described[image], literal_mean_around(own), rtol=1e-5, atol=1e-6)


def test_a_detail_is_the_weighted_mean_around_a_place_inside_a_token() -> None:
    features = tokens()
    described = memory().patches()["details"].describe(features)
    assert described.shape == (2, 6, 8, DETAILS)
    for image in range(2):
        places = np.zeros((6, 8, DETAILS), np.float32)
        for y, x, channel in np.ndindex(*places.shape):
            token = features[image, (y // 2) * 4 + x // 2]
            places[y, x, channel] = token[CHANNELS + (2 * (y % 2) + x % 2) * DETAILS + channel]
        np.testing.assert_allclose(described[image], literal_mean_around(places), rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
def test_the_nearest_distance_is_that_of_the_literal_search(points: int, dims: int, others: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(points, dims)), rng.normal(size=(others, dims))
    literal = [min(math.dist(p, q) for q in b) for p in a]
    found = nearest_distance(torch.tensor(a), torch.tensor(b), lift(torch.tensor(b)))
    np.testing.assert_allclose(found, literal, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(1, 3 * BLOCK), st.integers(0, 1000))
def test_a_rounded_search_does_not_round_the_distance(points: int, dims: int, others: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(rows, dims, generator=generator) for rows in (points, others))
    exact = nearest_distance(a[None], b, lift(b))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = nearest_distance(a[None], b, lift(b))
    assert exact.shape == rounded.shape == (1, points)
    assert rounded.dtype == torch.float32
    literal = torch.linalg.vector_norm(a[:, None] - b, dim=-1)
    assert ((rounded[0, :, None] - literal).abs().amin(-1) < 1e-4).all()  # the very distance of one of them
    largest = max(1.0, float(b.square().sum(-1).max() + a.square().sum(-1).max()))
    assert (rounded.square() - exact.square()).max() < 2**-6 * largest  # one as near, but for what bfloat16 tells apart


def test_of_equal_neighbours_any_will_do() -> None:
    others = torch.ones(BLOCK + 1, 3)  # the second block is filled up with the first's
    with torch.autocast("cpu", torch.bfloat16):
        assert nearest_distance(torch.zeros(2, 3), others, lift(others)) == pytest.approx(3**0.5)


def test_an_excess_is_0_at_what_is_typical_and_1_at_the_highest_of_good_images() -> None:
    values = torch.tensor([0.0, 2.0, 3.5, 5.0, 8.0])
    assert excess(values, torch.tensor([2.0, 3.0])).tolist() == [0, 0, 0.5, 1, 2]


def test_what_is_remembered_exceeds_nothing() -> None:
    remembering, features = memory(), tokens()
    assert not remembering.is_filled
    for kind in remembering.patches().values():
        assert not remembering.is_filled  # until both are
        kind.fill(kind.describe(features)[0].flatten(0, 1)[:5], torch.tensor([0.0, 1.0]))
    assert remembering.is_filled
    for kind in remembering.patches().values():
        apart = kind(features)
        assert apart[0].flatten()[:5].max() < 0.1  # but for half precision
        assert apart[1].min() > 0.1


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_excesses_add_up_by_their_powers(weight: float) -> None:
    remembering, features = filled(), tokens()
    errors = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(5)) * 3
    found = remembering(errors, features, weight)
    assert found.shape == (2, 6, 8)
    total = torch.zeros(2, 6, 8)
    own = ((errors - 0.2) / 0.7).clamp_min(0) ** POWER
    total += torch.nn.functional.interpolate(own[:, None], size=(6, 8), mode="bilinear")[:, 0]
    for name, kind in remembering.patches().items():
        points, others = kind.describe(features).flatten(0, 2), kind.patches.half().float()
        distances = torch.cdist(points, others).amin(1).view(2, 3 * kind.fold, 4 * kind.fold)
        apart = ((distances - 0.4) / 1.5).clamp_min(0) ** POWER
        total += (
            weight * SHARES[name] * torch.nn.functional.interpolate(apart[:, None], size=(6, 8), mode="bilinear")[:, 0]
        )
    torch.testing.assert_close(found, 0.7 * total ** (1 / POWER), rtol=1e-3, atol=1e-3)


def test_a_stored_memory_comes_back_exactly() -> None:
    first, second = filled(3), memory()
    second.restore(first.stored())
    assert torch.equal(first(torch.ones(2, 3, 4), tokens(), 2.0), second(torch.ones(2, 3, 4), tokens(), 2.0))
    assert first.stored().keys() == set(first.state_dict())


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("kinds.parts.patches", (6, 4)),
        ("kinds.parts.patches", (4, 3)),
        ("kinds.details.patches", (2, 4, 5)),
        ("kinds.details.typical", (3,)),
        ("typical", ()),
    ],
)
def test_a_memory_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    stored = filled().stored()
    stored[name] = torch.zeros(shape).to(stored[name])
    with pytest.raises(RuntimeError, match="of the shape"):
        memory().restore(stored)


def test_a_memory_of_other_kinds_is_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be made of"):
        memory(details=0).restore(filled().stored())

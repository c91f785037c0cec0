import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adtr.model.memory import SHARES, Memory, nearest_distance

LEVELS = ((2, 4), (3, 8), (1, 16), (4, 32))


def memory(size: int = 5) -> Memory:
    return Memory(LEVELS, (3, 4), size)


def tokens(seed: int = 0, images: int = 2) -> torch.Tensor:
    return torch.randn(images, 12, 10, generator=torch.Generator().manual_seed(seed))


def test_the_middle_levels_are_remembered_or_all_where_there_is_none() -> None:
    assert memory().channels.tolist() == [2, 3, 4, 5]
    assert Memory(((2, 4), (3, 32)), (3, 4), 5).channels.tolist() == [0, 1, 2, 3, 4]


def test_a_description_is_the_token_and_the_weighted_mean_around_it() -> None:
    features = tokens()
    described = memory().describe(features)
    assert described.shape == (2, 2, 12, 4)
    own = features[..., 2:6].numpy()
    weights = {-1: 0.25, 0: 0.5, 1: 0.25}
    for image in range(2):
        for y in range(3):
            for x in range(4):
                around = np.zeros(4)
                for (v, down), (u, right) in itertools.product(weights.items(), repeat=2):
                    if 0 <= y + v < 3 and 0 <= x + u < 4:
                        around += down * right * own[image, (y + v) * 4 + x + u]
                literal = np.stack([own[image, y * 4 + x], around])
                np.testing.assert_allclose(described[:, image, y * 4 + x], literal, rtol=1e-5, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 1000))
def test_the_nearest_distance_is_that_of_the_literal_search(points: int, dims: int, others: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(points, dims)), rng.normal(size=(others, dims))
    literal = [min(math.dist(p, q) for q in b) for p in a]
    found = nearest_distance(torch.tensor(a), torch.tensor(b), torch.tensor((b**2).sum(-1)))
    np.testing.assert_allclose(found, literal, rtol=1e-4, atol=1e-4)


def test_what_is_remembered_is_at_no_distance_and_the_scale_multiplies() -> None:
    remembering, features = memory(), tokens()
    assert not remembering.is_filled
    patches = remembering.describe(features)[:, 0, :5]
    remembering.fill(patches, torch.ones(2))
    assert remembering.is_filled
    once = remembering(features)
    assert once.shape == (2, 3, 4)
    assert once[0].flatten()[:5].max() < 0.1  # but for half precision
    assert once[1].min() > 0.1
    remembering.fill(patches, torch.tensor([3.0, 3.0]))
    torch.testing.assert_close(remembering(features), 3 * once)


def test_each_kind_counts_by_its_share_and_its_scale() -> None:
    remembering, features = memory(), tokens()
    patches, scale = torch.randn(2, 5, 4), torch.tensor([2.0, 3.0])
    remembering.fill(patches, scale)
    described, remembered = remembering.describe(features), patches.half().float()
    literal = sum(
        share * each * torch.cdist(points.flatten(0, 1), others).amin(1)
        for share, each, points, others in zip(SHARES, scale, described, remembered, strict=True)
    )
    torch.testing.assert_close(remembering(features).flatten(), literal, rtol=1e-3, atol=1e-3)


def test_a_stored_memory_comes_back_exactly() -> None:
    first, second = memory(), memory()
    first.fill(torch.randn(2, 4, 4), torch.tensor([1.7, 0.3]))
    second.restore(**first.stored())
    assert torch.equal(first.patches, second.patches)
    assert torch.equal(first(tokens()), second(tokens()))


@pytest.mark.parametrize(
    ("patches", "scale"), [((2, 6, 4), 2), ((2, 4, 3), 2), ((4, 4), 2), ((1, 4, 4), 2), ((2, 4, 4), 3)]
)
def test_a_memory_of_another_shape_is_refused(patches: tuple[int, ...], scale: int) -> None:
    with pytest.raises(RuntimeError, match="cannot have the shape"):
        memory().restore(torch.zeros(patches).half(), torch.ones(scale))

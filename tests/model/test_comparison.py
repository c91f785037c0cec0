import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adtr.model.comparison import feature_difference, image_score, score_map

Array = NDArray[np.float64]


def bilinear(grid: Array, size: tuple[int, int]) -> Array:
    """Pixel by pixel: centres of pixels and of grid cells are aligned, what lies outside repeats the border."""

    def neighbours(target: int, count: int, source: int) -> tuple[int, int, float]:
        position = min(max((target + 0.5) * source / count - 0.5, 0.0), source - 1.0)
        low = math.floor(position)
        return low, min(low + 1, source - 1), position - low

    out = np.zeros(size)
    for y in range(size[0]):
        top, bottom, v = neighbours(y, size[0], grid.shape[0])
        for x in range(size[1]):
            left, right, h = neighbours(x, size[1], grid.shape[1])
            out[y, x] = (1 - v) * ((1 - h) * grid[top, left] + h * grid[top, right]) + v * (
                (1 - h) * grid[bottom, left] + h * grid[bottom, right]
            )
    return out


def literal_image_score(grid: Array, size: tuple[int, int], pool_size: float) -> float:
    """The largest mean of any whole window of the map at image size."""
    pixels = bilinear(grid, size)
    height, width = (max(1, round(pool_size * side)) for side in size)
    return max(
        pixels[y : y + height, x : x + width].mean()
        for y in range(size[0] - height + 1)
        for x in range(size[1] - width + 1)
    )


def test_the_difference_is_equation_2() -> None:
    features, reconstructed = torch.randn(2, 2, 3, 4)
    difference = feature_difference(features, reconstructed)
    for b, u, i in np.ndindex(2, 3, 4):
        assert float(difference[b, u, i]) == float(features[b, u, i] - reconstructed[b, u, i])


def test_the_score_map_is_equation_3() -> None:
    difference = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    maps = score_map(difference, (2, 3))
    assert maps.shape == (2, 2, 3)
    for b, row, column in np.ndindex(2, 2, 3):
        u = row * 3 + column  # positions run along the rows
        norm = math.sqrt(sum(float(difference[b, u, i]) ** 2 for i in range(5)))
        assert float(maps[b, row, column]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(
    ("grid", "size", "pool_size"),
    [
        ((4, 4), (32, 32), 0.125),
        ((4, 4), (32, 32), 0.0),
        ((4, 4), (16, 16), 1.0),
        ((3, 5), (24, 40), 0.1),
        ((5, 2), (31, 17), 0.3),
        ((1, 1), (8, 8), 0.25),
        ((8, 8), (8, 8), 0.25),
        ((6, 6), (9, 12), 0.2),
    ],
)
def test_the_image_score_is_the_maximum_of_the_pooled_map(
    grid: tuple[int, int], size: tuple[int, int], pool_size: float
) -> None:
    maps = torch.rand(3, *grid, generator=torch.Generator().manual_seed(0))
    scores = image_score(maps, size, pool_size)
    assert scores.shape == (3,)
    expected = [literal_image_score(m, size, pool_size) for m in maps.double().numpy()]
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5)


def test_the_paper_pools_16_pixels_at_256() -> None:
    maps = torch.rand(2, 16, 16, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(maps[:, None], size=(256, 256), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.avg_pool2d(pixels, 16, stride=1).flatten(1).max(dim=1).values
    torch.testing.assert_close(image_score(maps, (256, 256), 0.0625), expected)


def test_the_image_score_is_at_most_the_maps_maximum() -> None:
    maps = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (image_score(maps, (64, 64), 0.1) <= maps.amax(dim=(1, 2))).all()
    constant = torch.full((1, 8, 8), 2.5)
    assert float(image_score(constant, (64, 64), 0.1)) == pytest.approx(2.5)

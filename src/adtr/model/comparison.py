"""Comparison (Figure 2c): the difference between features and their reconstruction becomes scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from adtr.settings import Size


def feature_difference(features: Tensor, reconstructed: Tensor) -> Tensor:
    """d(i, u) of Eq. 2: f - f-hat, (B, N, C)."""
    return features - reconstructed


def score_map(difference: Tensor, grid: Size) -> Tensor:
    """s(u) of Eq. 3: the L2 norm over channels of the difference.

    Args:
        difference: d, (B, N, C).
        grid: height and width of the token grid, N = height * width.

    Returns:
        (B, height, width), at least 0.
    """
    return torch.linalg.vector_norm(difference, dim=-1).unflatten(-1, grid)


def image_score(maps: Tensor, image_size: Size, pool_size: float) -> Tensor:
    """The maximum of the averagely pooled score map (Section 3.1), pooled with stride 1 at image resolution.

    Args:
        maps: s on the token grid, (B, h, w).
        image_size: height and width to which the map is brought (bilinear) before pooling, pixels.
        pool_size: side of the pooling window as a share of the image's side; at least one pixel.

    Returns:
        (B,).
    """
    rows, columns = (
        _pooling_matrix(torch.eye(cells, dtype=maps.dtype, device=maps.device), side, max(1, round(pool_size * side)))
        for cells, side in zip(maps.shape[1:], image_size, strict=True)
    )
    return (rows @ maps @ columns.T).amax(dim=(1, 2))


def _pooling_matrix(unit: Tensor, side: int, window: int) -> Tensor:
    """What interpolates and pools in one direction, (side - window + 1, cells): both are linear, and separable.

    Args:
        unit: the unit matrix, (cells, cells).
        side: pixels.
        window: pixels.
    """
    interpolated = functional.interpolate(unit.unsqueeze(0), size=side, mode="linear", align_corners=False)
    return functional.avg_pool1d(interpolated, window, stride=1)[0].T

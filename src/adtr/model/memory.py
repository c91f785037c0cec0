"""Memory: the distance of features to the nearest that good images showed; beyond the paper.

A transformer learns to reconstruct some anomalies too, and misses rare good patches; a nearest neighbour errs at other
places, and their sum errs less than either. Patches of two kinds are remembered: tokens, which show small defects, and,
much as in PatchCore (Roth et al., 2022), means around tokens, which show faint ones. See `adtr.training.remembering`.

Shapes: B images, N = H * W tokens, C feature channels, M patches of each of 2 kinds, D channels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.settings import Size

STRIDES = (8, 16)
"""Of the levels that are remembered: finer ones know no more than texture, coarser ones do not tell where."""
SHARES = (1.0, 2.0)
"""What the distances of the two kinds of patch count, the token's and that of the mean around it."""


class Memory(nn.Module):
    """Remembered patches of good images.

    Args:
        levels: channels and stride of each; those with a stride in `STRIDES` are remembered, all where none has one.
        grid: height and width of the token grid.
        size: patches of each kind to remember at most; 0: none.
    """

    channels: Tensor
    """Which of the features' channels are remembered."""
    patches: Tensor
    """Tokens of good images, and means around them, (2, M, D); empty until something is remembered."""
    scale: Tensor
    """Brings the distances of each kind to the units of the score map s(u), (2,)."""
    squares: Tensor
    """Squared norms of the patches, (2, M), which every search needs."""
    shares: Tensor

    def __init__(self, levels: Sequence[tuple[int, int]], grid: Size, size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        chosen = channels_of(levels, STRIDES)
        self.register_buffer("channels", chosen, persistent=False)
        self.register_buffer("shares", torch.tensor(SHARES), persistent=False)
        self.register_buffer("patches", torch.zeros(2, 0, len(chosen)))
        self.register_buffer("squares", torch.zeros(2, 0), persistent=False)
        self.register_buffer("scale", torch.ones(2))

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to be near to."""
        return self.patches.shape[1] > 0

    def describe(self, features: Tensor) -> Tensor:
        """The remembered channels of each token, and their mean around it: (B, N, C) to (2, B, N, D).

        The mean is over 3x3 tokens with the weights 1, 2, 1 each way. What lies outside the image counts as 0, so that
        tokens at the border, of whose surroundings less is seen, differ less.
        """
        own = features[..., self.channels]
        maps = own.transpose(1, 2).unflatten(-1, self.grid)
        around = functional.avg_pool2d(functional.avg_pool2d(maps, 2, stride=1, padding=1), 2, stride=1)
        return torch.stack((own, around.flatten(2).transpose(1, 2)))

    def forward(self, features: Tensor) -> Tensor:
        """Distance to the nearest remembered patches, in units of s(u): (B, N, C) to (B, H, W) float32."""
        if not torch.compiler.is_exporting() and features.device.type == "cpu" and len(features) > 1:
            return torch.cat([self(image) for image in features.split(1)])  # N * M products stay in the caches
        described = self.describe(features)
        kinds = zip(described, self.patches, self.squares, strict=True)
        distances = torch.stack([nearest_distance(*kind) for kind in kinds], dim=-1)
        return (distances * self.shares * self.scale).sum(-1).unflatten(-1, self.grid)

    def fill(self, patches: Tensor, scale: Tensor) -> None:
        """Remember these, (2, M, D), in the precision in which they are stored; `scale` is (2,)."""
        self.patches = patches.half().to(self.patches)
        self.squares = self.patches.square().sum(-1)
        self.scale = scale.to(self.scale)

    def stored(self) -> dict[str, Tensor]:
        """What a model file keeps."""
        return {"patches": self.patches.half(), "scale": self.scale}

    def restore(self, patches: Tensor, scale: Tensor) -> None:
        """The inverse of `stored`.

        Raises:
            RuntimeError: one has not the shape that the configuration gives it.
        """
        kinds, _, dimensions = self.patches.shape
        if patches.ndim != 3 or patches.shape[::2] != (kinds, dimensions) or patches.shape[1] > self.size:
            raise RuntimeError(f"a memory of {self.size} patches cannot have the shape {tuple(patches.shape)}")
        if scale.shape != self.scale.shape:
            raise RuntimeError(f"a memory's scale cannot have the shape {tuple(scale.shape)}")
        self.fill(patches, scale)


def channels_of(levels: Sequence[tuple[int, int]], strides: Sequence[int]) -> Tensor:
    """Places among all channels of those of the levels with such strides; of all levels where none has one.

    Args:
        levels: channels and stride of each.
        strides: wanted.
    """
    wanted = torch.tensor([stride in strides for channels, stride in levels for _ in range(channels)])
    return wanted.nonzero().flatten() if wanted.any() else torch.arange(len(wanted))


def nearest_distance(points: Tensor, others: Tensor, squares: Tensor) -> Tensor:
    """Euclidean distance of points (..., D) to the nearest of others (M, D), (...) float32.

    The search may be rounded, in bf16 say; the distance to what it found is not.

    Args:
        points: whose distances are asked for.
        others: among which the nearest is sought.
        squares: their squared norms, (M,).
    """
    nearest = (squares - 2 * (points @ others.T).float()).argmin(-1)
    return torch.linalg.vector_norm(points - others[nearest], dim=-1)

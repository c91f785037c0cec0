"""Memory: the distance of features to the nearest that good images showed; beyond the paper.

A transformer learns to reconstruct some anomalies too, and misses rare good patches; a nearest neighbour errs at other
places, and their sum errs less than either. As in PatchCore (Roth et al., 2022), patches are remembered with their
neighbourhood; `adtr.training.remembering` chooses which.

Shapes: B images, N = H * W tokens, C feature channels, M patches of D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.settings import Size

STRIDES = (8, 16)
"""Of the levels that are remembered: finer ones know no more than texture, coarser ones do not tell where."""
NEIGHBOURHOOD = 3
"""Side of the window, tokens, whose mean joins each token."""


class Memory(nn.Module):
    """Remembered patches of good images.

    Args:
        levels: channels and stride of each; those with a stride in `STRIDES` are remembered, all where none has one.
        grid: height and width of the token grid.
        size: patches to remember at most; 0: none.
    """

    channels: Tensor
    """Which of the features' channels are remembered."""
    patches: Tensor
    """Descriptions of tokens of good images, (M, D); empty until something is remembered."""
    scale: Tensor
    """Brings distances to the units of the score map s(u)."""

    def __init__(self, levels: Sequence[tuple[int, int]], grid: Size, size: int) -> None:
        super().__init__()
        self.grid, self.size = grid, size
        wanted = torch.tensor([stride in STRIDES for channels, stride in levels for _ in range(channels)])
        chosen = wanted.nonzero().flatten() if wanted.any() else torch.arange(len(wanted))
        self.register_buffer("channels", chosen, persistent=False)
        self.register_buffer("patches", torch.zeros(0, 2 * len(chosen)))
        self.register_buffer("scale", torch.ones(()))

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to be near to."""
        return len(self.patches) > 0

    def describe(self, features: Tensor) -> Tensor:
        """A token's remembered channels and their mean around it: standardised features (B, N, C) to (B, N, D)."""
        own = features[..., self.channels]
        maps = own.transpose(1, 2).unflatten(-1, self.grid)
        around = functional.avg_pool2d(maps, NEIGHBOURHOOD, 1, NEIGHBOURHOOD // 2, count_include_pad=False)
        return torch.cat((own, around.flatten(2).transpose(1, 2)), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Distance to the nearest remembered patch, in units of s(u): (B, N, C) to (B, H, W) float32."""
        if not torch.compiler.is_exporting() and features.device.type == "cpu" and len(features) > 1:
            return torch.cat([self(image) for image in features.split(1)])  # N * M products stay in the caches
        distance = nearest_distance(self.describe(features), self.patches)
        return (self.scale * distance).unflatten(-1, self.grid)

    def fill(self, patches: Tensor, scale: float) -> None:
        """Remember these, (M, D), in the precision in which they are stored."""
        self.patches = patches.half().to(self.patches)
        self.scale.fill_(scale)

    def stored(self) -> dict[str, Tensor]:
        """What a model file keeps."""
        return {"patches": self.patches.half(), "scale": self.scale}

    def restore(self, patches: Tensor, scale: Tensor) -> None:
        """The inverse of `stored`.

        Raises:
            RuntimeError: one has not the shape that the configuration gives it.
        """
        if patches.ndim != 2 or patches.shape[1] != self.patches.shape[1] or len(patches) > self.size or scale.ndim:
            raise RuntimeError(f"a memory of {self.size} patches cannot have the shape {tuple(patches.shape)}")
        self.fill(patches, float(scale))


def nearest_distance(points: Tensor, others: Tensor) -> Tensor:
    """Euclidean distance of points (..., D) to the nearest of others (M, D), (...) float32.

    The search may be rounded, in bf16 say; the distance to what it found is not.
    """
    products = (points @ others.T).float()
    nearest = (others.square().sum(-1) - 2 * products).argmin(-1)
    return torch.linalg.vector_norm(points - others[nearest], dim=-1)

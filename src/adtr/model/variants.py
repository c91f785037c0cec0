"""What the ablations of Table 4 put in the place of a part of the method; each is a value of the configuration.

Shapes: B images, N = H * W tokens, C feature channels, D the transformer's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adtr.config import ReconstructionConfig
from adtr.errors import ConfigError
from adtr.model.backbones import Backbone, state_sha256
from adtr.settings import Size


class Concatenation(nn.Linear):
    """In place of an attention layer (Table 4a, "w/o Attn"): its inputs, concatenated and projected.

    Every token sees only the query, key and value at its own position. It has three quarters of the weights.
    """

    def __init__(self, width: int) -> None:
        super().__init__(3 * width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:  # type: ignore[override]
        """Three inputs (B or 1, N, D) to (B, N, D)."""
        inputs = torch.broadcast_tensors(query, key, value)
        return super().forward(torch.cat(inputs, dim=-1))


class ResidualBlock(nn.Module):
    """ResNet's basic block (He et al., CVPR 2016): two 3x3 convolutions with batch normalisation and a shortcut."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(hidden)
        self.convolution2 = nn.Conv2d(hidden, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) to the same."""
        inner = self.norm1(self.convolution1(x)).relu()
        return (x + self.norm2(self.convolution2(inner))).relu()


class ConvolutionalReconstruction(nn.Module):
    """The CNN of Table 4a, revised from ResNet: basic blocks at the grid's resolution between the two 1x1 projections.

    It has as many blocks as the transformer has layers, and hidden channels such that it has as many parameters.

    Args:
        channels: C, channels of the feature tokens.
        grid: height and width of the token grid.
        config: sizes of the transformer that it stands beside.
    """

    def __init__(self, channels: int, grid: Size, config: ReconstructionConfig) -> None:
        super().__init__()
        self.grid = grid
        blocks = config.encoder_layers + config.decoder_layers
        hidden = max(1, round(transformer_weights(config, grid[0] * grid[1]) / (blocks * 18 * config.width)))
        self.project_in = nn.Linear(channels, config.width)
        self.blocks = nn.Sequential(*(ResidualBlock(config.width, hidden) for _ in range(blocks)))
        self.project_out = nn.Linear(config.width, channels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        maps = self.project_in(features).transpose(1, 2).unflatten(-1, self.grid)
        return self.project_out(self.blocks(maps).flatten(2).transpose(1, 2))


def transformer_weights(config: ReconstructionConfig, tokens: int) -> int:
    """Weights of the transformer without its two projections: those of attention, feed-forward and embeddings."""
    attention = 4 * config.width**2
    feedforward = 2 * config.width * config.feedforward
    layers = config.encoder_layers * (attention + feedforward) + config.decoder_layers * (2 * attention + feedforward)
    return layers + 2 * tokens * config.width


class Patches(nn.Module):
    """Cuts images into a grid of patches, whose pixels become channels (Table 4b, "Pixels").

    Args:
        patch: height and width, pixels.
    """

    def __init__(self, patch: Size) -> None:
        super().__init__()
        self.patch = patch

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, h, w) to one level, (B, 3 * patch area, H, W)."""
        height, width = self.patch
        patches = images.unflatten(3, (-1, width)).unflatten(2, (-1, height))  # (B, 3, H, height, W, width)
        return [patches.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)]


def create_patches(image_size: Size, grid_size: Size) -> Backbone:
    """What serves as the backbone where pixels are reconstructed: it needs no weights.

    Raises:
        ConfigError: the image cannot be cut into as many equal patches.
    """
    if image_size[0] % grid_size[0] or image_size[1] % grid_size[1]:
        image, grid = ("x".join(map(str, size)) for size in (image_size, grid_size))
        raise ConfigError(
            f"target pixels needs an image size that is a multiple of the grid size, not {image} of {grid}"
        )
    patch = image_size[0] // grid_size[0], image_size[1] // grid_size[1]
    return Backbone(
        network=Patches(patch),
        channels=(3 * patch[0] * patch[1],),
        strides=(max(patch),),
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        source="pixels",
        sha256=state_sha256({}),
    )

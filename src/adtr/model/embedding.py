"""Embedding (Figure 2a): a frozen backbone's levels, brought to one grid and concatenated."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.config import EmbeddingConfig
from adtr.errors import ConfigError
from adtr.model.backbones import create_backbone
from adtr.model.folding import fold
from adtr.model.memory import DETAIL_FOLD, DETAIL_STRIDES
from adtr.model.variants import create_patches
from adtr.settings import Size

CPU_CHUNK = 8
"""Images in one pass of the backbone on a CPU: larger activations fall out of the caches."""


class Embedding(nn.Module):
    """Images to feature tokens f (Section 3.1, "Embedding"). Always frozen, always in eval mode.

    Args:
        config: backbone, sizes and levels.
        weights: see `create_backbone`.
        details: append to each token what the fine levels show inside it, for the memory (`adtr.model.memory`).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, config: EmbeddingConfig, weights: str | os.PathLike[str] | None = None, *, details: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        if config.target == "pixels":
            backbone = create_patches(config.image_size, config.grid_size)
        else:
            backbone = create_backbone(config.backbone, weights, levels=config.levels)
        self.weights = backbone.network.state_dict()
        """The backbone's weights as they were loaded, before anything is folded or rounded."""
        self.backbone = fold(backbone.network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.channels = sum(backbone.channels)
        """C, of the features f."""
        self.levels = tuple(zip(backbone.channels, backbone.strides, strict=True))
        """Channels and stride of each level."""
        fine = [i for i, stride in enumerate(backbone.strides) if stride in DETAIL_STRIDES]
        self._fine = fine if details else []
        self.details = sum(backbone.channels[i] for i in self._fine)
        """Channels of each place of the details; 0: there are none."""
        self.columns = self.channels + self.details * DETAIL_FOLD**2
        """Of a token: the features f, then the details."""
        self.source = backbone.source
        self.sha256 = backbone.sha256
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1) * 255, persistent=False)
        self._channels_last_output = getattr(backbone.network, "output_fmt", "NCHW") == "NHWC"
        self._probe()

    def train(self, mode: bool = True) -> Embedding:  # noqa: ARG002 - nn.Module's signature
        """Stay in eval mode: batch statistics of the frozen backbone must never move."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """In which the backbone computes."""
        return next((parameter.dtype for parameter in self.backbone.parameters()), torch.float32)

    def _probe(self) -> None:
        """Fail now, not in mid-run, where a backbone cannot take the image size."""
        try:
            self(torch.zeros(1, *self.config.image_size, 3, dtype=torch.uint8))
        except (RuntimeError, AssertionError, ValueError) as error:
            size = "x".join(map(str, self.config.image_size))
            reason = " ".join(str(error).split())
            raise ConfigError(f"backbone {self.config.backbone} cannot take images of {size}: {reason}") from error

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Feature tokens of a batch.

        Args:
            images: (B, h, w, 3) uint8, RGB, already of the configured image size.

        Returns:
            f, (B, N, C) float32: row-major positions of the grid, channels of the levels from fine to coarse; then, up
            to `columns`, the details, one place after the other.
        """
        if images.device.type == "cpu" and len(images) > CPU_CHUNK:
            return torch.cat([self(chunk) for chunk in images.split(CPU_CHUNK)])
        count = len(images)
        if images.device.type == "cuda":
            images = pad_batch(images)
        # The permuted pixels are channels-last in memory, as the backbone is.
        return self.tokens(images.permute(0, 3, 1, 2).float())[:count]

    def tokens(self, pixels: Tensor) -> Tensor:
        """Feature tokens, (B, N, columns), of pixels in 0..255, (B, 3, h, w) float32, in one pass of the backbone."""
        levels = self.backbone(((pixels - self.mean) / self.std).to(self.dtype))
        if self._channels_last_output:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        height, width = self.config.grid_size
        maps = [_resize(level, (height, width)) for level in levels]
        if self._fine:
            fine = [_resize(levels[i], (DETAIL_FOLD * height, DETAIL_FOLD * width)) for i in self._fine]
            places = torch.cat(fine, dim=-1).unflatten(2, (width, DETAIL_FOLD)).unflatten(1, (height, DETAIL_FOLD))
            maps.append(places.transpose(2, 3).flatten(3))
        return torch.cat([tokens.flatten(1, 2) for tokens in maps], dim=-1)


def pad_batch(images: Tensor) -> Tensor:
    """Black images after those of a batch (B, ...), up to a power of two.

    cuDNN chooses its kernels anew for each size of a batch. On an H200 that took 9 s for two sizes and the 63
    convolutions of EfficientNet-Lite2, so the sizes should be few.
    """
    full = 1 << (len(images) - 1).bit_length()
    return torch.cat([images, images.new_zeros(full - len(images), *images.shape[1:])])


def _resize(level: Tensor, size: Size) -> Tensor:
    """(B, C, h, w) to (B, *size, C)."""
    resized = functional.interpolate(level.float(), size=size, mode="bilinear", align_corners=False)
    return resized.permute(0, 2, 3, 1)

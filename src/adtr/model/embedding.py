"""Embedding (Figure 2a): a frozen backbone's levels, brought to one grid and concatenated."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.config import EmbeddingConfig
from adtr.errors import ConfigError
from adtr.model.backbones import create_backbone


class Embedding(nn.Module):
    """Images to feature tokens f (Section 3.1, "Embedding"). Always frozen, always in eval mode.

    Args:
        config: backbone, sizes and levels.
        weights: see `create_backbone`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EmbeddingConfig, weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.config = config
        backbone = create_backbone(config.backbone, weights, levels=config.levels)
        self.backbone = backbone.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.channels = sum(backbone.channels)
        self.source = backbone.source
        self.sha256 = backbone.sha256
        self.register_buffer("mean", torch.tensor(backbone.mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(backbone.std).view(3, 1, 1) * 255, persistent=False)
        self._channels_last_output = getattr(backbone.network, "output_fmt", "NCHW") == "NHWC"
        self._probe()

    def train(self, mode: bool = True) -> Embedding:  # noqa: ARG002 - nn.Module's signature
        """Stay in eval mode: batch statistics of the frozen backbone must never move."""
        return super().train(False)

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
            f, (B, N, C) float32: row-major positions of the grid, channels of the levels from fine to coarse.
        """
        pixels = images.permute(0, 3, 1, 2).float()  # channels-last in memory, as the backbone is
        levels = self.backbone((pixels - self.mean) / self.std)
        if self._channels_last_output:
            levels = [level.permute(0, 3, 1, 2) for level in levels]
        resized = [
            functional.interpolate(level.float(), size=self.config.grid_size, mode="bilinear", align_corners=False)
            for level in levels
        ]
        return torch.cat(resized, dim=1).flatten(2).transpose(1, 2)

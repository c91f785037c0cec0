"""ADTR as a whole: Embedding -> Reconstruction -> Comparison (Figure 2)."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import Tensor, nn

from adtr.config import Config
from adtr.device import keep_freed_memory
from adtr.model.comparison import feature_difference, image_score, score_map
from adtr.model.embedding import Embedding
from adtr.model.mahalanobis import Mahalanobis
from adtr.model.memory import Memory
from adtr.model.reconstruction import Reconstruction
from adtr.model.variants import ConvolutionalReconstruction
from adtr.settings import Size


class Comparison(NamedTuple):
    """What the network says of a batch."""

    scores: Tensor
    """Image scores, (B,), with the share of the image as a whole."""
    maps: Tensor
    """Score maps s(u), (B, H, W) of `ADTR.map_size`: on the token grid, or with the memory's share on a finer one."""


class ADTR(nn.Module):
    """The network of Section 3.

    `feature_mean` and `feature_std` bring each feature channel to one scale; they are 0 and 1 unless standardised,
    so that the paper's presets compare the backbone's own features.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, config: Config, backbone_weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.config = config
        self._autocast = False
        size = config.comparison.memory_size
        self.embedding = embedding = Embedding(config.embedding, backbone_weights, details=size > 0)
        self.reconstruction = create_reconstruction(embedding.channels, config)
        self.memory = Memory(embedding.levels, embedding.details, config.embedding.grid_size, size)
        self.mahalanobis = Mahalanobis(embedding.levels)
        self.register_buffer("feature_mean", torch.zeros(embedding.columns))
        self.register_buffer("feature_std", torch.ones(embedding.columns))

    def place(self, device: torch.device, precision: str) -> ADTR:
        """Move to a device and choose the arithmetic, "fp32" or "bf16", of the backbone and of `compare`.

        The reconstruction's own weights stay float32, so that they can be trained and saved exactly.
        """
        if device.type == "cpu":
            keep_freed_memory()
        self._autocast = precision == "bf16"
        self.embedding.backbone.to(torch.bfloat16 if self._autocast else torch.float32)
        return self.to(device)

    def standardize(self, features: Tensor) -> Tensor:
        """Tokens in the units in which they are reconstructed and compared, (B, N, columns)."""
        return (features - self.feature_mean) / self.feature_std

    def target(self, features: Tensor) -> Tensor:
        """What the reconstruction is to reproduce of tokens (B, N, columns): f, standardised, (B, N, C)."""
        own = slice(self.embedding.channels)
        return (features[..., own] - self.feature_mean[own]) / self.feature_std[own]

    def difference(self, features: Tensor) -> Tensor:
        """The difference d of Eq. 2 for standardised tokens (B, N, C or more), in the chosen arithmetic; float32."""
        features = features[..., : self.embedding.channels]
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self._autocast):
            reconstructed = self.reconstruction(features).float()
        return feature_difference(features, reconstructed)

    @property
    def map_size(self) -> Size:
        """Height and width of the score maps."""
        return self.memory.map_size if self.memory.is_filled else self.config.embedding.grid_size

    def compare(self, features: Tensor) -> Comparison:
        """Score standardised tokens (B, N, columns)."""
        embedding, comparison = self.config.embedding, self.config.comparison
        maps = score_map(self.difference(features), embedding.grid_size)
        if self.memory.is_filled:
            with torch.autocast(features.device.type, torch.bfloat16, enabled=self._autocast):
                maps = self.memory(maps, features, comparison.memory_weight)
        scores = image_score(maps, embedding.image_size, comparison.pool_size)
        if self.mahalanobis.is_filled:
            scores = scores + comparison.mahalanobis_weight * self.mahalanobis(features)
        return Comparison(scores, maps)

    def forward(self, images: Tensor) -> Comparison:
        """Score images, (B, h, w, 3) uint8 of the configured size."""
        return self.compare(self.standardize(self.embedding(images)))


def create_reconstruction(channels: int, config: Config) -> Reconstruction | ConvolutionalReconstruction:
    """The configured reconstructor of feature tokens of so many channels."""
    grid = config.embedding.grid_size
    if config.reconstruction.reconstructor == "cnn":
        return ConvolutionalReconstruction(channels, grid, config.reconstruction)
    return Reconstruction(channels, grid[0] * grid[1], config.reconstruction)

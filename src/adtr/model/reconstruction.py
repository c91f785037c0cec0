"""Reconstruction (Figure 2b): a transformer with a learned query embedding reconstructs the feature tokens.

Shapes: B images, N = H * W tokens, C feature channels, D the transformer's width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.config import ReconstructionConfig
from adtr.model.variants import Concatenation

NEGLIGIBLE = 1e-20
"""Attention that is none: far below what float32 can add to the rest."""


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Scaled dot-product attention, softmax(q k^T / sqrt(d)) v, on (..., N, d).

    On the CPU the plain products outrun the fused kernel: a training step of 4 + 4 layers on 16x16 tokens, 8 images,
    took 0.29 s against 0.48 s (2 cores, bf16).
    """
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value)
    weights = ((query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)).softmax(dim=-1)
    if not torch.compiler.is_exporting():
        # In place, for the gradient too: a trained network ignores so firmly that many of its weights are subnormal
        # numbers, which double the time of a training step.
        torch.threshold_(weights.data, NEGLIGIBLE, 0.0)
    return weights @ value


class MultiHeadAttention(nn.Module):
    """Multi-head attention whose queries, keys and values come from three inputs of shape (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend from `query` to `key`, read `value`; (B, N, D)."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)

        mixed = attention(split(self.query(query)), split(self.key(key)), split(self.value(value)))
        return self.output(mixed.transpose(1, 2).flatten(2))


def mixing_layer(config: ReconstructionConfig) -> MultiHeadAttention | Concatenation:
    """What a layer of the transformer mixes its inputs by: attention, or what Table 4a has in its place."""
    if config.reconstructor == "no-attention":
        return Concatenation(config.width)
    return MultiHeadAttention(config.width, config.heads)


class FeedForward(nn.Sequential):
    """FC, ReLU, FC (appendix A)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, width))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward network, each with a shortcut and layer normalisation after it."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.self_attention = mixing_layer(config)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """(B, N, D) and (N, D) to (B, N, D)."""
        located = x + position
        x = self.norm1(x + self.self_attention(located, located, x))
        return self.norm2(x + self.feedforward(x))


class DecoderLayer(nn.Module):
    """Self-attention, attention to the encoder's output, and feed-forward network."""

    def __init__(self, config: ReconstructionConfig) -> None:
        super().__init__()
        self.self_attention = mixing_layer(config)
        self.cross_attention = mixing_layer(config)
        self.feedforward = FeedForward(config.width, config.feedforward)
        self.norm1 = nn.LayerNorm(config.width)
        self.norm2 = nn.LayerNorm(config.width)
        self.norm3 = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, memory: Tensor, located_memory: Tensor, position: Tensor) -> Tensor:
        """`x` (B or 1, N, D), the encoder's output (B, N, D) without and with `position` (N, D); returns (B, N, D)."""
        located = x + position
        x = self.norm1(x + self.self_attention(located, located, x))
        x = self.norm2(x + self.cross_attention(x + position, located_memory, memory))
        return self.norm3(x + self.feedforward(x))


class Reconstruction(nn.Module):
    """Feature tokens to reconstructed feature tokens (Section 3.1 and appendix A).

    The learned position embedding is added to queries and keys in every attention layer. The learned query embedding
    enters once, as the decoder's input: what comes out is assembled from what the queries, which know only normal
    images, ask the encoder for (Section 3.2, Eq. 5). Table 4a takes away one of the two: without attention, each layer
    concatenates and projects instead; without query, the decoder's input is the encoder's output.

    Args:
        channels: C, channels of the feature tokens.
        tokens: N, tokens of an image.
        config: sizes of the transformer.
    """

    def __init__(self, channels: int, tokens: int, config: ReconstructionConfig) -> None:
        super().__init__()
        self.project_in = nn.Linear(channels, config.width)  # a 1x1 convolution, on tokens
        self.position = nn.Parameter(torch.empty(tokens, config.width))
        has_query = config.reconstructor != "no-query"
        self.query = nn.Parameter(torch.empty(tokens, config.width)) if has_query else None
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))
        self.project_out = nn.Linear(config.width, channels)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.position, std=0.02)
        if self.query is not None:
            nn.init.normal_(self.query, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        memory = self.project_in(features)
        for layer in self.encoder:
            memory = layer(memory, self.position)
        # One row of queries serves every image until the first cross-attention spreads it over the batch.
        x = memory if self.query is None else self.query.unsqueeze(0)
        located_memory = memory + self.position
        for layer in self.decoder:
            x = layer(x, memory, located_memory, self.position)
        return self.project_out(x)

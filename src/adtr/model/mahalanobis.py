"""Mahalanobis distance of an image as a whole from good ones; beyond the paper (Rippel et al., 2021).

A score map sees each place by itself. An image in which every place looks possible, and yet their mix is one that no
good image had, shows only in the means and deviations of its features. See `adtr.training.gaussian`.

Shapes: B images, N tokens, C feature channels, D dimensions of an image's description, two for each channel described.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from adtr.model.memory import channels_of

STRIDES = (16, 32)
"""Of the levels that describe an image: the finer ones tell less of what it shows."""
CHANNELS = 512
"""At most so many, evenly chosen; the matrix grows with their square."""


class Mahalanobis(nn.Module):
    """A Gaussian of what good images look like as a whole.

    Args:
        levels: channels and stride of each; those with a stride in `STRIDES` are described, all where none has one.
    """

    span: slice
    """Channels of the levels that are described."""
    chosen: Tensor
    """Which of them."""
    mean: Tensor
    """Of good images' descriptions, (D,)."""
    whitening: Tensor
    """A square root of the inverse of their covariance, (D, D); (D, 0) until it is known."""
    scale: Tensor
    """Brings the distance to the units of the image score."""

    def __init__(self, levels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        wanted = channels_of(levels, STRIDES)
        self.span = slice(wanted.start, wanted.stop)
        chosen = torch.arange(len(wanted))
        if len(chosen) > CHANNELS:
            chosen = torch.linspace(0, len(chosen) - 1, CHANNELS).round().long()
        self.register_buffer("chosen", chosen, persistent=False)
        self.register_buffer("mean", torch.zeros(2 * len(chosen)))
        self.register_buffer("whitening", torch.zeros(2 * len(chosen), 0))
        self.register_buffer("scale", torch.ones(()))

    @property
    def is_filled(self) -> bool:
        """Whether there is anything to be far from."""
        return self.whitening.shape[1] > 0

    def describe(self, features: Tensor) -> Tensor:
        """Mean and standard deviation of each described channel over the image: (B, N, C) to (B, D) float32."""
        own = features[..., self.span].float()
        mean = own.mean(dim=1, keepdim=True)
        deviation = (own - mean).square().mean(dim=1).sqrt()
        return torch.cat((mean.squeeze(1)[:, self.chosen], deviation[:, self.chosen]), dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Distance of images, (B, N, C), from good ones, in units of the image score, (B,)."""
        centred = self.describe(features) - self.mean
        return self.scale * torch.linalg.vector_norm(centred @ self.whitening, dim=-1)

    def fill(self, mean: Tensor, whitening: Tensor, scale: Tensor) -> None:
        """Take a Gaussian, (D,) and (D, D), and the scale of its distances."""
        self.mean, self.whitening = mean.to(self.mean), whitening.to(self.whitening)
        self.scale = scale.to(self.scale)

    def empty(self) -> None:
        """Forget it."""
        self.fill(torch.zeros_like(self.mean), self.whitening[:, :0], torch.ones(()))

    def stored(self) -> dict[str, Tensor]:
        """What a model file keeps."""
        return {"mean": self.mean, "whitening": self.whitening, "scale": self.scale}

    def restore(self, mean: Tensor, whitening: Tensor, scale: Tensor) -> None:
        """The inverse of `stored`.

        Raises:
            RuntimeError: one has not the shape that the features give it.
        """
        dimensions = len(self.mean)
        square, none = (dimensions, dimensions), (dimensions, 0)
        if mean.shape != (dimensions,) or whitening.shape not in (square, none) or scale.ndim:
            raise RuntimeError(f"a Gaussian of {dimensions} dimensions cannot have the shape {tuple(whitening.shape)}")
        self.fill(mean, whitening, scale)

"""The loss of the normal-sample-only case."""

from __future__ import annotations

from torch import Tensor


def reconstruction_loss(features: Tensor, reconstructed: Tensor) -> Tensor:
    """L_norm of Eq. 1: squared difference, summed over channels, mean over positions (and over the batch).

    Args:
        features: f, (B, N, C).
        reconstructed: f-hat, (B, N, C).

    Returns:
        A scalar.
    """
    return (features - reconstructed).square().sum(dim=-1).mean()

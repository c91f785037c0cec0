"""What good images look like as a whole: the Gaussian of `adtr.model.mahalanobis`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache

IMAGES = 2_000
"""Drawn at random from the training images."""
FOLDS = 5
"""Each image's distance is measured from the Gaussian of the other folds, to find their scale."""
SCALE_IMAGES = 100
"""Training images whose scores the distances are brought to the units of."""
CHUNK = 16
FLOOR = 0.1
"""Share of the median deviation that every dimension has at least; one that never varied would drown out the others."""


@torch.no_grad()
def fit_gaussian(network: ADTR, cache: FeatureCache, index: Tensor, seed: int) -> None:
    """Give a trained network the Gaussian of its training images, where its configuration asks for one.

    The scale is such that distances and score maps' maxima have one mean over training images, each of which is judged
    by the Gaussian of others. Nothing here sees a held-out image. Fewer than `FOLDS` images, or images that are all
    alike, give none.

    Args:
        network: its features are standardised, its reconstruction is trained, its memory is filled.
        cache: raw features of the good images.
        index: the training images among them, (n,).
        seed: of what is drawn.
    """
    gaussian = network.mahalanobis
    gaussian.empty()
    if not network.config.comparison.mahalanobis_weight or len(index) < FOLDS:
        return
    drawn = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))[:IMAGES]]
    parts, scores = [], []
    for number, rows in enumerate(drawn.split(CHUNK)):
        features = network.standardize(cache.on(network.feature_mean.device, rows))
        parts.append(gaussian.describe(features).cpu())
        if number * CHUNK < SCALE_IMAGES:
            scores.append(network.compare(features).scores.float().cpu())
    described = torch.cat(parts).double().numpy()
    fold = np.arange(len(described)) % FOLDS
    distances = np.empty(len(described))
    for k in range(FOLDS):
        mean, whitening = whiten(described[fold != k])
        distances[fold == k] = np.linalg.norm((described[fold == k] - mean) @ whitening, axis=1)
    if distances.mean() > 0:
        mean, whitening = whiten(described)
        scale = torch.cat(scores).mean() / distances.mean()
        gaussian.fill(torch.from_numpy(mean), torch.from_numpy(whitening), scale)


def whiten(described: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The mean (D,) of descriptions (n, D), and a square root (D, D) of the inverse of their covariance.

    The covariance is that of Ledoit and Wolf (2004), of dimensions brought to one deviation: there may be fewer images
    than dimensions.
    """
    from sklearn.covariance import ledoit_wolf

    mean, deviation = described.mean(axis=0), described.std(axis=0)
    deviation = np.maximum(deviation, FLOOR * np.median(deviation))
    if not deviation.all():
        return mean, np.zeros((len(mean), len(mean)))
    covariance, _ = ledoit_wolf((described - mean) / deviation, assume_centered=True)
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors / np.sqrt(values) / deviation[:, None]

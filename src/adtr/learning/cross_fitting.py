"""Training on good images, and scores of each by a network that did not learn from it."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from adtr.config import TrainingConfig
from adtr.model.network import ADTR
from adtr.progress import Progress
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import score_cached
from adtr.training.gaussian import fit_gaussian
from adtr.training.loop import TrainingRecord, train
from adtr.training.remembering import remember

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from adtr.tracking import Tracker


def train_on_good(
    network: ADTR,
    cache: FeatureCache,
    rows: NDArray[np.int64],
    config: TrainingConfig,
    *,
    fingerprint: str = "",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    after_step: Callable[[int], None] | None = None,
    fabric: Fabric | None = None,
    tracker: Tracker | None = None,
) -> TrainingRecord:
    """Standardise the features where the configuration says so, train the reconstruction (Section 3.2), and remember.

    Args:
        network: is trained in place.
        cache: features of the good images.
        rows: which of them to learn from, (n,).
        config: of the training loop.
        fingerprint: of data and configuration; see `train`.
        checkpoint: folder for checkpoints.
        resume: go on from a checkpoint there.
        progress: told of every step.
        after_step: see `train`.
        fabric: see `train`.
        tracker: see `train`.

    Raises:
        ModelError: the checkpoint belongs to another run.
    """
    index = torch.from_numpy(rows)
    if network.config.embedding.standardize:
        mean, std = cache.statistics(index)
        network.feature_mean.copy_(mean)
        network.feature_std.copy_(std)
    record = train(
        network,
        GoodImages(network, cache, index),
        config,
        device=network.feature_mean.device,
        fingerprint=hashlib.sha256(f"{fingerprint}{rows.tolist()}{config}".encode()).hexdigest(),
        checkpoint=checkpoint,
        resume=resume,
        progress=progress,
        after_step=after_step,
        fabric=fabric,
        tracker=tracker,
    )
    remember(network, cache, index, config.seed)
    fit_gaussian(network, cache, index, config.seed)
    return record


def cross_fit(
    network: ADTR,
    cache: FeatureCache,
    folds: int,
    config: TrainingConfig,
    *,
    fingerprint: str = "",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    fabric: Fabric | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Score every image by a network that learned from the other folds.

    Args:
        network: what every fold starts from; is left as it is.
        cache: features of the good images, n of them.
        folds: from 2 to n.
        config: of the training loop; its seed shuffles the images over the folds.
        fingerprint: of data and configuration; see `train`.
        checkpoint: folder for checkpoints.
        resume: go on from checkpoints there.
        progress: told of every step.
        fabric: see `train`.

    Returns:
        Image scores (n,) and score maps (n, h, w).

    Raises:
        ModelError: a checkpoint belongs to another run.
    """
    images = len(cache)
    assert 2 <= folds <= images
    fold_of = np.random.default_rng(config.seed).permutation(images) % folds
    rows, scores, maps = [], [], []
    for fold in range(folds):
        judged = np.flatnonzero(fold_of == fold)
        other = copy.deepcopy(network)
        train_on_good(
            other,
            cache,
            np.flatnonzero(fold_of != fold),
            config,
            fingerprint=fingerprint,
            checkpoint=checkpoint / f"fold-{fold}" if checkpoint else None,
            resume=resume,
            progress=progress,
            fabric=fabric,
        )
        of_fold = score_cached(other, cache, torch.from_numpy(judged), fabric)
        rows.append(judged)
        scores.append(of_fold[0])
        maps.append(of_fold[1])
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(scores)[order], np.concatenate(maps)[order]

"""Learning from good images (Section 3.1 and 3.2)."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import adtr
from adtr.calibration import Calibration, split_holdout
from adtr.config import Config
from adtr.data.sources import GoodSources
from adtr.device import choose_device, choose_precision
from adtr.errors import DataError
from adtr.learning.cross_fitting import cross_fit, train_on_good
from adtr.learning.learned import Learned, Reader
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import score_cached
from adtr.training.processes import fabric_precision

if TYPE_CHECKING:
    from adtr.tracking import Tracker

Observer = Callable[[ADTR, int], None]
"""Is called with the network, in eval mode, and the number of steps done."""


def fit(
    config: Config,
    good: GoodSources,
    *,
    device: str,
    backbone_weights: str | os.PathLike[str] | None,
    reader: Reader,
    keep_features: bool,
    work_folder: Path | None,
    resume: bool,
    observer: Observer | None = None,
    tracker: Tracker | None = None,
) -> Learned:
    """Train on most of the good images, set the thresholds with the others; with folds, each image serves both.

    Args:
        config: the whole configuration.
        good: the images.
        device: by name; see `choose_device`. The reader's Fabric, where it has one, has its own.
        backbone_weights: see `create_backbone`.
        reader: reads the images.
        keep_features: keep the images' features.
        work_folder: for checkpoints.
        resume: go on from a checkpoint there.
        observer: is shown the network before and after every step; what it may not do is change it.
        tracker: told of the losses; not of those of the folds.

    Raises:
        DataError: too few images, unreadable ones, or one that is both trained on and held out.
        ConfigError: the backbone or its weights cannot be had, or images are chosen to be held out and folds asked for.
        ModelError: the checkpoint belongs to another run.
    """
    started = time.perf_counter()
    seed = config.training.seed
    split_holdout(len(good), config.calibration, seed, good.chosen())  # too few images fail before any work
    fabric = reader.fabric
    chosen = fabric.device if fabric else choose_device(device)
    precision = fabric_precision(fabric) if fabric else choose_precision(config.training.precision, chosen)
    torch.manual_seed(seed)
    network = ADTR(config, backbone_weights).place(chosen, precision)
    embedded = reader.embed(network, good)
    held_out = good.chosen(embedded.indices)
    _check_apart(good, embedded.indices, embedded.hashes, held_out or [])
    return learn(
        network,
        embedded.cache,
        embedded.hashes,
        good.root,
        held_out=held_out,
        held_out_root=good.held_out_root,
        reader=reader,
        keep_features=keep_features,
        work_folder=work_folder,
        resume=resume,
        observer=observer,
        tracker=tracker,
        started=started,
    )


def learn(
    network: ADTR,
    cache: FeatureCache,
    hashes: list[str],
    root: Path | None,
    *,
    held_out: Sequence[int] | None = None,
    held_out_root: Path | None = None,
    reader: Reader,
    keep_features: bool,
    work_folder: Path | None,
    resume: bool,
    observer: Observer | None = None,
    tracker: Tracker | None = None,
    started: float,
) -> Learned:
    """The part of `fit` after the images became features.

    Args:
        network: untrained; is trained in place.
        cache: features of the good images; is closed unless they are kept.
        hashes: of the images' contents, in the same order.
        root: the folder that they came from, if there is one.
        held_out: which of them set the thresholds, where somebody chose them; see `split_holdout`.
        held_out_root: the folder that the chosen ones came from, if there is one.
        reader: read the images.
        keep_features: see `fit`.
        work_folder: see `fit`.
        resume: see `fit`.
        observer: see `fit`.
        tracker: see `fit`.
        started: when the work began, by `time.perf_counter`.

    Raises:
        DataError: too few images.
        ModelError: the checkpoint belongs to another run.
    """
    config, chosen, fabric = network.config, network.feature_mean.device, reader.fabric
    training, held = split_holdout(len(cache), config.calibration, config.training.seed, held_out)
    embedding_seconds = time.perf_counter() - started
    data_fingerprint = hashlib.sha256("".join(hashes).encode()).hexdigest()
    how: dict[str, Any] = {
        "fingerprint": hashlib.sha256(f"{data_fingerprint}{network.embedding.sha256}{config}".encode()).hexdigest(),
        "checkpoint": work_folder,
        "resume": resume,
        "progress": reader.progress,
        "fabric": fabric,
    }
    folds = config.calibration.folds
    if folds:
        scores, maps = cross_fit(network, cache, folds, config.training, **how)
    after_step = partial(observer, network) if observer is not None else None
    record = train_on_good(network, cache, training, config.training, after_step=after_step, tracker=tracker, **how)
    if not folds:
        scores, maps = score_cached(network, cache, torch.from_numpy(held), fabric)
    features = cache.features[: len(cache)] if keep_features else None
    if not keep_features:
        cache.close()
    metadata = {
        "adtr": adtr.__version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "timm", "numpy", "pillow")},
        "python": platform.python_version(),
        "data": {
            "folder": root.name if root else None,
            "path": str(root.resolve()) if root else None,
            "held_out_path": str(held_out_root.resolve()) if held_out_root else None,
            "held_out_chosen": held_out is not None,
            "images": len(hashes),
            "skipped": len(reader.skipped),
            "held_out": 0 if folds else len(held),
            "fingerprint": data_fingerprint,
            "image_hashes": hashes,
            "held_out_hashes": [] if folds else [hashes[i] for i in held],
        },
        "training": {
            **asdict(record),
            "device": str(chosen),
            "processes": fabric.world_size if fabric else 1,
            "embedding_seconds": embedding_seconds,
            "total_seconds": time.perf_counter() - started,
        },
    }
    calibration = Calibration.of(scores, maps, folds=folds)
    return Learned(network=network, calibration=calibration, metadata=metadata, features=features)


def _check_apart(good: GoodSources, indices: Sequence[int], hashes: Sequence[str], held_out: Sequence[int]) -> None:
    """No image that sets the thresholds may train too: it would score too low, and they would be too low with it.

    Raises:
        DataError: one does.
    """
    training = {digest for i, digest in zip(indices, hashes, strict=True) if i < len(good.training)}
    both = [indices[row] for row in held_out if hashes[row] in training]
    if both:
        first = good[both[0]]
        name = first if isinstance(first, str | os.PathLike) else "one that came from memory"
        raise DataError(
            f"{len(both)} of {len(held_out)} held-out images are trained on too, such as {name}; leave them out of one "
            "of the two sets"
        )

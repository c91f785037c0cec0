"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adtr.config import TrainingConfig
from adtr.device import choose_precision
from adtr.errors import memory_for
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.training.batches import TrainingData
from adtr.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from adtr.training.optimization import create_optimizers, learning_rate_factor, training_steps

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CPU_PASS = 8
"""Images in one forward and backward pass on a CPU, where the activations of more fall out of the caches. Larger
batches take several passes, whose gradients add up to the batch's."""

CHECKPOINT_SECONDS = 20.0
"""At least this long between two checkpoints."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What happened in training."""

    losses: list[float]
    """Mean loss in each epoch, the last of which may be cut short by `max_steps`."""
    steps: int
    """Optimiser steps in all."""
    seconds: float
    images: int
    """Training images."""
    precision: str
    resumed_at: int
    """Step at which the last process took over; 0 for an uninterrupted run."""


def create_fabric(device: torch.device, precision: str) -> tuple[Fabric, str]:
    """Fabric for one device, and the precision that `auto` became ("fp32" or "bf16")."""
    from lightning_fabric import Fabric

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision on stderr
    precision = choose_precision(precision, device)
    accelerator = device.type
    devices: Any = [device.index] if device.index is not None and accelerator != "cpu" else 1
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    return fabric, precision


@memory_for("training", lower="take a smaller --batch-size, --grid-size or --width")
def train(
    network: ADTR,
    data: TrainingData,
    config: TrainingConfig,
    *,
    device: torch.device,
    fingerprint: str = "",
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    after_step: Callable[[int], None] | None = None,
) -> TrainingRecord:
    """Train the reconstruction.

    Every epoch draws its order from the seed and its own number, so that a resumed run sees what an uninterrupted
    one would have seen.

    Args:
        network: is trained in place.
        data: gives batches and their loss.
        config: see `TrainingConfig`; `batch_size` counts the good images of a batch.
        device: where to train.
        fingerprint: of data and configuration; a checkpoint of another one is refused.
        checkpoint: folder for checkpoints; None writes none.
        resume: go on from the checkpoint, if there is one.
        progress: told of every step.
        after_step: called with the number of steps done, the network being in eval mode, first before any step.

    Raises:
        ModelError: the checkpoint is of other data or another configuration.
        AdtrError: a checkpoint cannot be written, or memory does not suffice.
    """
    progress = progress or Silent()
    start = time.perf_counter()
    fabric, precision = create_fabric(device, config.precision)
    optimizers = create_optimizers(network.reconstruction, config)
    network.feature_mean, network.feature_std = network.feature_mean.to(device), network.feature_std.to(device)
    state = Checkpoint(step=0, losses=[], epoch_loss=0.0, seconds=0.0)
    if resume and checkpoint is not None:
        state = load_checkpoint(checkpoint, network.reconstruction, optimizers, fingerprint) or state
    model, *optimizers = fabric.setup(network.reconstruction, *optimizers)
    model.train()

    per_epoch = -(-len(data) // config.batch_size)
    steps = training_steps(config, per_epoch)
    losses, resumed_at = list(state.losses), state.step
    total = torch.tensor(state.epoch_loss, device=device)  # of the images of this epoch so far
    order = epoch_order(len(data), config.seed, resumed_at // per_epoch)
    saved = time.perf_counter()
    progress.start("training", total=steps, done=resumed_at)
    if after_step is not None:
        _observe(network, after_step, resumed_at)
    for step in range(resumed_at, steps):
        epoch, place = divmod(step, per_epoch)
        if place == 0:
            order = epoch_order(len(data), config.seed, epoch)
        rows = order[place * config.batch_size : (place + 1) * config.batch_size]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * learning_rate_factor(config, step, per_epoch)
            optimizer.zero_grad()
        batch = data.batch(rows, step)
        for part in batch.split(CPU_PASS if device.type == "cpu" else len(batch)):
            loss = data.loss(part, model(part.features)).sum() / len(batch)
            fabric.backward(loss)
            total += loss.detach() * len(rows)
        for optimizer in optimizers:
            optimizer.step()
        if place == per_epoch - 1 or step == steps - 1:
            seen = min((place + 1) * config.batch_size, len(data))
            losses.append(float(total) / seen)
            total = torch.zeros((), device=device)
        progress.advance(1, note=f"loss {losses[-1]:.2f}" if losses else "")
        if after_step is not None:
            _observe(network, after_step, step + 1)
        if checkpoint is not None and time.perf_counter() - saved > CHECKPOINT_SECONDS:
            seconds = state.seconds + time.perf_counter() - start
            reached = Checkpoint(step=step + 1, losses=losses, epoch_loss=float(total), seconds=seconds)
            save_checkpoint(checkpoint, network.reconstruction, optimizers, reached, fingerprint)
            saved = time.perf_counter()
    progress.finish()
    network.eval()
    return TrainingRecord(
        losses=losses,
        steps=steps,
        seconds=state.seconds + time.perf_counter() - start,
        images=len(data),
        precision=precision,
        resumed_at=resumed_at,
    )


def _observe(network: ADTR, after_step: Callable[[int], None], steps: int) -> None:
    network.eval()
    after_step(steps)
    network.train()


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: a permutation that depends on nothing else, (images,)."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(images, generator=generator)

"""The training loop, on Lightning Fabric."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adtr.config import TrainingConfig
from adtr.errors import ConfigError, ModelError, memory_for
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.training.batches import TrainingData
from adtr.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from adtr.training.optimization import create_optimizers, learning_rate_factor, training_steps
from adtr.training.processes import add_up, create_fabric, exchange, fabric_precision

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from adtr.tracking import Tracker

CPU_PASS = 8
"""Images in one forward and backward pass on a CPU, where the activations of more fall out of the caches. Larger
batches take several passes, whose gradients add up to the batch's."""

COMPILE_STEPS = 5_000
"""From so many steps on CUDA, `torch.compile` saves more than it takes: on an H200 about 70 s, for steps of 27 ms in
place of 46 (4 + 4 layers, batches of 16)."""

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


@memory_for("training", lower="take a smaller --batch-size, --grid-size or --width")
@torch.enable_grad()  # whoever fits inside `torch.no_grad` means the prediction that follows
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
    fabric: Fabric | None = None,
    tracker: Tracker | None = None,
) -> TrainingRecord:
    """Train the reconstruction.

    Every epoch draws its order from the seed and its own number, so that a resumed run sees what an uninterrupted
    one would have seen. Several processes share each batch, so that they learn what one would learn from all of it.

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
        fabric: launched, with the strategy "ddp", where several processes share the training. Each calls this
            function with the same arguments; the first writes the checkpoints.
        tracker: told of the losses of every step and epoch.

    Raises:
        ModelError: the checkpoint is of other data or another configuration, or not every machine sees it.
        ConfigError: the reconstructor cannot be trained by several processes.
        AdtrError: a checkpoint cannot be written, or memory does not suffice.
    """
    progress = progress or Silent()
    start = time.perf_counter()
    fabric = fabric or create_fabric(device, config.precision)
    precision, processes = fabric_precision(fabric), fabric.world_size
    if processes > 1 and any(isinstance(module, nn.BatchNorm2d) for module in network.reconstruction.modules()):
        raise ConfigError("the cnn's batch normalisation needs whole batches; train it on one device")
    optimizers = create_optimizers(network.reconstruction, config)
    network.feature_mean, network.feature_std = network.feature_mean.to(device), network.feature_std.to(device)
    state = Checkpoint(step=0, losses=[], epoch_loss=0.0, seconds=0.0)
    if resume and checkpoint is not None:
        state = load_checkpoint(checkpoint, network.reconstruction, optimizers, fingerprint) or state
    if processes > 1 and len(set(exchange(fabric, state.step))) > 1:
        raise ModelError("not every machine sees the same checkpoint; let --output be on a disk that all share")
    per_epoch = -(-len(data) // config.batch_size)
    steps = training_steps(config, per_epoch)
    fast = compiled(network.reconstruction, device, steps - state.step)
    model, *optimizers = fabric.setup(fast, *optimizers)
    model.train()

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
        learning_rate = config.learning_rate * learning_rate_factor(config, step, per_epoch)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate
            optimizer.zero_grad()
        batch = data.batch(rows, step, slice(fabric.global_rank, None, processes))
        parts = list(batch.split(CPU_PASS if device.type == "cpu" else max(1, len(batch))))  # a share may be empty
        step_loss = torch.zeros((), device=device)
        for part in parts:
            with fabric.no_backward_sync(model, enabled=part is not parts[-1]):
                loss = data.loss(part, model(part.features)).sum() / data.batch_size(len(rows))
                fabric.backward(loss * processes)  # the processes' gradients are averaged, not added
            step_loss += loss.detach()
        add_up(fabric, step_loss)
        total += step_loss * len(rows)
        for optimizer in optimizers:
            optimizer.step()
        if tracker is not None:
            tracker.log_losses({"loss": float(step_loss), "learning_rate": learning_rate}, step + 1)
        if place == per_epoch - 1 or step == steps - 1:
            seen = min((place + 1) * config.batch_size, len(data))
            losses.append(float(total) / seen)
            total = torch.zeros((), device=device)
            if tracker is not None:
                tracker.log_losses({"epoch_loss": losses[-1]}, step + 1)
        progress.advance(1, note=f"loss {losses[-1]:.2f}" if losses else "")
        if after_step is not None:
            _observe(network, after_step, step + 1)
        if checkpoint is not None and fabric.is_global_zero and time.perf_counter() - saved > CHECKPOINT_SECONDS:
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


def compiled(network: nn.Module, device: torch.device, steps: int) -> nn.Module:
    """A network as `torch.compile` makes it, with the same parameters, where so many steps pay for it; else itself."""
    if device.type != "cuda" or steps < COMPILE_STEPS or find_spec("triton") is None:
        return network
    if not any(which(name) for name in (os.environ.get("CC", "cc"), "gcc", "clang")):  # as Triton looks for one
        return network
    made: nn.Module = torch.compile(network)  # type: ignore[assignment]
    return made


def epoch_order(images: int, seed: int, epoch: int) -> Tensor:
    """The order of the images in an epoch: a permutation that depends on nothing else, (images,)."""
    generator = torch.Generator().manual_seed((seed << 20) + epoch)
    return torch.randperm(images, generator=generator)

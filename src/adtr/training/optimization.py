"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from adtr.config import TrainingConfig
from adtr.training.muon import Muon


def create_optimizers(network: nn.Module, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW over everything; or Muon over the matrices inside the reconstruction and AdamW over the rest.

    Muon orthogonalises each update of a matrix. Embeddings, norms, biases and the two projections to and from the
    features stay with AdamW. The learning rate is matched to AdamW's RMS, so that one value serves both.
    """
    if config.optimizer == "adamw":
        return [_adamw(network.parameters(), config)]
    hidden = [
        module.weight
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("project_")
    ]
    chosen = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    muon = Muon(hidden, lr=config.learning_rate, weight_decay=config.weight_decay)
    return [muon, _adamw(rest, config)]


def _adamw(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def training_steps(config: TrainingConfig, steps_per_epoch: int) -> int:
    """Optimiser steps of a whole training: `epochs`, unless `max_steps` ends it earlier."""
    steps = config.epochs * steps_per_epoch
    return min(steps, config.max_steps) if config.max_steps else steps


def learning_rate_factor(config: TrainingConfig, step: int, steps_per_epoch: int) -> float:
    """What the configured learning rate is multiplied by at a step (from 0).

    `step`: 1, and 0.1 from `drop_epoch` on (appendix A). `one-cycle`: a linear rise over the first tenth, then half a
    cosine down to 0.
    """
    if config.schedule == "step":
        return 1.0 if step < config.drop_epoch * steps_per_epoch else 0.1
    steps = training_steps(config, steps_per_epoch)
    rise = max(1, round(0.1 * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

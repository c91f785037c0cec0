"""Lightning Fabric: one process on one device, or several that share a training."""

from __future__ import annotations

import json
import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from adtr.device import choose_precision
from adtr.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SILENCE = timedelta(minutes=10)
"""A process that hears nothing of another one for so long gives up."""

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}  # in Fabric's words


def create_fabric(device: torch.device, precision: str, *, devices: int = 1, nodes: int = 1) -> Fabric:
    """Fabric for one device; or for this process's one of several, where torchrun started it.

    Args:
        device: the one device, or the kind of all.
        precision: of `TrainingConfig`.
        devices: processes on each machine.
        nodes: machines.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning_fabric.strategies.ddp import DDPStrategy

    for name in ("lightning_fabric", "lightning_utilities"):  # they announce on stderr what they chose
        logging.getLogger(name).setLevel(logging.WARNING)
    how: dict[str, Any] = {
        "accelerator": device.type,
        "precision": _PRECISIONS[choose_precision(precision, device)],
    }
    if devices * nodes == 1:
        return Fabric(**how, devices=[device.index] if device.index is not None and device.type != "cpu" else 1)
    return Fabric(
        **how,
        devices=devices,
        num_nodes=nodes,
        strategy=DDPStrategy(timeout=SILENCE),
        plugins=TorchElasticEnvironment(),
    )


def fabric_precision(fabric: Fabric) -> str:
    """The arithmetic of a Fabric, "fp32" or "bf16".

    Raises:
        ConfigError: it is another one.
    """
    name = fabric.strategy.precision.precision
    for ours, theirs in _PRECISIONS.items():
        if name == theirs:
            return ours
    raise ConfigError(f"adtr trains in {' or '.join(_PRECISIONS.values())}, not in {name}; tell Fabric so")


def add_up(fabric: Fabric | None, *tensors: Tensor) -> None:
    """Replace each tensor by its sum over the processes."""
    if fabric is not None and fabric.world_size > 1:
        for tensor in tensors:
            total = tensor.to(fabric.device)
            torch.distributed.all_reduce(total)
            tensor.copy_(total)


def exchange(fabric: Fabric, message: Any) -> list[Any]:  # noqa: ANN401 - any JSON value
    """What every process has to say, in the order of their ranks; as JSON, since nothing is ever unpickled."""
    text = torch.frombuffer(bytearray(json.dumps(message).encode()), dtype=torch.uint8)
    sizes = [int(size) for size in _gather(fabric, torch.tensor([len(text)]))]
    texts = _gather(fabric, functional.pad(text, (0, max(sizes) - len(text))))
    return [json.loads(text[:size].numpy().tobytes()) for text, size in zip(texts, sizes, strict=True)]


def _gather(fabric: Fabric, tensor: Tensor) -> list[Tensor]:
    mine = tensor.to(fabric.device)
    everyone = [torch.empty_like(mine) for _ in range(fabric.world_size)]
    torch.distributed.all_gather(everyone, mine)
    return [each.cpu() for each in everyone]

"""Checkpoints of an unfinished training: safetensors and JSON, replaced atomically, never a pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adtr.errors import ModelError
from adtr.files import parse_json, replace_file

FILE = "checkpoint.safetensors"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a training stands."""

    step: int
    """Steps completed."""
    losses: list[float]
    """Of the epochs completed."""
    epoch_loss: float
    """Sum over the images of the epoch under way."""
    seconds: float


def save_checkpoint(
    folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], state: Checkpoint, fingerprint: str
) -> None:
    """Write weights, optimiser states and progress in one file, beside the old one, then put it in its place."""
    from safetensors.torch import save

    tensors = {f"network.{name}": value.detach().cpu() for name, value in network.state_dict().items()}
    plain: dict[str, Any] = {}
    for i, optimizer in enumerate(optimizers):
        for key, values in optimizer.state_dict()["state"].items():
            for name, value in values.items():
                where = f"optimizer.{i}.{key}.{name}"
                if isinstance(value, Tensor):
                    tensors[where] = value.detach().cpu()
                else:
                    plain[where] = value
    header = {"fingerprint": fingerprint, "state": json.dumps(asdict(state)), "plain": json.dumps(plain)}
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    header["sha256"] = _digest(header, tensors)
    replace_file(folder / FILE, save(tensors, metadata=header))


def load_checkpoint(
    folder: Path, network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], fingerprint: str
) -> Checkpoint | None:
    """Restore weights and optimiser states; None where there is no checkpoint.

    Raises:
        ModelError: the checkpoint is unreadable, or of other data or another configuration.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        state = Checkpoint(**parse_json(header["state"]))
        plain = dict(parse_json(header["plain"]))
        if header["sha256"] != _digest(header, tensors):
            raise ValueError("its SHA-256 differs")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"the checkpoint {path} is damaged; delete it, or fit without --resume") from error
    if header.get("fingerprint") != fingerprint:
        raise ModelError(f"the checkpoint {path} is of other images or another configuration; fit without --resume")
    try:
        network.load_state_dict({n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")})
        for i, optimizer in enumerate(optimizers):
            restored: dict[int, dict[str, Any]] = {}
            for where, value in {**tensors, **plain}.items():
                if where.startswith(f"optimizer.{i}."):
                    _, _, key, name = where.split(".", 3)
                    restored.setdefault(int(key), {})[name] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": restored})
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint {path} is damaged; delete it, or fit without --resume") from error
    return state


def _digest(header: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of all that a checkpoint holds."""
    digest = hashlib.sha256(json.dumps([header["fingerprint"], header["state"], header["plain"]]).encode())
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{list(tensors[name].shape)}".encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

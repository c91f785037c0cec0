import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from adtr.config import ReconstructionConfig, TrainingConfig, load_preset
from adtr.errors import AdtrError, ModelError
from adtr.model.reconstruction import Reconstruction
from adtr.training.checkpoint import FILE, Checkpoint, load_checkpoint, save_checkpoint
from adtr.training.optimization import create_optimizers

TINY = ReconstructionConfig(
    reconstructor="transformer", width=8, heads=2, encoder_layers=1, decoder_layers=1, feedforward=12
)
STATE = Checkpoint(step=7, losses=[0.1, 1 / 3], epoch_loss=2 / 3, seconds=1.5)
Optimizers = list[torch.optim.Optimizer]


def config(optimizer: str) -> TrainingConfig:
    return load_preset("quick").override(optimizer=optimizer, learning_rate=1e-2).training


def fresh(optimizer: str, seed: int) -> tuple[Reconstruction, Optimizers]:
    torch.manual_seed(seed)
    network = Reconstruction(5, 6, TINY)
    return network, create_optimizers(network, config(optimizer))


def steps(network: nn.Module, optimizers: Optimizers, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        network.zero_grad()
        network(torch.randn(3, 6, 5, generator=generator)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_optimiser_states_come_back_to_the_bit(tmp_path: Path, optimizer: str) -> None:
    network, optimizers = fresh(optimizer, seed=0)
    steps(network, optimizers, 3, seed=1)
    save_checkpoint(tmp_path, network, optimizers, STATE, "print")
    other, other_optimizers = fresh(optimizer, seed=9)
    assert load_checkpoint(tmp_path, other, other_optimizers, "print") == STATE
    for after in range(2):  # as it was saved, and after steps that depend on all that was saved
        for (name, a), b in zip(network.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(a, b), (after, name)
        steps(network, optimizers, 2, seed=2)
        steps(other, other_optimizers, 2, seed=2)


def test_a_checkpoint_can_be_written_before_the_first_step(tmp_path: Path) -> None:
    network, optimizers = fresh("muon", seed=0)
    save_checkpoint(tmp_path, network, optimizers, STATE, "print")
    assert load_checkpoint(tmp_path, network, optimizers, "print") == STATE


def test_no_checkpoint_is_no_mistake(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path, *fresh("adamw", seed=0), "print") is None
    assert load_checkpoint(tmp_path / "absent", *fresh("adamw", seed=0), "print") is None


def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path) -> None:
    network, optimizers = fresh("adamw", seed=0)
    save_checkpoint(tmp_path, network, optimizers, STATE, "print")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    other, other_optimizers = fresh("adamw", seed=0)
    with pytest.raises(ModelError, match=r"^.* is of other images or another configuration; fit without --resume$"):
        load_checkpoint(tmp_path, other, other_optimizers, "another print")
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("damage", ["empty", "cut", "text", "no header", "pickle", "flipped bit"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, damage: str) -> None:
    network, optimizers = fresh("adamw", seed=0)
    save_checkpoint(tmp_path, network, optimizers, STATE, "print")
    path = tmp_path / FILE
    data = path.read_bytes()
    if damage == "no header":
        save_file(load_file(path), path)
    elif damage == "pickle":
        torch.save({"a": torch.ones(3)}, path)
    else:
        flipped = bytes([*data[:-100], data[-100] ^ 1, *data[-99:]])
        kinds = {"empty": b"", "cut": data[: len(data) // 2], "text": b"not a checkpoint", "flipped bit": flipped}
        path.write_bytes(kinds[damage])
    with pytest.raises(ModelError, match=r"^the checkpoint .* is damaged; delete it, or fit without --resume$"):
        load_checkpoint(tmp_path, network, optimizers, "print")


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, optimizers = fresh("adamw", seed=0)
    save_checkpoint(tmp_path, network, optimizers, STATE, "print")

    def fsync(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(AdtrError, match=r"^cannot write .*$"):
        save_checkpoint(tmp_path, network, optimizers, Checkpoint(step=9, losses=[], epoch_loss=0, seconds=0), "print")
    assert load_checkpoint(tmp_path, network, optimizers, "print") == STATE
    assert [path.name for path in tmp_path.iterdir()] == [FILE]

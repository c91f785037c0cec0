import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from adtr.config import ReconstructionConfig, TrainingConfig, load_preset
from adtr.model.reconstruction import Reconstruction
from adtr.training.optimization import create_optimizers, learning_rate_factor, training_steps

TINY = ReconstructionConfig(
    reconstructor="transformer", width=8, heads=2, encoder_layers=2, decoder_layers=1, feedforward=12
)


def config(**values: object) -> TrainingConfig:
    return replace(load_preset("paper-mvtec").training, **values)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_belongs_to_exactly_one_optimiser(optimizer: str) -> None:
    network = Reconstruction(5, 6, TINY)
    optimizers = create_optimizers(network, config(optimizer=optimizer))
    held = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in network.parameters()}


def test_adamw_has_the_papers_settings() -> None:
    (adamw,) = create_optimizers(Reconstruction(5, 6, TINY), load_preset("paper-mvtec").training)
    assert type(adamw) is torch.optim.AdamW
    (group,) = adamw.param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-4, 1e-4)
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)


def test_muon_takes_the_matrices_inside_the_transformer_only() -> None:
    network = Reconstruction(5, 6, TINY)
    muon, adamw = create_optimizers(network, config(optimizer="muon", learning_rate=2e-3, weight_decay=0.1))
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    hidden = {names[id(p)] for p in muon.param_groups[0]["params"]}
    inside = [m for part in (network.encoder, network.decoder) for m in part.modules() if isinstance(m, nn.Linear)]
    assert hidden == {names[id(m.weight)] for m in inside}
    assert len(hidden) == 2 * 6 + 10
    rest = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    assert {"position", "query", "project_in.weight", "project_out.weight"} <= rest
    for optimizer in (muon, adamw):
        assert {(g["lr"], g["weight_decay"]) for g in optimizer.param_groups} == {(2e-3, 0.1)}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_moves_every_parameter(optimizer: str) -> None:
    network = Reconstruction(5, 6, TINY)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizers = create_optimizers(network, config(optimizer=optimizer, learning_rate=1e-2))
    (network(torch.randn(3, 6, 5)) - torch.randn(3, 6, 5)).square().sum().backward()
    for o in optimizers:
        o.step()
    assert not [name for name, value in network.state_dict().items() if torch.equal(value, before[name])]


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 1.0), (1, 1.0), (400 * 14 - 1, 1.0), (400 * 14, 0.1), (500 * 14 - 1, 0.1)]
)
def test_the_papers_schedule_drops_after_400_epochs(step: int, factor: float) -> None:
    assert learning_rate_factor(load_preset("paper-mvtec").training, step, 14) == factor


@pytest.mark.parametrize(
    ("step", "factor"),
    [
        (0, 0.1),
        (4, 0.5),
        (9, 1.0),
        (10, 1.0),
        (55, 0.5),
        (40, 0.75),
        (70, 0.25),
        (99, 0.5 * (1 + math.cos(math.pi * 89 / 90))),
    ],
)
def test_one_cycle_rises_over_a_tenth_and_falls_along_a_cosine(step: int, factor: float) -> None:
    settings = config(schedule="one-cycle", epochs=20)
    assert learning_rate_factor(settings, step, 5) == pytest.approx(factor)


def test_one_cycle_ends_near_0_and_never_leaves_0_to_1() -> None:
    for epochs, per_epoch in [(1, 1), (1, 2), (2, 1), (3, 7), (20, 11)]:
        settings = config(schedule="one-cycle", epochs=epochs)
        factors = [learning_rate_factor(settings, step, per_epoch) for step in range(epochs * per_epoch)]
        assert all(0 < f <= 1 for f in factors)
        assert max(factors) == 1
        if len(factors) > 10:
            assert factors[-1] < 0.02


def test_one_cycle_is_over_when_max_steps_ends_the_training() -> None:
    limited = config(schedule="one-cycle", epochs=100, max_steps=50)
    whole = config(schedule="one-cycle", epochs=10, max_steps=0)
    assert [learning_rate_factor(limited, s, 5) for s in range(50)] == [
        learning_rate_factor(whole, s, 5) for s in range(50)
    ]


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(3, 0, 12), (3, 5, 5), (3, 12, 12), (3, 100, 12)])
def test_max_steps_only_shortens(epochs: int, max_steps: int, steps: int) -> None:
    assert training_steps(config(epochs=epochs, max_steps=max_steps), 4) == steps

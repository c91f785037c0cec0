import pytest
import torch
from torch import Tensor

from adtr.training.muon import COEFFICIENTS, MARGIN, Muon, orthogonalize

JORDAN = ((3.4445, -4.7750, 2.0315),) * 5
"""Those of `torch.optim.Muon`."""


def matrices(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 8, 32), (3, 32, 8), (1, 5, 7)])
def test_orthogonalised_matrices_have_singular_values_near_1(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    given = matrices(*shape)
    for coefficients, low, high in ((JORDAN, 0.5, 1.35), (COEFFICIENTS, 0.15, 1.95)):
        result = orthogonalize(given, coefficients, dtype)
        assert result.shape == shape
        values = torch.linalg.svdvals(result.float())
        before = torch.linalg.svdvals(given)
        near = before > 0.1 * before.amax(-1, keepdim=True)  # the few iterations leave the smallest where they are
        assert (values[near] > low).all()
        assert (values < high).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_a_single_direction_is_not_blown_up_by_rounding(dtype: torch.dtype) -> None:
    given = matrices(16, 64, 1) @ matrices(16, 1, 64, seed=1)  # its one singular value is its norm
    values = torch.linalg.svdvals(orthogonalize(given, COEFFICIENTS, dtype).float())
    assert (values < 1.95).all()
    assert (values[:, 0] > 0.5).all()


@pytest.mark.parametrize("shape", [(4, 16, 16), (3, 8, 32), (3, 32, 8)])
def test_orthogonalised_matrices_keep_their_singular_vectors(shape: tuple[int, int, int]) -> None:
    given = matrices(*shape)
    u, _, v = torch.linalg.svd(given, full_matrices=False)
    core = u.mT @ orthogonalize(given, JORDAN).float() @ v.mT  # diagonal if the vectors are the same
    off_diagonal = core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))
    assert off_diagonal.abs().max() < 0.1
    values = torch.linalg.svdvals(given)
    near = values > 0.1 * values.amax(-1, keepdim=True)  # smaller ones need more iterations
    assert (core.diagonal(dim1=-2, dim2=-1)[near] > 0.5).all()


def test_steps_are_those_of_torchs_muon() -> None:
    shapes = [(16, 16), (8, 32), (32, 8), (16, 16)]
    ours = [torch.nn.Parameter(matrices(*s, seed=i)) for i, s in enumerate(shapes)]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    settings = {"lr": 0.02, "weight_decay": 0.1}
    first = Muon(ours, coefficients=JORDAN, dtype=torch.bfloat16, **settings)
    second = torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **settings)
    for step in range(4):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            a.grad = matrices(*a.shape, seed=100 * step + i)
            b.grad = a.grad.clone()
        first.step()
        second.step()
        for a, b in zip(ours, theirs, strict=True):
            moved = 0.02 * 0.2 * max(a.shape) ** 0.5
            assert (a - b).abs().max() < 0.05 * (step + 1) * moved  # both work in bfloat16


def test_a_parameter_without_gradient_stays() -> None:
    still, moving = torch.nn.Parameter(matrices(4, 4)), torch.nn.Parameter(matrices(4, 4, seed=1))
    before = still.detach().clone()
    moving.grad = matrices(4, 4, seed=2)
    Muon([still, moving], lr=0.1, weight_decay=0.1).step()
    assert torch.equal(still, before)
    assert not torch.equal(moving, matrices(4, 4, seed=1))


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    parameter = torch.nn.Parameter(matrices(4, 6))
    parameter.grad = torch.zeros(4, 6)
    Muon([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), matrices(4, 6) * 0.95)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_arithmetic_can_be_chosen(dtype: torch.dtype) -> None:
    exact = orthogonalize(matrices(3, 8, 12).double(), COEFFICIENTS, torch.float64)
    found = orthogonalize(matrices(3, 8, 12), COEFFICIENTS, dtype)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4 if dtype == torch.float32 else 0.2)


def test_each_iteration_applies_its_polynomial_to_the_singular_values() -> None:
    given = matrices(1, 6, 9).double()
    x = torch.linalg.svdvals(given) / (MARGIN * torch.linalg.vector_norm(given))
    for a, b, c in COEFFICIENTS:
        x = a * x + b * x**3 + c * x**5
    found = torch.linalg.svdvals(orthogonalize(given, COEFFICIENTS, torch.float64))
    torch.testing.assert_close(found.sort().values, x.sort().values, rtol=1e-5, atol=1e-5)

"""The losses against slow, literal versions of the paper's equations, and against finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from adtr.model.losses import image_loss, pixel_loss, pseudo_huber, push_term, reconstruction_loss, top_k_score

SHAPES = [(1, 1, 1), (1, 6, 5), (3, 4, 7)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def literal_l_norm(f: Tensor, f_hat: Tensor) -> float:
    """Eq. 1 for one image, (N, C): the squared differences of all channels and positions, over their number."""
    total = 0.0
    for u in range(f.shape[0]):
        for i in range(f.shape[1]):
            total += float(f[u, i] - f_hat[u, i]) ** 2
    return total / f.shape[0]


def literal_phi(d: Tensor) -> list[float]:
    """Eq. 6 for one image, (N, C)."""
    return [math.sqrt((sum(abs(float(x)) for x in d[u]) / d.shape[1]) ** 2 + 1) - 1 for u in range(d.shape[0])]


def literal_l_px(phi: list[float], y: list[float], alpha: float) -> float:
    """Eq. 7 for one image."""
    n = len(phi)
    pull = sum((1 - y[u]) * phi[u] for u in range(n)) / n
    if not any(y):
        return pull
    return pull - alpha * math.log(1 - math.exp(-sum(y[u] * phi[u] for u in range(n)) / n))


def literal_l_img(phi: list[float], y: float, alpha: float, k: int) -> float:
    """Eq. 8 and 9 for one image."""
    largest = sorted(phi)[-k:]
    q = sum(largest) / len(largest)
    return (1 - y) * q - (alpha * y * math.log(1 - math.exp(-q)) if y else 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_reconstruction_loss_is_equation_1(shape: tuple[int, int, int]) -> None:
    features, reconstructed = random(2, *shape)
    losses = reconstruction_loss(features, reconstructed)
    literal = [literal_l_norm(f.double(), f_hat.double()) for f, f_hat in zip(features, reconstructed, strict=True)]
    assert losses.tolist() == pytest.approx(literal, rel=1e-5)


def test_the_gradient_is_that_of_equation_1() -> None:
    features, reconstructed = random(2, 3, 4, 5, seed=1)
    reconstructed.requires_grad_()
    reconstruction_loss(features, reconstructed).mean().backward()
    torch.testing.assert_close(reconstructed.grad, 2 * (reconstructed - features).detach() / (3 * 4))


def test_a_perfect_reconstruction_costs_nothing() -> None:
    features = torch.randn(2, 3, 4)
    assert reconstruction_loss(features, features.clone()).tolist() == [0, 0]
    assert pseudo_huber(features - features).count_nonzero() == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_phi_is_equation_6(shape: tuple[int, int, int], scale: float) -> None:
    difference = random(*shape).double() * scale
    for phi, d in zip(pseudo_huber(difference), difference, strict=True):
        assert phi.tolist() == pytest.approx(literal_phi(d), rel=1e-9, abs=1e-15)


def test_phi_keeps_its_digits_where_the_difference_is_small() -> None:
    """sqrt(m^2 + 1) - 1 would be exactly 0 here."""
    assert float(pseudo_huber(torch.full((1, 1, 3), 1e-5))) == pytest.approx(0.5e-10, rel=1e-5)


labels = st.lists(st.sampled_from([0.0, 0.25, 1.0]), min_size=1, max_size=6)


@given(y=labels, seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.003, 1.0]), scale=st.sampled_from([0.1, 5.0]))
def test_the_pixel_loss_is_equation_7(y: list[float], seed: int, alpha: float, scale: float) -> None:
    phi = random(1, len(y), seed=seed).double().abs() * scale + 1e-3
    loss = pixel_loss(phi, torch.tensor([y]).double(), alpha)
    assert float(loss) == pytest.approx(literal_l_px(phi[0].tolist(), y, alpha), rel=1e-9, abs=1e-12)


@given(n=st.integers(1, 7), k=st.integers(1, 9), seed=st.integers(0, 99), alpha=st.sampled_from([0.0, 0.003, 1.0]))
def test_the_image_loss_is_equation_9(n: int, k: int, seed: int, alpha: float) -> None:
    phi = random(2, n, seed=seed).double().abs() + 1e-3
    loss = image_loss(phi, torch.tensor([0.0, 1.0]), alpha, k)
    literal = [literal_l_img(phi[i].tolist(), i, alpha, k) for i in range(2)]
    assert loss.tolist() == pytest.approx(literal, rel=1e-9)


def test_the_score_is_the_mean_of_the_largest() -> None:
    phi = torch.tensor([[5.0, 1.0, 4.0, 2.0]])
    assert top_k_score(phi, 2).tolist() == [4.5]
    assert top_k_score(phi, 99).tolist() == [3.0]


Loss = Callable[[Tensor], Tensor]
Y = torch.tensor([[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
LOSSES: dict[str, Loss] = {
    "equation 6": lambda d: pseudo_huber(d).sum(),
    "equation 7": lambda d: pixel_loss(pseudo_huber(d), Y, 0.003).sum(),
    "equation 9": lambda d: image_loss(pseudo_huber(d), torch.tensor([1.0, 0.0]), 0.003, 2).sum(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_gradients_agree_with_finite_differences(name: str, scale: float) -> None:
    difference = (random(2, 4, 3, seed=2).double() * scale).requires_grad_()
    assert torch.autograd.gradcheck(LOSSES[name], difference, eps=1e-6 * scale, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12, 1e-3, 1.0, 1e4, 1e15])
def test_losses_and_gradients_stay_finite(dtype: torch.dtype, size: float) -> None:
    for name, loss in LOSSES.items():
        difference = torch.full((2, 4, 3), size, dtype=dtype, requires_grad=True)
        value = loss(difference)
        value.backward()
        assert torch.isfinite(value), name
        assert torch.isfinite(difference.grad).all(), name


def test_the_push_term_falls_from_infinity_to_nothing() -> None:
    x = torch.tensor([1e-9, 1e-3, 0.5, 3.0, 20.0], dtype=torch.float64)
    expected = [-math.log(-math.expm1(-float(v))) for v in x]
    assert push_term(x).tolist() == pytest.approx(expected, rel=1e-12)
    assert push_term(torch.tensor(0.0)) == pytest.approx(27.63, abs=0.01)


def test_descent_pulls_normal_positions_and_pushes_anomalous_ones() -> None:
    difference = torch.full((1, 2, 3), 0.5, requires_grad=True)
    pixel_loss(pseudo_huber(difference), torch.tensor([[0.0, 1.0]]), 0.003).backward()
    assert difference.grad is not None
    assert (difference.grad[0, 0] > 0).all()
    assert (difference.grad[0, 1] < 0).all()

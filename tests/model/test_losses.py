import pytest
import torch

from adtr.model.losses import reconstruction_loss


def literal_loss(features: torch.Tensor, reconstructed: torch.Tensor) -> float:
    """Eq. 1 for each image: the squared differences of all channels and positions, over the number of positions."""
    losses = []
    for f, f_hat in zip(features.double(), reconstructed.double(), strict=True):
        total = 0.0
        for u in range(f.shape[0]):
            for i in range(f.shape[1]):
                total += float(f[u, i] - f_hat[u, i]) ** 2
        losses.append(total / f.shape[0])
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 6, 5), (3, 4, 7)])
def test_the_loss_is_equation_1(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    features, reconstructed = torch.randn(2, *shape, generator=generator)
    loss = reconstruction_loss(features, reconstructed)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(literal_loss(features, reconstructed), rel=1e-5)


def test_the_gradient_is_that_of_equation_1() -> None:
    generator = torch.Generator().manual_seed(1)
    features, reconstructed = torch.randn(2, 3, 4, 5, generator=generator)
    reconstructed.requires_grad_()
    reconstruction_loss(features, reconstructed).backward()
    torch.testing.assert_close(reconstructed.grad, 2 * (reconstructed - features).detach() / (3 * 4))


def test_a_perfect_reconstruction_costs_nothing() -> None:
    features = torch.randn(2, 3, 4)
    assert reconstruction_loss(features, features.clone()) == 0

"""Muon with all matrices of one shape orthogonalised together: a few large products in place of many small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import overload

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration (Jordan et al., 2024); steep at 0, so that few steps are enough."""
STEPS = 5
"""Iterations; after 5 the singular values lie between about 0.7 and 1.2."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is replaced by the nearest semi-orthogonal one (Jordan et al., 2024).

    The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the RMS of AdamW's (Liu et al., 2025), so that
    a learning rate means the same in both.

    Args:
        parameters: matrices; a convolution's kernel counts as one, a row for each output channel.
        lr: learning rate.
        weight_decay: decoupled.
        momentum: of the gradient's moving average; Nesterov's form.
        steps: Newton-Schulz iterations.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        steps: int = STEPS,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update the parameters from their gradients."""
        assert closure is None, "Muon takes no closure"
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                momenta = [self._momentum(parameter) for parameter in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                updates = torch._foreach_lerp(gradients, momenta, group["momentum"])  # noqa: SLF001 - public only inside torch
                matrices = torch.stack(updates).flatten(2)
                directions = orthogonalize(matrices, group["steps"]).unflatten(2, shape[1:])
                rate = group["lr"] * 0.2 * max(matrices.shape[1:]) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(directions.to(parameters[0].dtype).unbind()), alpha=-rate)
        return None

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Nearly the nearest semi-orthogonal matrix of each, by Newton-Schulz iterations in bfloat16.

    Args:
        matrices: (n, rows, columns).
        steps: iterations.

    Returns:
        (n, rows, columns), bfloat16.
    """
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16().contiguous()
    x = x / (torch.linalg.vector_norm(x.float(), dim=(-2, -1), keepdim=True).to(x.dtype) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x

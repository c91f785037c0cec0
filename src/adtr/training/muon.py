"""Muon with all matrices of one shape orthogonalised together: a few large products in place of many small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import overload

import torch
from torch import Tensor

from adtr.device import has_fast_bf16

MARGIN = 1.01
"""The iterations blow up singular values above 1, so all are kept below by so much as bfloat16 may round them up."""
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
)
COEFFICIENTS = tuple((a / MARGIN, b / MARGIN**3, c / MARGIN**5) for a, b, c in _POLAR_EXPRESS)
"""Of the quintic iterations, one triple for each: the first three of Polar Express (Amsel et al., 2025), with their
margin. After 60 steps the loss is that of five iterations with Jordan's coefficients (2024), by three fifths of the
products (docs/engine.md)."""


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is replaced by the nearest semi-orthogonal one (Jordan et al., 2024).

    The update is scaled by 0.2 sqrt(max(rows, columns)), which gives it the RMS of AdamW's (Liu et al., 2025), so that
    a learning rate means the same in both.

    Args:
        parameters: matrices; a convolution's kernel counts as one, a row for each output channel.
        lr: learning rate.
        weight_decay: decoupled.
        momentum: of the gradient's moving average; Nesterov's form.
        coefficients: of the iterations; see `orthogonalize`.
        dtype: of the iterations; by default bfloat16 where the device multiplies it in hardware, else float32.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        coefficients: Sequence[tuple[float, float, float]] = COEFFICIENTS,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.coefficients, self.dtype = coefficients, dtype

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
                directions = orthogonalize(matrices, self.coefficients, self.dtype).unflatten(2, shape[1:])
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


def orthogonalize(
    matrices: Tensor, coefficients: Sequence[tuple[float, float, float]], dtype: torch.dtype | None = None
) -> Tensor:
    """Roughly the nearest semi-orthogonal matrix of each, x -> a x + b (x x^T) x + c (x x^T)^2 x again and again.

    Args:
        matrices: (n, rows, columns).
        coefficients: a, b and c of each iteration.
        dtype: in which it computes; by default bfloat16 where the device multiplies it in hardware, else float32.

    Returns:
        (n, rows, columns), of that type.
    """
    dtype = dtype or (torch.bfloat16 if has_fast_bf16(matrices.device) else torch.float32)
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(dtype).contiguous()
    x = x / (MARGIN * torch.linalg.vector_norm(x.float(), dim=(-2, -1), keepdim=True) + 1e-7).to(x.dtype)
    for a, b, c in coefficients:
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x

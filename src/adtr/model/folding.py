"""A frozen backbone made fast: batch normalisations and activations become part of the convolutions before them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from adtr.model.backbones import import_timm

ONE_PASS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
}
"""Activations that oneDNN computes before a convolution's results leave the caches: its names and their arguments."""


class Convolution(nn.Module):
    """A convolution and its activation; on a CPU in one pass, where oneDNN has one."""

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module) -> None:
        super().__init__()
        layers = import_timm().layers
        self.convolution, self.activation = convolution, activation
        self._pad_same = layers.pad_same if type(convolution) is layers.Conv2dSame else None
        known = type(convolution) in (nn.Conv2d, layers.Conv2dSame) and convolution.padding_mode == "zeros"
        known = known and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
        self._one_pass = ONE_PASS.get(type(activation)) if known else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, D, H, W)."""
        own = self.convolution
        if self._one_pass is None or x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting():
            activated: Tensor = self.activation(own(x))
            return activated
        padding = own.padding
        if self._pad_same is not None:
            x, padding = self._pad_same(x, own.kernel_size, own.stride, own.dilation), (0, 0)
        name, arguments = self._one_pass
        sizes = (padding, own.stride, own.dilation, own.groups)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, own.weight, own.bias, *sizes, name, arguments, "")  # noqa: SLF001 - what torch.compile calls
        return result


def fold(network: nn.Module) -> nn.Module:
    """The same frozen network with each batch normalisation, and its activation, in the convolution before it.

    Modules do not tell in which order they run. So the folded network is compared with the original one, which is
    returned where they differ.
    """
    folded = copy.deepcopy(network)
    for module in list(folded.modules()):
        for (name, convolution), (after, norm) in pairwise(list(module.named_children())):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(convolution, norm)
                convolution.weight, convolution.bias = fused.weight, fused.bias
                setattr(module, name, Convolution(convolution, getattr(norm, "act", nn.Identity())))
                setattr(module, after, nn.Identity())
    probe = torch.linspace(-2, 2, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        try:
            same = all(
                torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(a.std())) for a, b in _pairs(network, folded, probe)
            )
        except (RuntimeError, AssertionError, TypeError, ValueError):
            same = False
    return folded if same else network


def _pairs(network: nn.Module, folded: nn.Module, probe: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(network(probe), folded(probe), strict=True)

"""A frozen backbone made fast: batch normalisations and activations become part of the convolutions before them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
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
        self.convolution, self.activation = convolution, activation
        self._pads_same = type(convolution) is import_timm().layers.Conv2dSame
        self._one_pass = ONE_PASS.get(type(activation)) if self._has_one_pass() else None
        self._prepared: dict[tuple[int, int], tuple[Tensor, tuple[int, ...]]] = {}

    def _has_one_pass(self) -> bool:
        own, operations = self.convolution, ("_convolution_pointwise", "_reorder_convolution_weight")
        plain = self._pads_same or (type(own) is nn.Conv2d and not isinstance(own.padding, str))
        plain = plain and own.padding_mode == "zeros" and own.dilation == (1, 1)
        return plain and torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, o) for o in operations)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_prepared": {}}  # oneDNN's own layout cannot be copied

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Convolution:
        self._prepared.clear()  # the weights change their type or place
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - nn.Module's own
        self._prepared.clear()
        super()._load_from_state_dict(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to (B, D, H, W)."""
        own = self.convolution
        if self._one_pass is None or x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_exporting():
            activated: Tensor = self.activation(own(x))
            return activated
        size = (x.shape[2], x.shape[3])
        if size not in self._prepared:
            self._prepared[size] = self._prepare(x)
        weight, padding = self._prepared[size]
        sizes = (padding, own.stride, own.dilation, own.groups)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, weight, own.bias, *sizes, *self._one_pass, "")  # noqa: SLF001 - what torch.compile calls
        return result

    def _prepare(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Weights in oneDNN's own layout, and a padding that is the same on both sides.

        "Same" padding may take one row or column more after the image than before it. A kernel with a row or column of
        zeros before its own makes both alike, and gives the same numbers; padding by a copy of the image would take
        longer than the convolution itself.
        """
        own = self.convolution
        weight, padding = own.weight.detach(), own.padding
        assert not isinstance(padding, str)
        if self._pads_same:
            both = zip(x.shape[2:], own.kernel_size, own.stride, own.dilation, strict=True)
            height, width = (import_timm().layers.get_same_padding(*one) for one in both)
            weight = functional.pad(weight, (width % 2, 0, height % 2, 0))
            padding = ((height + 1) // 2, (width + 1) // 2)
        sizes = (padding, own.stride, own.dilation, own.groups)
        return torch.ops.mkldnn._reorder_convolution_weight(weight, *sizes, x.shape), padding  # noqa: SLF001


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

import copy

import pytest
import torch
from torch import nn

from adtr.model.backbones import create_backbone, import_timm
from adtr.model.folding import ONE_PASS, Convolution, fold


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18", "mobilenetv3_small_100", "tf_efficientnet_b0"])
def test_folded_batch_norms_change_nothing_but_their_number(name: str) -> None:
    network = create_backbone(name, "random").network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # as after training: neither 0 nor 1
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 2)
    folded = fold(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    images = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for ours, original in zip(folded(images), network(images), strict=True):
            torch.testing.assert_close(ours, original, rtol=1e-3, atol=1e-3 * float(original.abs().max()))


def test_a_network_that_runs_in_another_order_is_not_folded() -> None:
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(2.0)

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [self.convolution(self.norm(x))]

    network = Reversed().eval()
    assert fold(network) is network


@pytest.mark.parametrize("activation", [*ONE_PASS, nn.Hardswish])
@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_pass_is_the_convolution_and_its_activation(
    activation: type[nn.Module], same: bool, dtype: torch.dtype
) -> None:
    kind = import_timm().layers.Conv2dSame if same else nn.Conv2d
    generator = torch.Generator().manual_seed(0)
    for kernel, stride, groups, bias in ((1, 1, 1, True), (3, 2, 6, True), (5, 2, 6, False), (3, 1, 2, True)):
        convolution = kind(6, 12, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
        for parameter in convolution.parameters():
            nn.init.normal_(parameter, std=2.0, generator=generator)
        one = Convolution(convolution, activation())
        for size in ((10, 9), (7, 12)):
            images = torch.randn(2, 6, *size, generator=generator).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                expected = activation()(one.float().convolution(images))
                found = one.to(dtype)(images.to(dtype))
            assert found.dtype == dtype
            tolerance = 1e-5 if dtype is torch.float32 else 0.05
            torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * 10)


def test_one_pass_is_what_runs() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no oneDNN")
    one = Convolution(nn.Conv2d(3, 4, 3), nn.ReLU6())
    images = torch.randn(1, 3, 8, 8)
    with torch.no_grad(), torch.profiler.profile() as profile:
        one(images)
    assert any("_convolution_pointwise" in event.key for event in profile.key_averages())
    differentiable = one(images.requires_grad_())  # which the one pass is not
    differentiable.sum().backward()
    assert images.grad is not None


def test_what_was_prepared_is_not_used_for_other_weights_or_another_size() -> None:
    same = import_timm().layers.Conv2dSame(3, 4, 3, 2)
    one = Convolution(same, nn.ReLU())
    small, large = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 9, 13)
    with torch.no_grad():
        for images in (small, large, small):
            torch.testing.assert_close(one(images), same(images).relu(), rtol=1e-4, atol=1e-5)
        one.load_state_dict({name: -tensor for name, tensor in one.state_dict().items()})
        torch.testing.assert_close(one(small), same(small).relu(), rtol=1e-4, atol=1e-5)
        found = one.bfloat16()(small.bfloat16())
        torch.testing.assert_close(found.float(), same.float()(small).relu(), rtol=0.05, atol=0.05)


def test_one_that_has_run_can_be_copied() -> None:
    one, images = Convolution(nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = one(images)
        assert torch.equal(copy.deepcopy(one)(images), expected)
        assert torch.equal(one(images), expected)

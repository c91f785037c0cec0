"""`export`: from a trained detector to one file, with its parity measured before anything is written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import adtr
from adtr.calibration import Calibration, Thresholds
from adtr.data.folder import content_hash
from adtr.data.loading import LoadedImage, load_images
from adtr.data.sources import as_sources, in_batches, loaded_hash
from adtr.deploy.exported import Runtime
from adtr.deploy.formats import FORMATS, Draft, Precision
from adtr.deploy.graph import DetectorGraph
from adtr.deploy.parity import Parity, measure
from adtr.deploy.sealed import FORMAT
from adtr.detector import AnomalyDetector
from adtr.errors import ConfigError, DataError, ModelError
from adtr.progress import Progress, Silent
from adtr.store import load_model, save_model

TOLERANCES: dict[Precision, float] = {"fp32": 0.002, "fp16": 0.02, "int8": 0.75}
"""Largest difference of a score or a map's value from the same network in float32, as a share of the threshold."""
PARITY_IMAGES = 16
"""Good images on which parity is measured, where no others are given."""
RANGE_IMAGES = 40
"""Good images that tell int8 the ranges of the activations."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export did."""

    path: Path
    thresholds: Thresholds
    """Inside the file."""
    recalibrated: bool
    """Whether the thresholds come from scores of the exported graph itself; else they are the detector's."""
    tolerance: float
    parity: dict[str, Parity]
    """Differences from the same network in fp32, and from the detector as it is where that is bf16."""


def export(
    detector: AnomalyDetector,
    output: str | os.PathLike[str],
    *,
    format: str = "onnx",  # noqa: A002 - the flag's name
    precision: Precision = "fp32",
    images: object = None,
    data: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write a detector as one file that takes raw images and gives scores, decisions and maps.

    The thresholds are measured anew with the exported graph, on the good images that `fit` held out, where all of them
    are at hand; else they stay as they are. Then graph and detector judge the same images.

    Args:
        detector: fitted.
        output: the file; its name ends in .onnx, .xml (OpenVINO; weights in .bin beside it) or .pt2 (torch).
        format: "onnx", "openvino" or "torch".
        precision: "fp32"; "fp16" stores weights in half the space; "int8" runs the backbone in 8 bit.
        images: on which parity is measured; by default some of the good images of the fit.
        data: a labelled data set, on whose test images parity and the change of AUROC are measured too.
        tolerance: largest difference of a score or a map's value from the same network in float32, as a share of the
            threshold; by default `TOLERANCES`.
        progress: is told of the stages.

    Raises:
        ModelError: the difference exceeds the tolerance; nothing is written.
        ConfigError: unknown format or precision, or a package is missing.
        DataError: no images to measure parity on.
    """
    path, progress = Path(output), progress or Silent()
    draft_class = check_format(path, format, precision)
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    good = _good_images(detector)
    samples = detector.test_samples(data) if data is not None else []
    sources = _parity_images(images, good, needed=not samples)
    ranges = _range_images(detector, good) if precision == "int8" else []

    twin = in_full_precision(detector)
    draft: Draft = draft_class(DetectorGraph(twin.network_).eval(), precision, ranges)
    measured = recalibrate(draft.runtime(), detector, good, progress)
    calibration = measured or detector.calibration_
    rates = detector.fitted_config_.calibration
    thresholds = calibration.thresholds(rates.false_alarm_rate, rates.unsure_rate)
    draft.set_thresholds(thresholds)
    references = {"fp32": twin}
    if detector.network_.embedding.dtype == torch.bfloat16:
        references["bf16"] = detector
    parity = measure(draft.runtime(), references, sources, samples, progress=progress)
    worst = parity["fp32"].worst
    if not worst <= tolerance:  # true for NaN too
        raise ModelError(
            f"the exported graph differs by {worst:.2g} of the threshold from the model, more than the tolerance "
            f"{tolerance:g}; nothing was written ({parity['fp32'].describe()})"
        )
    exported = Exported(
        path=path, thresholds=thresholds, recalibrated=measured is not None, tolerance=tolerance, parity=parity
    )
    draft.write(path, _record(detector, calibration, exported, format, precision))
    return exported


def check_format(path: Path, format: str, precision: str) -> type[Any]:  # noqa: A002
    """What makes files of a format.

    Raises:
        ConfigError: unknown format or precision, or the file's name ends otherwise.
    """
    if format not in FORMATS or precision not in TOLERANCES:
        raise ConfigError(f"formats are {', '.join(FORMATS)}, precisions {', '.join(TOLERANCES)}")
    suffix, draft_class = FORMATS[format]
    if path.suffix != suffix:
        raise ConfigError(f"the output of --format {format} must end in {suffix}, not {path.name!r}")
    return draft_class


def in_full_precision(detector: AnomalyDetector) -> AnomalyDetector:
    """The same detector in float32 on the CPU, its backbone's weights as they were before any rounding."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        save_model(folder, detector.network_, detector.calibration_, detector.metadata_, store_backbone=True)
        network = load_model(folder)[0]
    twin = AnomalyDetector.from_config(network.config, device="cpu")
    twin.network_, twin.fitted_config_ = network, detector.fitted_config_
    twin.calibration_, twin.metadata_ = detector.calibration_, detector.metadata_
    twin.set_rates()
    return twin


def recalibrate(
    runtime: Runtime, detector: AnomalyDetector, good: Sequence[object], progress: Progress
) -> Calibration | None:
    """Scores of the held-out good images by the exported graph; None where not all of them are at hand."""
    held_out = set(detector.metadata_["data"]["held_out_hashes"])
    progress.start("thresholds", total=len(held_out))
    seen: set[str] = set()
    scores: list[NDArray[np.float32]] = []
    maps: list[NDArray[np.float32]] = []
    with closing(_load(detector, (s for s in good if _may_be(s, held_out)))) as loaded:
        for batch in in_batches((image for image in loaded if loaded_hash(image) in held_out), 8):
            seen.update(map(loaded_hash, batch))
            pixels = np.stack([image.pixels for image in batch])
            for gathered, output in zip((scores, maps), runtime(pixels, ["score", "score_map"]), strict=True):
                gathered.append(output)
            progress.advance(len(batch))
    progress.finish()
    if not held_out or seen != held_out:
        return None
    return Calibration.of(np.concatenate(scores), np.concatenate(maps))


def _good_images(detector: AnomalyDetector) -> Sequence[object]:
    """The good images of the fit; none where they are not at hand."""
    try:
        return detector.good_sources()
    except DataError:
        return []


def _parity_images(images: object, good: Sequence[object], *, needed: bool) -> Sequence[object]:
    if images is not None:
        if isinstance(images, str | os.PathLike) and not Path(images).exists():
            raise DataError(f"no such file or folder: {images}")
        return as_sources(images)
    if needed and not good:
        raise DataError("the good images that the model learned from are not at hand; give some with --images")
    step = max(1, len(good) // PARITY_IMAGES)
    return good[::step][:PARITY_IMAGES]


def _range_images(detector: AnomalyDetector, good: Sequence[object]) -> list[NDArray[np.uint8]]:
    """Good images at network size that the thresholds do not come from."""
    held_out = set(detector.metadata_["data"]["held_out_hashes"])
    with closing(_load(detector, good)) as loaded:
        pixels = [i.pixels for i in islice((i for i in loaded if loaded_hash(i) not in held_out), RANGE_IMAGES)]
    if not pixels:
        raise DataError("int8 needs good images of the fit for the ranges of its activations, and none is at hand")
    return pixels


def _load(detector: AnomalyDetector, sources: Iterable[object]) -> Generator[LoadedImage, None, None]:
    return load_images(sources, detector.fitted_config_.embedding.image_size, on_error="skip")


def _may_be(source: object, hashes: set[str]) -> bool:
    """Whether an image is one of those; of images in memory the hash is known only once they are loaded."""
    if not isinstance(source, str | os.PathLike):
        return True
    return Path(source).is_file() and content_hash(source) in hashes


def _record(
    detector: AnomalyDetector,
    calibration: Calibration,
    exported: Exported,
    file_format: str,
    precision: Precision,
) -> dict[str, Any]:
    """The metadata of the file: those of the model, without the place of its images, and how it was exported."""
    embedding = detector.network_.embedding
    packages = {"onnx": ("torch", "onnx", "onnxscript", "onnxruntime"), "torch": ("torch",)}
    packages["openvino"] = (*packages["onnx"], "openvino")
    thresholds = exported.thresholds
    return {
        **detector.metadata_,
        "data": {**detector.metadata_["data"], "path": None, "held_out_path": None},
        "format": FORMAT,
        "config": detector.fitted_config_.to_dict(),
        "calibration": asdict(calibration),
        "backbone": {
            "name": embedding.config.backbone,
            "source": embedding.source,
            "sha256": embedding.sha256,
            "stored": True,
        },
        "export": {
            "adtr": adtr.__version__,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {name: version(name) for name in packages[file_format]},
            "format": file_format,
            "precision": precision,
            "classes": ["good", "anomalous"],
            "threshold": thresholds.image,
            "pixel_threshold": thresholds.pixel,
            "recalibrated": exported.recalibrated,
            "tolerance": exported.tolerance,
            "parity": {name: parity.to_dict() for name, parity in exported.parity.items()},
        },
    }

"""From the bytes of an image to the verdict that is sent: the work of the server's threads."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adtr.data.loading import LoadedImage, load_image
from adtr.errors import ImageError
from adtr.prediction import Prediction
from adtr.predictor import Predictor
from adtr.report.pictures import scale_map, shown_range
from adtr.serve.schemas import ImageVerdict, MapFormat, MapValues, RegionValues
from adtr.serve.uploads import RefusedError, Upload

MAX_MAP_PIXELS = 8_000_000
"""Of the maps at image size in one answer."""


def decode(upload: Upload, detector: Predictor, max_pixels: int) -> LoadedImage:
    """The image at the network's size.

    Raises:
        RefusedError: it cannot be read (400).
    """
    try:
        return load_image(upload.data, detector.fitted_config_.embedding.image_size, max_pixels=max_pixels)
    except ImageError as error:
        name = f" {upload.name}" if upload.name else ""
        raise RefusedError(400, str(error).replace(" (bytes)", name, 1)) from error


def check_maps(images: list[LoadedImage], map_format: MapFormat | None) -> None:
    """Refuse answers that would be too large.

    Raises:
        RefusedError: the maps hold too many pixels (413).
    """
    pixels = sum(math.prod(image.size) for image in images)
    if map_format in ("png", "float") and pixels > MAX_MAP_PIXELS:
        raise RefusedError(
            413, f"maps of {pixels} pixels exceed the limit of {MAX_MAP_PIXELS}; send fewer images or ask for map=grid"
        )


def describe(prediction: Prediction, name: str, map_format: MapFormat | None) -> ImageVerdict:
    """What is told of a prediction."""
    return ImageVerdict(
        name=name,
        height=prediction.size[0],
        width=prediction.size[1],
        score=prediction.score,
        p_value=prediction.p_value,
        severity=prediction.severity,
        threshold=prediction.thresholds.image,
        verdict=prediction.verdict,
        is_anomalous=prediction.is_anomalous,
        regions=[RegionValues(**region.to_dict()) for region in prediction.regions],
        map=None if map_format is None else _encode(prediction, map_format),
    )


def _encode(prediction: Prediction, map_format: MapFormat) -> MapValues:
    values = prediction.score_map if map_format == "grid" else prediction.anomaly_map
    height, width = values.shape
    if map_format != "png":
        return MapValues(encoding="float32", height=height, width=width, data=_base64(_little_endian(values)))
    low, high = shown_range(prediction.thresholds.pixel)
    gray = np.rint(scale_map(values, low=low, high=high) * 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(gray).save(buffer, "PNG")
    return MapValues(encoding="png", height=height, width=width, low=low, high=high, data=_base64(buffer.getvalue()))


def _little_endian(values: NDArray[np.float32]) -> bytes:
    return np.ascontiguousarray(values, "<f4").tobytes()


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()

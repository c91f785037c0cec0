"""Where predictions go: map files, overlays and panels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from adtr.data.images import read_image
from adtr.errors import AdtrError
from adtr.files import replace_file
from adtr.prediction import Prediction, upsample
from adtr.report.pictures import contact_sheet, overlay, panel, shown_range, tile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from adtr.evaluation import Evaluated
    from adtr.learning.audit import Audit

CONTACT_COLUMNS, CONTACT_SIDE = 6, 224


def output_paths(images: Sequence[Path], names: Iterable[Path], folder: Path, suffix: str) -> list[Path]:
    """Where the picture of each image goes: its name below the folder, numbered where two would be the same.

    Args:
        images: files that must not be overwritten.
        names: relative paths, one for each image; their suffixes are replaced.
        folder: of the pictures.
        suffix: of the pictures.

    Raises:
        AdtrError: a picture would take the place of an image.
    """
    paths: dict[Path, None] = {}  # in order, and quick to search
    for name in names:
        path, number = folder / name.with_suffix(suffix), 1
        while path in paths:
            number += 1
            path = folder / name.with_name(f"{name.stem}-{number}{suffix}")
        paths[path] = None
    kept = {image.resolve() for image in images}
    for path in paths:
        if path.resolve() in kept:
            raise AdtrError(f"{path} would be overwritten, which is an image to read; choose another folder")
    return list(paths)


def save_map(prediction: Prediction, path: Path) -> Path:
    """The anomaly map at the image's own size, 32-bit float TIFF."""
    return _save(Image.fromarray(prediction.anomaly_map), path, "TIFF", compression="tiff_deflate")


def save_overlay(prediction: Prediction, image: Image.Image, path: Path) -> Path:
    """The heat map over the image, marked regions outlined, JPEG."""
    low, high = shown_range(prediction.thresholds.pixel)
    picture = overlay(image, prediction.anomaly_map, low=low, high=high, threshold=prediction.thresholds.pixel)
    return _save(picture, path, "JPEG", quality=90)


def save_panel(item: Evaluated, path: Path) -> Path:
    """Image, truth, heat map and contour side by side, JPEG; `item` must hold its image."""
    assert item.image is not None
    prediction, sample = item.prediction, item.sample
    low, high = shown_range(prediction.thresholds.pixel)
    sign = ">" if prediction.is_anomalous else "<="
    name = f"{sample.defect_type}/{sample.path.name}"
    picture = panel(
        item.image,
        prediction.anomaly_map,
        truth=item.truth(),
        low=low,
        high=high,
        threshold=prediction.thresholds.pixel,
        title=f"{name}   {prediction.score:.4g} {sign} {prediction.thresholds.image:.4g}   {prediction.verdict}",
    )
    return _save(picture, path, "JPEG", quality=90)


def save_contact_sheet(audit: Audit, path: Path, top: int) -> Path:
    """The most suspicious images of an audit with their heat maps, ranks and names, JPEG."""
    low, high = shown_range(audit.typical_maximum)
    tiles = []
    for image in audit.images[:top]:
        picture = read_image(image.source)
        picture.thumbnail((CONTACT_SIDE, CONTACT_SIDE))
        score_map = upsample(image.score_map, (picture.height, picture.width))
        name = Path(image.name).name
        tiles.append(tile(picture, score_map, low=low, high=high, title=f"{image.rank}  {name}"))
    return _save(contact_sheet(tiles, min(CONTACT_COLUMNS, len(tiles))), path, "JPEG", quality=88)


def _save(picture: Image.Image, path: Path, file_format: str, **options: object) -> Path:
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    replace_file(path, buffer.getvalue())
    return path

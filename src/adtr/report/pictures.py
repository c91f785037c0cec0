"""Pictures of anomaly maps: heat maps, overlays, and panels that set an image, its truth and its map side by side.

They are for looking at: values outside the range shown are clipped here, and nowhere else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

# Night blue, violet, red, orange, pale yellow, about evenly spaced in lightness (CIELAB L* from 4 to 97), so that the
# order of the values survives gray printing and colour blindness.
HEAT = np.array(
    [
        (9, 11, 36),
        (38, 23, 84),
        (80, 26, 112),
        (126, 34, 117),
        (175, 47, 104),
        (217, 74, 78),
        (243, 118, 48),
        (252, 178, 66),
        (254, 247, 205),
    ]
)
CONTOUR = (0, 255, 200)  # the one hue that neither the heat colours nor most materials have
INK, GRAY, PAPER, NO_MASK = (32, 32, 36), (120, 120, 126), (255, 255, 255), (226, 226, 230)
MAX_ASPECT = 2  # a tile of a panel is at most this many times as wide as high may be


def heat_colors(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Colour values from dark blue through red and orange to pale yellow, ever lighter.

    Args:
        values: Shape (H, W), in 0..1; what lies outside gets the nearest end's colour.

    Returns:
        RGB, shape (H, W, 3).
    """
    # A table of 256 colours is as fine as 8 bits per channel, and ten times as fast as interpolating at each pixel.
    steps = np.linspace(0, 1, len(HEAT))
    table = np.stack([np.interp(np.linspace(0, 1, 256), steps, channel) for channel in HEAT.T], axis=1)
    index = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    colors: NDArray[np.uint8] = np.rint(table).astype(np.uint8)[index]
    return colors


def scale_map(anomaly_map: NDArray[Any], *, low: float, high: float) -> NDArray[np.float32]:
    """Bring raw scores to 0..1 for showing.

    Args:
        anomaly_map: Raw scores, shape (H, W).
        low: The score that becomes 0, with all below it.
        high: The score that becomes 1, with all above it. Where it equals `low`, the scale is a step above it.

    Returns:
        Shape (H, W), in 0..1.

    Raises:
        ValueError: If `low` and `high` are no range.
    """
    if not low <= high:
        raise ValueError(f"low must not be above high, but {low} > {high}")
    if low == high:
        return (anomaly_map > low).astype(np.float32)
    scaled: NDArray[np.float32] = np.clip((anomaly_map - low) / (high - low), 0, 1).astype(np.float32)
    return scaled


def shown_range(pixel_threshold: float) -> tuple[float, float]:
    """Low and high end of the colour scale that a model's pictures share: its pixel threshold lies in the middle."""
    return 0.4 * pixel_threshold, 1.6 * pixel_threshold


def overlay(
    image: Image.Image,
    anomaly_map: NDArray[Any],
    *,
    low: float,
    high: float,
    threshold: float | None,
    opacity: float = 0.5,
) -> Image.Image:
    """Lay the heat over the image, more opaque where it is hotter, and outline what exceeds the threshold.

    Args:
        image: The image, of any mode that converts to RGB.
        anomaly_map: Raw scores, shape (H, W), of the image's size.
        low: The score that is not shown at all: the image stays as it is.
        high: The score shown hottest.
        threshold: Regions with scores above it are outlined; None outlines nothing.
        opacity: Of the hottest colour, in 0..1; 0 leaves the outlines alone.

    Returns:
        RGB, of the image's size.

    Raises:
        ValueError: If the sizes differ, or `low` is above `high`.
    """
    _check_size("anomaly map", anomaly_map, image)
    heat = scale_map(anomaly_map, low=low, high=high)
    pixels = _blend(np.asarray(image.convert("RGB"), np.float32), heat_colors(heat), opacity * heat)
    if threshold is not None:
        pixels = _draw_contour(pixels, anomaly_map > threshold)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def tiles(
    image: Image.Image,
    anomaly_map: NDArray[Any],
    *,
    truth: NDArray[Any] | None,
    low: float,
    high: float,
    threshold: float | None,
    height: int = 256,
) -> dict[str, Image.Image | None]:
    """What shows a verdict: image, truth, anomaly map, and the image with the anomalies outlined.

    Args:
        image: The image, of any mode that converts to RGB.
        anomaly_map: Raw scores, shape (H, W), of the image's size.
        truth: Mask of the true anomalies, shape (H, W), nonzero where anomalous; None where nobody marked them.
        low: The score shown darkest.
        high: The score shown hottest.
        threshold: Regions with scores above it are outlined; None outlines nothing.
        height: Of each picture, in pixels. Images more than twice as wide as high become less high instead of wider.

    Returns:
        RGB pictures of one size by their names, in the order in which they are shown; None in place of no truth.

    Raises:
        ValueError: If the sizes differ, or `low` is above `high`.
    """
    _check_size("anomaly map", anomaly_map, image)
    if truth is not None:
        _check_size("truth", truth, image)
    scale = min(height / image.height, MAX_ASPECT * height / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    image = image.convert("RGB")
    shrink = int(1 / scale)
    if shrink > 1:
        # The highest score of each block of pixels is kept, so that the smallest anomaly is still seen.
        image = image.reduce(shrink)
        anomaly_map = _block_maximum(anomaly_map, shrink)
        truth = None if truth is None else _block_maximum(truth, shrink)
    elif scale > 1:
        # Enlarged before the outline is drawn, whose line would be enlarged too.
        image = image.resize(size, Image.Resampling.BICUBIC)
        scores = Image.fromarray(np.asarray(anomaly_map, np.float32))
        anomaly_map = np.asarray(scores.resize(size, Image.Resampling.BILINEAR))

    shown = scale_map(anomaly_map, low=low, high=high)
    marked = overlay(image, anomaly_map, low=low, high=high, threshold=threshold, opacity=0)
    pictures = {
        "image": image,
        "truth": None if truth is None else Image.fromarray(np.where(truth, 255, 0).astype(np.uint8)),
        "anomaly map": Image.fromarray(heat_colors(shown)),
        "marked": marked,
    }
    return {
        name: None if picture is None else picture.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        for name, picture in pictures.items()
    }


def panel(
    image: Image.Image,
    anomaly_map: NDArray[Any],
    *,
    truth: NDArray[Any] | None,
    low: float,
    high: float,
    threshold: float | None,
    title: str,
    height: int = 256,
) -> Image.Image:
    """One row of a report: image, truth, anomaly map, and the image with the anomalies outlined.

    Args:
        image: The image, of any mode that converts to RGB.
        anomaly_map: Raw scores, shape (H, W), of the image's size.
        truth: Mask of the true anomalies, shape (H, W), nonzero where anomalous; None shows that there is none.
        low: The score shown darkest.
        high: The score shown hottest.
        threshold: Regions with scores above it are outlined; None outlines nothing.
        title: The caption, one line.
        height: Of each picture, in pixels. Images more than twice as wide as high become less high instead of wider.

    Returns:
        RGB on white. The proportions of the image are kept; the panel is as wide as its pictures or its title need.

    Raises:
        ValueError: If the sizes differ, or `low` is above `high`.
    """
    pictures = tiles(image, anomaly_map, truth=truth, low=low, high=high, threshold=threshold, height=height)
    size = next(picture.size for picture in pictures.values() if picture is not None)
    title_size, heading_size, gap = max(12, height // 16), max(10, height // 20), max(4, height // 32)
    title_font, heading_font = ImageFont.load_default(title_size), ImageFont.load_default(heading_size)
    cell = max(size[0], *(round(heading_font.getlength(heading)) for heading in pictures))
    width = max(4 * cell + 3 * gap, round(title_font.getlength(title)))
    top = round(1.3 * title_size + 1.5 * heading_size) + 2 * gap
    sheet = Image.new("RGB", (width + 2 * gap, top + size[1] + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill=INK, font=title_font)
    for column, (heading, picture) in enumerate(pictures.items()):
        left = gap + column * (cell + gap)
        draw.text((left, top - gap // 2), heading, fill=GRAY, font=heading_font, anchor="ls")
        if picture is not None:
            sheet.paste(picture, (left, top))
        else:
            sheet.paste(NO_MASK, (left, top, left + size[0], top + size[1]))
            middle = left + max(size[0], heading_font.getlength("no mask")) / 2
            draw.text((middle, top + size[1] / 2), "no mask", fill=GRAY, font=heading_font, anchor="mm")
    return sheet


def tile(image: Image.Image, anomaly_map: NDArray[Any], *, low: float, high: float, title: str) -> Image.Image:
    """One picture of a contact sheet: the image with its heat, outlined above the middle of the scale, and a caption.

    Args:
        image: The image, of any mode that converts to RGB.
        anomaly_map: Raw scores, shape (H, W), of the image's size.
        low: The score that is not shown at all.
        high: The score shown hottest.
        title: One line below; its beginning is cut where it is too long.

    Returns:
        RGB on white, as wide as the image and a little higher.

    Raises:
        ValueError: If the sizes differ, or `low` is above `high`.
    """
    picture = overlay(image, anomaly_map, low=low, high=high, threshold=(low + high) / 2, opacity=0.35)
    size = max(10, picture.width // 18)
    font, margin = ImageFont.load_default(size), size // 2
    while font.getlength(title) > picture.width and len(title) > 1:
        title = f"…{title.removeprefix('…')[1:]}"
    framed = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin + round(1.4 * size)), PAPER)
    framed.paste(picture, (margin, margin))
    ImageDraw.Draw(framed).text((margin, margin + picture.height + size // 5), title, fill=INK, font=font)
    return framed


def contact_sheet(panels: Sequence[Image.Image], columns: int = 1) -> Image.Image:
    """Set panels in rows, from left to right and from top to bottom, on white.

    Args:
        panels: At least one, of any sizes.
        columns: How many stand in a row.

    Returns:
        RGB; each column is as wide as its widest panel, each row as high as its highest.

    Raises:
        ValueError: If there are no panels or no columns.
    """
    if not panels or columns < 1:
        raise ValueError(f"a contact sheet needs panels and columns, not {len(panels)} panels in {columns} columns")
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    widths = [max(picture.width for picture in panels[i::columns]) for i in range(min(columns, len(panels)))]
    heights = [max(picture.height for picture in row) for row in rows]
    sheet = Image.new("RGB", (sum(widths), sum(heights)), PAPER)
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            sheet.paste(picture, (sum(widths[:j]), sum(heights[:i])))
    return sheet


def _check_size(name: str, array: NDArray[Any], image: Image.Image) -> None:
    if array.shape != (image.height, image.width):
        raise ValueError(f"the {name}'s shape {array.shape} is not the image's {(image.height, image.width)}")


def _block_maximum(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The maximum of each block of `size` x `size` pixels; those at the end may be smaller, as in `Image.reduce`."""
    for axis in (0, 1):
        array = np.maximum.reduceat(array, np.arange(0, array.shape[axis], size), axis=axis)
    return array


def _blend(pixels: NDArray[np.float32], color: ArrayLike, alpha: NDArray[Any]) -> NDArray[np.float32]:
    """Lay a colour, or one colour per pixel, over the pixels."""
    blended: NDArray[np.float32] = pixels + (np.asarray(color, np.float32) - pixels) * alpha[..., None]
    return blended


def _draw_contour(pixels: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Outline the regions of a mask: a bright line between dark edges, which shows on any ground."""
    if not mask.any():
        return pixels
    from scipy import ndimage

    # Outside the image nothing is anomalous, so that a region at the border is closed there.
    padded = np.pad(mask, 1)
    distance = ndimage.distance_transform_edt(padded) + ndimage.distance_transform_edt(~padded) - 0.5
    distance = distance[1:-1, 1:-1]  # from the edge of the region, on either side of it
    half = max(1.0, max(mask.shape) / 300)  # the line is twice as wide
    pixels = _blend(pixels, INK, 0.6 * np.clip(2 * half - distance + 0.5, 0, 1))
    return _blend(pixels, CONTOUR, np.clip(half - distance + 0.5, 0, 1))

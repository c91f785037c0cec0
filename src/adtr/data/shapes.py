"""Drawn annotations, rasterised when their pixels are asked for."""

import base64
import math
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from adtr.data.images import decode_mask, same_aspect_ratio
from adtr.errors import ImageError

LINE_WIDTH = 3
"""Of an open line or a point, in pixels."""
MAX_OUTLINE = 5_000_000
"""Length of all outlines of one image together, in pixels; Pillow needs a second for some millions."""

Points: TypeAlias = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A polygon, a box given by two opposite corners, or an open line of `LINE_WIDTH` pixels; points are (x, y)."""

    kind: Literal["polygon", "rectangle", "line"]
    points: Points

    @property
    def area(self) -> float:
        """The area it encloses or covers, in pixels."""
        x, y = np.array(self.points).T
        if self.kind == "polygon":
            return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
        if self.kind == "rectangle":
            return float(np.ptp(x) * np.ptp(y))
        return float(np.hypot(np.diff(x), np.diff(y)).sum()) * LINE_WIDTH

    def length(self, size: tuple[int, int], scale: tuple[float, float]) -> float:
        """How far its outline goes inside an image of (width, height), in pixels; the longer, the slower to draw."""
        points = np.clip(np.array([*self.points, self.points[0]]) * scale, 0, size)
        return float(np.abs(np.diff(points, axis=0)).max(axis=1).sum())

    def draw(self, canvas: Image.Image, scale: tuple[float, float]) -> None:
        """Marks every pixel that it touches."""
        points = np.clip(np.array(self.points) * scale, -(2**28), 2**28)  # Pillow's coordinates are 32-bit integers
        pixels = [pixel for pixel, _ in groupby((int(x), int(y)) for x, y in np.floor(points))]
        pixels = pixels if len(pixels) > 1 else pixels * 2  # Pillow draws no single point
        drawing = ImageDraw.Draw(canvas)
        if self.kind == "polygon":
            drawing.polygon(pixels, fill=1)
        elif self.kind == "line":
            drawing.line(pixels, fill=1, width=LINE_WIDTH)
        else:
            first = np.floor(points.min(axis=0))
            last = np.maximum(np.ceil(points.max(axis=0)) - 1, first)
            drawing.rectangle((*first.astype(int).tolist(), *last.astype(int).tolist()), fill=1)


@dataclass(frozen=True, kw_only=True)
class Runs:
    """A mask as the lengths of its runs, column by column, the first of unmarked pixels; size is (height, width)."""

    counts: tuple[int, ...]
    size: tuple[int, int]

    @property
    def area(self) -> float:
        """The number of marked pixels."""
        return sum(self.counts[1::2])

    def draw(self, canvas: Image.Image, scale: tuple[float, float]) -> None:
        """Marks its pixels."""
        marked = np.arange(len(self.counts)) % 2 == 1
        _stamp(canvas, np.repeat(marked, self.counts).reshape(self.size[::-1]).T, (0, 0), scale)


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A mask of a part of the image: a base64 PNG, and the two corners (x, y) of its box, the second one included."""

    png: str
    corners: Points
    name: str

    @property
    def area(self) -> float:
        """The pixels of its box."""
        (left, top), (right, bottom) = self.corners
        return (abs(right - left) + 1) * (abs(bottom - top) + 1)

    def draw(self, canvas: Image.Image, scale: tuple[float, float]) -> None:
        """Marks its pixels."""
        try:
            data = base64.b64decode(self.png, validate=True)
        except ValueError as error:
            raise ImageError(f"cannot read mask {self.name}: {error}") from error
        (left, top), (right, bottom) = self.corners
        pixels = math.ceil(canvas.width / scale[0]) * math.ceil(canvas.height / scale[1])
        _stamp(
            canvas,
            decode_mask(data, self.name, max_pixels=pixels),
            (int(min(left, right)), int(min(top, bottom))),
            scale,
        )


Region: TypeAlias = Outline | Runs | Patch


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What somebody drew on one image; nothing is rasterised before `draw`.

    Attributes:
        source: The file it comes from.
        size: Height and width, in pixels, that the coordinates refer to; None if they are the image's own.
        regions: What is marked.
    """

    source: Path
    size: tuple[int, int] | None
    regions: tuple[Region, ...]

    def draw(self, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
        """Rasterises the regions; what lies outside the image is cut off.

        Args:
            size: Height and width of the upright image, in pixels.

        Returns:
            An array (height, width), true where marked.

        Raises:
            ImageError: The annotations were made for another aspect ratio (by more than 2 %), hold a mask that cannot
                be decoded, or outlines longer than `MAX_OUTLINE`.
        """
        drawn_for = self.size or size
        if not same_aspect_ratio(drawn_for, size):
            raise ImageError(
                f"cannot use annotations {self.source}: they are for an image of {drawn_for[0]} x {drawn_for[1]} "
                f"pixels, but the image is {size[0]} x {size[1]} pixels (height x width)"
            )
        canvas, scale = Image.new("L", (size[1], size[0])), (size[1] / drawn_for[1], size[0] / drawn_for[0])
        length = sum(region.length(canvas.size, scale) for region in self.regions if isinstance(region, Outline))
        if length > MAX_OUTLINE:
            raise ImageError(
                f"cannot use annotations {self.source}: outlines of {length:.0f} pixels exceed the limit of "
                f"{MAX_OUTLINE}"
            )
        for region in self.regions:
            region.draw(canvas, scale)
        return np.asarray(canvas) != 0


def _stamp(
    canvas: Image.Image, mask: npt.NDArray[np.bool_], corner: tuple[int, int], scale: tuple[float, float]
) -> None:
    """Marks the pixels of a mask whose upper left corner (x, y) is given; whatever is outside the canvas is skipped."""
    to_mask = (1 / scale[0], 0, -corner[0], 0, 1 / scale[1], -corner[1])
    image = Image.fromarray(mask.astype(np.uint8) * 255)
    canvas.paste(1, mask=image.transform(canvas.size, Image.Transform.AFFINE, to_mask, Image.Resampling.NEAREST))

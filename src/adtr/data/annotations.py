"""Reads drawn annotations: COCO and LabelMe."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from adtr.data.folder import GOOD_NAMES
from adtr.data.images import MAX_PIXELS
from adtr.data.shapes import LINE_WIDTH, Outline, Patch, Points, Region, Runs, Shapes
from adtr.errors import DataError
from adtr.files import parse_json, read_bounded

MAX_BYTES = 512 * 2**20

_MAX_COORDINATE = 1_000_000
_CORNERS = 64  # of the polygon that stands for a circle: Pillow draws huge circles too slowly
_LABELME_POINTS = {  # the fewest and the most points of each shape type
    "polygon": (3, math.inf),
    "rectangle": (2, 2),
    "circle": (2, 2),
    "line": (2, 2),
    "linestrip": (2, math.inf),
    "point": (1, 1),
    "mask": (2, 2),
}


class Annotation(NamedTuple):
    """What an annotation file says about one image: the defect type with the largest area, and the marked pixels."""

    defect_type: str
    shapes: Shapes | None


def read_json(path: Path) -> object:
    """Reads a JSON file of at most `MAX_BYTES`.

    Raises:
        DataError: The file cannot be read, is too large, or not JSON.
    """
    with _explained(path):
        try:
            data = read_bounded(path, MAX_BYTES)
        except OSError as error:
            raise ValueError(error.strerror or str(error)) from error
        try:
            return parse_json(data)
        except ValueError as error:
            raise ValueError(f"not JSON ({error})") from error


def is_coco(content: object) -> bool:
    """Whether the content of a JSON file looks like COCO annotations."""
    return isinstance(content, dict) and {"images", "annotations"} <= content.keys()


def parse_coco(content: object, path: Path) -> dict[str, Annotation | None]:
    """Sorts COCO annotations by image.

    Polygons, run lengths (plain or compressed) and, for want of these, bounding boxes are taken. Categories named
    good, ok or normal mark nothing.

    Args:
        content: What `read_json` returned.
        path: The file it came from.

    Returns:
        Each image's `file_name`, not checked, and what is known about it; None if it has no annotations.

    Raises:
        DataError: The content is no COCO annotations, or something in it is missing or of the wrong type.
    """
    with _explained(path):
        if not is_coco(content):
            raise ValueError("neither COCO (images, annotations, categories) nor, beside its image, LabelMe (shapes)")
        images, categories = _by_id(content, "images"), _by_id(content, "categories")
        sizes = {key: _size(image, ("height", "width"), f"image {key!r}") for key, image in images.items()}
        names = {key: _label(category, "name", f"category {key!r}") for key, category in categories.items()}
        drawn: dict[object, list[tuple[str, list[Region]]]] = {key: [] for key in images}
        for i, annotation in enumerate(_field(content, "annotations", list, "the file")):
            where = f"annotations[{i}]"
            image = _known(annotation, "image_id", sizes, where)
            category = _known(annotation, "category_id", names, where)
            drawn[image].append((names[category], _coco_regions(annotation, sizes[image], where)))
        found: dict[str, Annotation | None] = {}
        for key, image in images.items():
            name = _field(image, "file_name", str, f"image {key!r}")
            if name in found:
                raise ValueError(f"image {name!r} is listed twice")
            found[name] = _summary(drawn[key], sizes[key], path)
        return found


def parse_labelme(content: object, path: Path) -> Annotation | None:
    """Reads what LabelMe drew on the image beside its file.

    Polygons, rectangles, circles, lines and points, which are drawn `LINE_WIDTH` pixels wide, and masks are taken.
    Labels good, ok or normal mark nothing.

    Args:
        content: What `read_json` returned.
        path: The file it came from.

    Returns:
        What is known about the image; None if nothing is drawn on it.

    Raises:
        DataError: The content is no LabelMe annotation, or something in it is missing or of the wrong type.
    """
    with _explained(path):
        if not isinstance(content, dict) or "shapes" not in content:
            raise ValueError("neither LabelMe (shapes) nor COCO (images, annotations, categories)")
        size = _size(content, ("imageHeight", "imageWidth"), "the file")
        drawn = []
        for i, shape in enumerate(_field(content, "shapes", list, "the file")):
            where = f"shapes[{i}]"
            drawn.append((_label(shape, "label", where), [_labelme_region(shape, path, where)]))
        return _summary(drawn, size, path)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns what is wrong with a file into one line."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"cannot use annotations {path}: {error}") from error


def _field(record: object, key: str, kind: type, where: str) -> Any:  # noqa: ANN401 - of type `kind`
    if not isinstance(record, dict) or type(record.get(key)) is not kind:
        raise ValueError(f"{where} has no {'list' if kind is list else 'text'} {key!r}")
    return record[key]


def _label(record: object, key: str, where: str) -> str:
    label = " ".join(_field(record, key, str, where).split())
    if not label or not label.isprintable():
        raise ValueError(f"{where} has an empty or unprintable {key!r}")
    return label


def _by_id(content: object, key: str) -> dict[object, object]:
    records: dict[object, object] = {}
    for i, record in enumerate(_field(content, key, list, "the file")):
        identity = record.get("id") if isinstance(record, dict) else None
        if not isinstance(identity, int | str) or identity in records:
            raise ValueError(f"{key}[{i}] has no 'id', or that of another one")
        records[identity] = record
    return records


def _known(record: object, key: str, known: dict[object, Any], where: str) -> object:
    identity = record.get(key) if isinstance(record, dict) else None
    if not isinstance(identity, int | str):
        raise ValueError(f"{where} has no {key!r}")
    if identity not in known:
        raise ValueError(f"{where} has an unknown {key!r}: {repr(identity)[:100]}")
    return identity


def _size(record: Any, keys: tuple[str, str], where: str) -> tuple[int, int] | None:  # noqa: ANN401 - a JSON object
    height, width = (record.get(key) for key in keys)
    if height is None and width is None:
        return None
    if not all(type(side) is int and 1 <= side <= _MAX_COORDINATE for side in (height, width)):
        raise ValueError(f"{where}: {keys[0]!r} and {keys[1]!r} must be positive whole numbers")
    return height, width


def _points(values: object, where: str, *, at_least: int, at_most: float = math.inf) -> Points:
    """Pairs up a flat list of numbers."""
    if not isinstance(values, list) or len(values) % 2:
        raise ValueError(f"{where} must be pairs of numbers")
    if not all(type(value) in (int, float) and abs(value) <= _MAX_COORDINATE for value in values):  # false for NaN too
        raise ValueError(f"{where} must be finite numbers of at most {_MAX_COORDINATE}")
    if not at_least <= len(values) // 2 <= at_most:
        needed = f"{at_least}" if at_least == at_most else f"at least {at_least}"
        raise ValueError(f"{where} must be {needed} points, not {len(values) // 2}")
    return tuple(zip(values[::2], values[1::2], strict=True))


def _coco_regions(annotation: Any, size: tuple[int, int] | None, where: str) -> list[Region]:  # noqa: ANN401
    segmentation, box = annotation.get("segmentation"), annotation.get("bbox")
    if isinstance(segmentation, dict):
        return [_runs(segmentation, size, where)]
    if segmentation:
        polygons = _field(annotation, "segmentation", list, where)
        name = f"the polygons of {where}"
        return [Outline(kind="polygon", points=_points(polygon, name, at_least=3)) for polygon in polygons]
    if not box:
        return []  # only the category is told
    (x, y), (width, height) = _points(box, f"the bbox of {where}", at_least=2, at_most=2)
    return [Outline(kind="rectangle", points=((x, y), (x + width, y + height)))]


def _runs(segmentation: dict[str, Any], size: tuple[int, int] | None, where: str) -> Runs:
    if size is None or segmentation.get("size") != list(size) or math.prod(size) > MAX_PIXELS:
        raise ValueError(f"the run lengths of {where} are not of the image's size, or of more than {MAX_PIXELS} pixels")
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _decompress(counts)
    if not isinstance(counts, list) or not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"the run lengths of {where} must be whole numbers or their compressed text")
    if sum(counts) != math.prod(size):
        raise ValueError(f"the run lengths of {where} sum to {sum(counts)}, not to {size[0]} x {size[1]} pixels")
    return Runs(counts=tuple(counts), size=size)


def _decompress(text: str) -> list[int] | None:
    """Decodes COCO's compressed run lengths; None if the text is none.

    A character holds 6 bits above "0": five of a number, the lowest first, and whether more follow. The last one's
    highest is the sign. From the fourth number on, each is the difference to the last but one.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        code = ord(character) - ord("0")
        if not 0 <= code < 64 or shift > 60:
            return None
        value |= (code & 31) << shift
        shift += 5
        if not code & 32:
            if code & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return None if shift else counts


def _labelme_region(shape: Any, path: Path, where: str) -> Region:  # noqa: ANN401 - checked by `_label`
    kind = shape.get("shape_type") or "polygon"  # old files have none
    at_least, at_most = _LABELME_POINTS.get(str(kind), (0, 0))
    if not at_most:
        raise ValueError(f"{where} has an unknown shape type; known are {', '.join(_LABELME_POINTS)}")
    pairs = _field(shape, "points", list, where)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f"the points of {where} must be pairs of numbers")
    points = _points(list(chain(*pairs)), f"the points of {where}", at_least=at_least, at_most=at_most)
    if kind == "mask":
        return Patch(png=_field(shape, "mask", str, where), corners=points, name=f"{where} of {path}")
    if kind == "circle":
        return Outline(kind="polygon", points=_circle(*points))
    if kind == "point":
        (x, y), radius = points[0], LINE_WIDTH / 2
        return Outline(kind="rectangle", points=((x - radius, y - radius), (x + radius, y + radius)))
    if kind == "rectangle":
        return Outline(kind="rectangle", points=points)
    return Outline(kind="polygon" if kind == "polygon" else "line", points=points)


def _circle(centre: tuple[float, float], edge: tuple[float, float]) -> Points:
    """A polygon in place of the circle around one point through another."""
    radius = math.dist(centre, edge)
    angles = [2 * math.pi * i / _CORNERS for i in range(_CORNERS)]
    return tuple((centre[0] + radius * math.cos(a), centre[1] + radius * math.sin(a)) for a in angles)


def _summary(drawn: list[tuple[str, list[Region]]], size: tuple[int, int] | None, path: Path) -> Annotation | None:
    areas: dict[str, float] = {}
    regions: list[Region] = []
    for label, its in drawn:
        if label.lower() not in GOOD_NAMES:
            areas[label] = areas.get(label, 0) + sum(region.area for region in its)
            regions += its
    if not areas:
        return None
    shapes = Shapes(source=path, size=size, regions=tuple(regions)) if regions else None
    return Annotation(max(areas, key=areas.__getitem__), shapes)

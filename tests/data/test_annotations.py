import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from adtr.data import annotations
from adtr.data.annotations import Annotation, is_coco, parse_coco, parse_labelme, read_json
from adtr.data.shapes import Shapes
from adtr.errors import AdtrError, DataError, ImageError

SOURCE = Path("some/x.json")


def picture(mask: np.ndarray) -> list[str]:
    return ["".join(".#"[int(value)] for value in row) for row in mask]


def coco(*segmentations: object, height: int = 4, width: int = 6, **changes: object) -> dict[str, Any]:
    """One image of a given size with polygons or run lengths of the type "dent"."""
    marks = [{"image_id": 1, "category_id": 1, "segmentation": each} for each in segmentations]
    content: dict[str, Any] = {
        "images": [{"id": 1, "file_name": "x.png", "height": height, "width": width}],
        "annotations": marks,
        "categories": [{"id": 1, "name": "dent"}, {"id": 2, "name": "scratch"}, {"id": 3, "name": "Good"}],
    }
    return content | changes


def labelme(*shapes: dict[str, Any], height: int | None = 4, width: int | None = 6) -> dict[str, Any]:
    return {"shapes": list(shapes), "imageHeight": height, "imageWidth": width}


def shape(kind: str | None, *points: list[float], **changes: object) -> dict[str, Any]:
    return {"label": "dent", "shape_type": kind, "points": list(points)} | changes


def png(rows: list[str]) -> str:
    file = io.BytesIO()
    Image.fromarray(np.array([[value == "#" for value in row] for row in rows])).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def shapes_of(annotation: Annotation | None) -> Shapes:
    assert annotation is not None
    assert annotation.shapes is not None
    return annotation.shapes


def drawn_coco(*segmentations: object, size: tuple[int, int] = (4, 6), **changes: Any) -> list[str]:  # noqa: ANN401
    return picture(shapes_of(parse_coco(coco(*segmentations, **changes), SOURCE)["x.png"]).draw(size))


def drawn_labelme(*shapes: dict[str, Any], size: tuple[int, int] = (4, 6)) -> list[str]:
    return picture(shapes_of(parse_labelme(labelme(*shapes, height=size[0], width=size[1]), SOURCE)).draw(size))


class TestCocoShapes:
    def test_polygon(self) -> None:
        assert drawn_coco([[1, 0, 4, 0, 4, 2]]) == [".####.", "...##.", "....#.", "......"]

    def test_several_polygons(self) -> None:
        assert drawn_coco([[0, 0, 1, 0, 1, 1, 0, 1], [4.9, 3, 5.5, 3, 5, 3.7]]) == [
            "##....",
            "##....",
            "......",
            "....##",
        ]

    def test_box_where_there_is_no_segmentation(self) -> None:
        for segmentation in ([], None):
            content = coco(segmentation)
            content["annotations"][0]["bbox"] = [1, 1, 3, 2]
            assert picture(shapes_of(parse_coco(content, SOURCE)["x.png"]).draw((4, 6))) == [
                "......",
                ".###..",
                ".###..",
                "......",
            ]

    def test_what_lies_outside_is_cut_off(self) -> None:
        assert drawn_coco([[-500, -700.5, 2, 1, -900, 900]]) == [
            "##....",
            "###...",
            "##....",
            "#.....",
        ]
        assert drawn_coco([[3, 2, 999999, 2, 999999, 999999, 3, 999999]]) == ["......", "......", "...###", "...###"]
        assert drawn_coco([[-0.9, 0, -0.1, 0, -0.1, 3]]) == ["......"] * 4

    def test_runs_go_down_the_columns(self) -> None:
        counts = {"size": [4, 6], "counts": [1, 2, 5, 1, 15]}
        assert drawn_coco(counts) == ["..#...", "#.....", "#.....", "......"]

    def test_compressed_runs(self) -> None:
        # 1, 2, 5, then 1 and 15 as differences to the last but one: -1 and 10
        assert drawn_coco({"size": [4, 6], "counts": "125O:"}) == ["..#...", "#.....", "#.....", "......"]

    def test_scaled_to_the_image(self) -> None:
        runs = {"size": [2, 3], "counts": [1, 1, 4]}
        triple = drawn_coco(runs, [[1.9, 0, 2.9, 0, 2.9, 0.9, 1.9, 0.9]], size=(4, 6), height=2, width=3)
        assert triple == ["...###", "...###", "##....", "##...."]

    @given(st.lists(st.integers(0, 10**7), max_size=12))
    def test_decompression_inverts_compression(self, counts: list[int]) -> None:
        assert annotations._decompress(compressed(counts)) == counts


def compressed(counts: list[int]) -> str:
    """The literal reading of COCO's coding: two's complement in groups of five bits."""
    text = ""
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        while True:
            group, number = number % 32, number // 32
            sign_told = number == (-1 if group >= 16 else 0)
            text += chr(48 + group + (0 if sign_told else 32))
            if sign_told:
                break
    return text


class TestLabelmeShapes:
    @pytest.mark.parametrize("kind", ["polygon", None])
    def test_polygon(self, kind: str | None) -> None:
        assert drawn_labelme(shape(kind, [1, 0], [4, 0], [4, 2])) == [".####.", "...##.", "....#.", "......"]

    def test_rectangle(self) -> None:
        expected = ["......", ".###..", ".###..", "......"]
        assert drawn_labelme(shape("rectangle", [4, 1], [1, 3])) == expected
        assert drawn_labelme(shape("rectangle", [1.2, 1.5], [3.4, 2.1])) == expected
        assert drawn_labelme(shape("rectangle", [2, 2], [2, 2]))[2] == "..#..."

    def test_circle(self) -> None:
        assert drawn_labelme(shape("circle", [3.5, 3.5], [3.5, 1.5]), size=(7, 7)) == [
            ".......",
            "..###..",
            ".#####.",
            ".#####.",
            ".#####.",
            "..###..",
            ".......",
        ]

    def test_lines_and_points_have_a_width(self) -> None:
        assert drawn_labelme(shape("line", [1, 1], [4, 1])) == [".####.", ".####.", ".####.", "......"]
        assert drawn_labelme(shape("linestrip", [1, 1], [1, 5], [6, 5]), size=(7, 8))[3:] == [
            "###.....",
            "#######.",
            "#######.",
            ".######.",
        ]
        assert drawn_labelme(shape("point", [2.5, 1.5])) == [".###..", ".###..", ".###..", "......"]

    def test_mask(self) -> None:
        patch = shape("mask", [3, 1], [5, 2], mask=png(["#.#", ".#."]))
        assert drawn_labelme(patch) == ["......", "...#.#", "....#.", "......"]
        outside = shape("mask", [-1, 3], [1, 4], mask=png(["#.#", ".#."]))
        assert drawn_labelme(outside)[3] == ".#...."

    def test_mask_scaled_to_the_image(self) -> None:
        content = labelme(shape("mask", [1, 0], [2, 0], mask=png(["#."])), height=1, width=3)
        assert picture(shapes_of(parse_labelme(content, SOURCE)).draw((2, 6))) == ["..##..", "..##.."]

    def test_without_a_size_the_coordinates_are_the_image_s(self) -> None:
        content = labelme(shape("rectangle", [1, 0], [2, 1]), height=None, width=None)
        for size in ((1, 3), (3, 2)):
            assert picture(shapes_of(parse_labelme(content, SOURCE)).draw(size))[0][:2] == ".#"

    @pytest.mark.parametrize("mask", ["?", "é", "AAAA", base64.b64encode(b"hello").decode()])
    def test_broken_mask(self, mask: str) -> None:
        shapes = shapes_of(parse_labelme(labelme(shape("mask", [0, 0], [1, 1], mask=mask)), SOURCE))
        with pytest.raises(ImageError, match=r"^cannot read mask shapes\[0\] of some/x\.json: ") as caught:
            shapes.draw((4, 6))
        assert "\n" not in str(caught.value)

    def test_too_large_a_mask(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("adtr.data.images.MAX_PIXELS", 5)
        patch = shape("mask", [3, 1], [5, 2], mask=png(["#.#", ".#."]))
        with pytest.raises(ImageError, match=r"x\.json: .*limit of 5 pixels"):
            drawn_labelme(patch)


def test_height_and_width_are_scaled_each_by_its_own() -> None:
    content = labelme(shape("rectangle", [0, 0], [50, 50]), height=100, width=100)
    mask = shapes_of(parse_labelme(content, SOURCE)).draw((102, 100))
    assert np.argwhere(mask).max(axis=0).tolist() == [50, 49]


def test_another_aspect_ratio_is_an_error() -> None:
    shapes = shapes_of(parse_coco(coco([[0, 0, 1, 0, 1, 1]], height=100, width=100), SOURCE)["x.png"])
    assert shapes.draw((51, 50)).shape == (51, 50)
    with pytest.raises(ImageError) as caught:
        shapes.draw((50, 52))
    assert str(caught.value) == (
        "cannot use annotations some/x.json: they are for an image of 100 x 100 pixels, but the image is "
        "50 x 52 pixels (height x width)"
    )


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adtr.data.shapes.decode_mask", None)
    monkeypatch.setattr("adtr.data.shapes.ImageDraw", None)
    assert parse_labelme(labelme(shape("mask", [0, 0], [1, 1], mask="?"), shape("line", [0, 0], [1, 1])), SOURCE)


class TestDefectType:
    def of(self, *marks: tuple[int, dict[str, Any]]) -> str:
        content = coco()
        content["annotations"] = [{"image_id": 1, "category_id": category} | mark for category, mark in marks]
        annotation = parse_coco(content, SOURCE)["x.png"]
        assert annotation is not None
        return annotation.defect_type

    def test_largest_area(self) -> None:
        small = {"segmentation": [[0, 0, 2, 0, 2, 2]]}
        box = {"bbox": [0, 0, 1, 3]}
        runs = {"segmentation": {"size": [4, 6], "counts": [19, 5]}}
        assert self.of((1, small), (2, box)) == "scratch"
        assert self.of((1, runs), (2, box)) == "dent"
        assert self.of((2, runs), (1, box)) == "scratch"
        assert self.of((1, small), (2, box), (1, small)) == "dent"  # areas of a type add up

    def test_labelme(self) -> None:
        box = shape("rectangle", [0, 0], [3, 3], label="hole")
        lines = [shape("line", [0, 0], [0, 2], label="line"), shape("linestrip", [0, 0], [0, 1], [3, 1], label="line")]
        for others, expected in (([], "hole"), (lines[:1], "hole"), (lines, "line")):
            annotation = parse_labelme(labelme(*others, box), SOURCE)
            assert annotation is not None
            assert annotation.defect_type == expected
        patch = shape("mask", [0, 0], [3, 3], mask="", label="patch")
        assert parse_labelme(labelme(box, patch), SOURCE)[0] == "patch"  # type: ignore[index]

    def test_good_marks_nothing(self) -> None:
        content = coco()
        content["annotations"] = [{"image_id": 1, "category_id": 3, "bbox": [0, 0, 9, 9]}]
        assert parse_coco(content, SOURCE) == {"x.png": None}
        assert parse_labelme(labelme(shape("point", [1, 1], label="OK")), SOURCE) is None

    def test_no_annotations(self) -> None:
        assert parse_coco(coco(), SOURCE) == {"x.png": None}
        assert parse_labelme(labelme(), SOURCE) is None

    def test_a_category_alone(self) -> None:
        content = coco(None)
        assert parse_coco(content, SOURCE) == {"x.png": Annotation("dent", None)}

    def test_spaces_are_tidied(self) -> None:
        annotation = parse_labelme(labelme(shape("point", [1, 1], label=" deep\n dent ")), SOURCE)
        assert annotation is not None
        assert annotation.defect_type == "deep dent"


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    content = coco([[0, 0, 3, 0, 3, 3]])
    change(content)
    return content


def runs(counts: object, size: object = (4, 6)) -> dict[str, Any]:
    return coco({"size": list(size) if isinstance(size, tuple) else size, "counts": counts})


BROKEN_COCO = {
    "neither kind": ({"a": 1}, "neither COCO"),
    "a list": ([1], "neither COCO"),
    "a number": (7, "neither COCO"),
    "LabelMe": (labelme(), "neither COCO"),
    "no categories": (changed(lambda c: c.pop("categories")), "the file has no list 'categories'"),
    "images of a wrong type": (coco(images={}), "the file has no list 'images'"),
    "annotations of a wrong type": (coco(annotations="x"), "the file has no list 'annotations'"),
    "an image of a wrong type": (coco(images=[3]), r"images\[0\] has no 'id'"),
    "an image without an id": (changed(lambda c: c["images"][0].pop("id")), r"images\[0\] has no 'id'"),
    "an id twice": (changed(lambda c: c["images"].append(c["images"][0])), r"images\[1\] has no 'id', or that of"),
    "no file name": (changed(lambda c: c["images"][0].pop("file_name")), "image 1 has no text 'file_name'"),
    "a file name twice": (
        changed(lambda c: c["images"].append(c["images"][0] | {"id": 2})),
        "image 'x.png' is listed twice",
    ),
    "a wrong height": (coco(height=-1), "image 1: 'height' and 'width' must be positive whole numbers"),
    "half a size": (changed(lambda c: c["images"][0].pop("width")), "must be positive whole numbers"),
    "a category without a name": (coco(categories=[{"id": 1}]), "category 1 has no text 'name'"),
    "an empty category": (coco(categories=[{"id": 1, "name": " "}]), "category 1 has an empty or unprintable 'name'"),
    "an unprintable category": (coco(categories=[{"id": 1, "name": "\ud800"}]), "empty or unprintable 'name'"),
    "an annotation of a wrong type": (coco(annotations=[None]), r"annotations\[0\] has no 'image_id'"),
    "no image id": (changed(lambda c: c["annotations"][0].pop("image_id")), r"annotations\[0\] has no 'image_id'"),
    "an image id of a wrong type": (
        changed(lambda c: c["annotations"][0].update(image_id=[1])),
        r"annotations\[0\] has no 'image_id'",
    ),
    "an unknown image": (
        changed(lambda c: c["annotations"][0].update(image_id=8)),
        r"annotations\[0\] has an unknown 'image_id': 8",
    ),
    "an unknown category": (
        changed(lambda c: c["annotations"][0].update(category_id="8")),
        "has an unknown 'category_id': '8'",
    ),
    "segmentation of a wrong type": (coco("x"), r"annotations\[0\] has no list 'segmentation'"),
    "a flat polygon": (coco([0, 0, 1, 1, 2, 2]), r"the polygons of annotations\[0\] must be pairs"),
    "an odd polygon": (coco([[0, 0, 1, 1, 2, 2, 3]]), "must be pairs of numbers"),
    "two points": (coco([[0, 0, 1, 1]]), "must be at least 3 points, not 2"),
    "NaN": (coco([[0, 0, 1, 1, 2, float("nan")]]), "must be finite numbers"),
    "infinity": (coco([[0, 0, 1, 1, 2, float("-inf")]]), "must be finite numbers"),
    "a huge number": (coco([[0, 0, 1, 1, 2, 10**400]]), "must be finite numbers of at most 1000000"),
    "text as a number": (coco([[0, 0, 1, 1, 2, "2"]]), "must be finite numbers"),
    "truth as a number": (coco([[0, 0, 1, 1, 2, True]]), "must be finite numbers"),
    "a short box": (
        changed(lambda c: c["annotations"].append({"image_id": 1, "category_id": 1, "bbox": [0, 0]})),
        r"the bbox of annotations\[1\] must be 2 points, not 1",
    ),
    "a box of a wrong type": (
        changed(lambda c: c["annotations"].append({"image_id": 1, "category_id": 1, "bbox": {"x": 1}})),
        "must be pairs",
    ),
    "runs that do not add up": (runs([3, 4]), r"annotations\[0\] sum to 7, not to 4 x 6 pixels"),
    "compressed runs that do not add up": (runs("34"), "sum to 7, not to 4 x 6"),
    "negative runs": (runs([-1, 25]), "must be whole numbers"),
    "fractional runs": (runs([12.0, 12.0]), "must be whole numbers"),
    "runs of a wrong type": (runs({"a": 1}), "must be whole numbers or their compressed text"),
    "no runs": (coco({"size": [4, 6]}), "must be whole numbers or their compressed text"),
    "compressed runs that end early": (runs("1P"), "must be whole numbers or their compressed text"),
    "compressed runs with other characters": (runs("1é"), "must be whole numbers or their compressed text"),
    "compressed runs without an end": (runs("P" * 99 + "1"), "must be whole numbers or their compressed text"),
    "runs of another size": (runs([12], (3, 4)), "not of the image's size"),
    "runs of no size": (runs([24], None), "not of the image's size"),
    "too many pixels": (
        coco({"size": [10**6, 10**6], "counts": [10**12]}, height=10**6, width=10**6),
        "more than 200000000 pixels",
    ),
}

BROKEN_LABELME = {
    "neither kind": ({"a": 1}, "neither LabelMe"),
    "a list": ([1], "neither LabelMe"),
    "COCO": (coco(), "neither LabelMe"),
    "shapes of a wrong type": ({"shapes": 1}, "the file has no list 'shapes'"),
    "a shape of a wrong type": ({"shapes": [1]}, r"shapes\[0\] has no text 'label'"),
    "no label": (labelme({"points": []}), r"shapes\[0\] has no text 'label'"),
    "no points": (labelme({"label": "dent"}), r"shapes\[0\] has no list 'points'"),
    "an unknown type": (labelme(shape("cube", [0, 0])), "unknown shape type; known are polygon, rectangle"),
    "a type of a wrong type": (labelme(shape([], [0, 0]) | {"shape_type": [3]}), "unknown shape type"),
    "two points": (labelme(shape("polygon", [0, 0], [1, 1])), r"the points of shapes\[0\] must be at least 3 points"),
    "three corners": (labelme(shape("rectangle", [0, 0], [1, 1], [2, 2])), "must be 2 points, not 3"),
    "a point of three numbers": (labelme(shape("point", [0, 0, 0])), r"points of shapes\[0\] must be pairs"),
    "a number as a point": (labelme(shape("point", 3)), r"the points of shapes\[0\] must be pairs"),  # type: ignore[arg-type]
    "NaN": (labelme(shape("point", [0, float("nan")])), "must be finite numbers"),
    "no mask": (labelme(shape("mask", [0, 0], [1, 1])), r"shapes\[0\] has no text 'mask'"),
    "a wrong height": (labelme(height=0), "'imageHeight' and 'imageWidth' must be positive whole numbers"),
}


def assert_broken(parse: Callable[[object, Path], object], content: object, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        parse(content, SOURCE)
    message = str(caught.value)
    assert message.startswith("cannot use annotations some/x.json: ")
    assert "\n" not in message


@pytest.mark.parametrize(("content", "reason"), BROKEN_COCO.values(), ids=BROKEN_COCO)
def test_broken_coco(content: object, reason: str) -> None:
    assert_broken(parse_coco, content, reason)


@pytest.mark.parametrize(("content", "reason"), BROKEN_LABELME.values(), ids=BROKEN_LABELME)
def test_broken_labelme(content: object, reason: str) -> None:
    assert_broken(parse_labelme, content, reason)


class TestReadJson:
    def test_reads(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        for encoding in ("utf-8", "utf-8-sig", "utf-16"):
            path.write_text('{"ä": [1, 2.5]}', encoding=encoding)
            assert read_json(path) == {"ä": [1, 2.5]}

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"\xff\xfe\xff", b"[" * 200_000, b"\x89PNG\r\n", b"[" + b"1" * 5000 + b"]"]
    )
    def test_not_json(self, tmp_path: Path, data: bytes) -> None:
        path = tmp_path / "x.json"
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            read_json(path)
        assert str(caught.value).startswith(f"cannot use annotations {path}: not JSON (")
        assert "\n" not in str(caught.value)

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(DataError, match=r"cannot use annotations .*missing\.json: No such file"):
            read_json(tmp_path / "missing.json")
        with pytest.raises(DataError, match=r"Is a directory|Permission denied"):
            read_json(tmp_path)
        monkeypatch.setattr(annotations, "MAX_BYTES", 4)
        (tmp_path / "x.json").write_text("[1,2]")
        with pytest.raises(DataError, match=r"x\.json: it has more than 4 bytes"):
            read_json(tmp_path / "x.json")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=7)
        | st.dictionaries(st.sampled_from(["id", "size", "counts", "label", "name", "points"]), inner, max_size=4)
    ),
    max_leaves=12,
)


def mutated(content: Any, path: list[int], value: object) -> Any:  # noqa: ANN401 - JSON
    """The content with what lies at a path, which counts members at each level, put by a value."""
    if not path or not isinstance(content, dict | list) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[path[0] % len(keys)]
    copy = content.copy()
    copy[key] = mutated(content[key], path[1:], value)
    return copy


whole_coco = coco([[0, 0, 3, 0, 3, 3]], {"size": [4, 6], "counts": [1, 2, 21]}, {"size": [4, 6], "counts": "125O:"})
whole_labelme = labelme(
    shape("polygon", [1, 0], [4, 0], [4, 2]),
    shape("circle", [3, 3], [3, 1]),
    shape("mask", [3, 1], [5, 2], mask=png(["#.#", ".#."])),
)
paths = st.lists(st.integers(0, 5), max_size=6)


@given(st.sampled_from([whole_coco, whole_labelme]), paths, json_values, st.tuples(*[st.integers(1, 9)] * 2))
def test_no_content_raises_another_error(
    content: dict[str, Any], path: list[int], value: object, size: tuple[int, int]
) -> None:
    content = mutated(content, path, value)
    try:
        found = list(parse_coco(content, SOURCE).values()) if is_coco(content) else [parse_labelme(content, SOURCE)]
        for annotation in found:
            if annotation is not None and annotation.shapes is not None:
                assert annotation.shapes.draw(size).shape == size
    except AdtrError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most examples are broken, some are not
        assert "some/x.json" in str(error)  # noqa: PT017


def test_shapes_compare_equal() -> None:
    assert parse_labelme(whole_labelme, SOURCE) == parse_labelme(json.loads(json.dumps(whole_labelme)), SOURCE)


def test_an_outline_that_takes_too_long_is_not_drawn() -> None:
    """Zigzags all over the image, which Pillow would draw for hours."""
    zigzag = [[0, 0] if i % 2 else [6000, 4000] for i in range(2000)]
    content = labelme(shape("polygon", *zigzag), height=4000, width=6000)
    with pytest.raises(ImageError, match="outlines of 12000000 pixels exceed the limit"):
        shapes_of(parse_labelme(content, SOURCE)).draw((4000, 6000))
    far = coco([[-1e6, -1e6, 1e6, -1e6, 1e6, 1e6, -1e6, 1e6]])  # only what is inside the image counts
    assert shapes_of(parse_coco(far, SOURCE)["x.png"]).draw((4, 6)).all()


def test_many_points_in_a_pixel_are_one() -> None:
    corners = [(1.2, 1.1), (4.8, 1.3), (4.4, 2.9), (1.1, 2.2)]
    many = [(x + i / 1000, y) for x, y in corners for i in range(100)]
    few, dense = (coco([[value for point in points for value in point]]) for points in (corners, many))
    drawn = [shapes_of(parse_coco(content, SOURCE)["x.png"]).draw((4, 6)) for content in (few, dense)]
    assert np.array_equal(*drawn)
    dot = coco([[2.1, 2.1, 2.2, 2.2, 2.3, 2.1]])
    assert shapes_of(parse_coco(dot, SOURCE)["x.png"]).draw((4, 6)).sum() == 1


def test_a_mask_larger_than_its_image_is_not_decoded() -> None:
    large = png(["#" * 600] * 400)
    content = labelme(shape("mask", [0, 0], [5, 3], mask=large))
    with pytest.raises(ImageError, match="exceed the limit of 24 pixels"):
        shapes_of(parse_labelme(content, SOURCE)).draw((4, 6))

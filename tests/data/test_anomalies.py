import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from adtr.data.anomalies import Anomalies, Anomaly, mask_notes, open_anomalies
from adtr.data.shapes import Shapes
from adtr.errors import AdtrError, DataError, ImageError


def touch(root: Path, *names: str) -> Path:
    """Files that all differ."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def save(path: Path, array: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(array, np.uint8)).save(path)
    return path


def described(anomalies: Anomalies) -> list[tuple[str, str, str | None]]:
    """(path, type, mask or "drawn"), relative to the root."""
    masks = [
        "drawn" if isinstance(s.mask, Shapes) else s.mask and relative(s.mask, anomalies) for s in anomalies.samples
    ]
    return [
        (relative(s.path, anomalies), s.defect_type, mask) for s, mask in zip(anomalies.samples, masks, strict=True)
    ]


def relative(path: Path, anomalies: Anomalies) -> str:
    return path.relative_to(anomalies.root).as_posix()


def good(anomalies: Anomalies) -> list[str]:
    return [relative(path, anomalies) for path in anomalies.good]


def coco(*names: str, annotated: int = 1, **changes: object) -> dict[str, Any]:
    """Images of these names, the first ones with a box of the type "dent"."""
    marks = [{"image_id": i, "category_id": 0, "bbox": [0, 0, 2, 1]} for i in range(annotated)]
    return {
        "images": [{"id": i, "file_name": name, "height": 2, "width": 3} for i, name in enumerate(names)],
        "annotations": marks,
        "categories": [{"id": 0, "name": "dent"}],
    } | changes


def labelme(*labels: str) -> dict[str, Any]:
    points = [[0, 0], [1, 2]]
    shapes = [{"label": label, "shape_type": "rectangle", "points": points} for label in labels]
    return {"shapes": shapes, "imageHeight": 2, "imageWidth": 3}


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


class TestFolders:
    def test_one_folder_per_type(self, tmp_path: Path) -> None:
        touch(tmp_path, "dent/b.png", "dent/a.jpg", "dent/c.png", "dent/d.png", "crack/a.png", "empty/notes.txt")
        touch(tmp_path, "dent/b_mask.png", "ground_truth/dent/a_mask.bmp", "masks/dent/c.png", "masks/crack/b.png")
        touch(tmp_path, ".git/x.png", "masks/dent/a.png")
        anomalies = open_anomalies(str(tmp_path))
        assert described(anomalies) == [
            ("crack/a.png", "crack", None),
            ("dent/a.jpg", "dent", "ground_truth/dent/a_mask.bmp"),
            ("dent/b.png", "dent", "dent/b_mask.png"),
            ("dent/c.png", "dent", "masks/dent/c.png"),
            ("dent/d.png", "dent", None),
        ]
        assert anomalies.defect_types == ["crack", "dent"]
        assert (anomalies.root, anomalies.good, anomalies.notes) == (tmp_path, [], [])

    def test_good_folders_are_left_out(self, tmp_path: Path) -> None:
        touch(tmp_path, "dent/0.png", "Good/1.png", "Good/0.png", "Good/0_mask.png", "ok/0.png", "NORMAL/0.png")
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("dent/0.png", "dent", None)]
        assert good(anomalies) == ["Good/0.png", "Good/1.png", "NORMAL/0.png", "ok/0.png"]
        assert anomalies.notes == [
            f"2 images in {tmp_path / 'Good'} are good ones and were left out of the anomalies",
            f"1 image in {tmp_path / 'NORMAL'} is a good one and was left out of the anomalies",
            f"1 image in {tmp_path / 'ok'} is a good one and was left out of the anomalies",
        ]

    def test_mvtec(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "test/good/0.png", "test/bent/0.png", "test/crack/0.png", "license.txt")
        touch(tmp_path, "ground_truth/bent/0_mask.png")
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [
            ("test/bent/0.png", "bent", "ground_truth/bent/0_mask.png"),
            ("test/crack/0.png", "crack", None),
        ]
        assert good(anomalies) == ["test/good/0.png"]

    def test_a_type_may_be_called_test(self, tmp_path: Path) -> None:
        touch(tmp_path, "test/0.png", "dent/0.png")
        assert open_anomalies(tmp_path).defect_types == ["dent", "test"]

    def test_flat(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "a.jpg", "c.png", "d.png", "c_mask.png", "ground_truth/a.png", "masks/b_mask.png")
        assert described(open_anomalies(tmp_path)) == [
            ("a.jpg", "anomaly", "ground_truth/a.png"),
            ("b.png", "anomaly", "masks/b_mask.png"),
            ("c.png", "anomaly", "c_mask.png"),
            ("d.png", "anomaly", None),
        ]

    def test_a_flat_folder_may_have_good_images_and_types_too(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "good/0.png", "dent/0.png")
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("a.png", "anomaly", None), ("dent/0.png", "dent", None)]
        assert good(anomalies) == ["good/0.png"]

    @pytest.mark.parametrize("names", [(), ("good/0.png",), ("notes.txt", "a/b/c.png"), ("train/good/0.png",)])
    def test_nothing_found(self, tmp_path: Path, names: tuple[str, ...]) -> None:
        with pytest.raises(DataError) as caught:
            open_anomalies(touch(tmp_path, *names))
        message = str(caught.value)
        assert message.startswith(
            f"no anomalies found in {tmp_path}: expected a folder of images per defect type, test/"
        )
        assert "COCO" in message
        assert "\n" not in message

    def test_no_folder(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        with pytest.raises(DataError, match=r"^no such folder: .*/missing$"):
            open_anomalies(tmp_path / "missing")
        with pytest.raises(DataError, match=r"a\.png is a file"):
            open_anomalies(tmp_path / "a.png")


class TestContradictions:
    def test_good_and_anomalous(self, tmp_path: Path) -> None:
        touch(tmp_path, "good/0.png", "good/1.png", "dent/0.png")
        (tmp_path / "good/0.png").write_bytes((tmp_path / "dent/0.png").read_bytes())
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("dent/0.png", "dent", None)]
        assert good(anomalies) == ["good/1.png"]
        assert anomalies.notes[0] == (
            "the same image is among the good ones and the anomalies, and counts as an anomaly: dent/0.png = good/0.png"
        )
        assert anomalies.notes[1].startswith("1 image in ")

    def test_two_types(self, tmp_path: Path) -> None:
        touch(tmp_path, "crack/0.png", "crack/1.png", "dent/0.png", "dent/1.png")
        for path in ("dent/0.png", "dent/1.png", "crack/1.png"):
            (tmp_path / path).write_bytes((tmp_path / "crack/0.png").read_bytes())
        anomalies = open_anomalies(tmp_path)
        assert len(anomalies.samples) == 4
        assert anomalies.notes == [
            "the same image has several defect types: crack/0.png = crack/1.png = dent/0.png = dent/1.png"
        ]

    def test_no_more_than_five_are_named(self, tmp_path: Path) -> None:
        for i in range(7):
            for name in (f"dent/{i}.png", f"crack/{i}.png"):
                touch(tmp_path, name)
                (tmp_path / name).write_text(f"image {i}")
        note = open_anomalies(tmp_path).notes[0]
        assert note.count("=") == 5
        assert note.endswith("crack/4.png = dent/4.png and 2 more")

    def test_copies_of_one_label_are_no_contradiction(self, tmp_path: Path) -> None:
        for name in ("dent/0.png", "dent/1.png"):
            touch(tmp_path, name)
            (tmp_path / name).write_text("same")
        touch(tmp_path, "good/longer_than_that.png")
        assert len(open_anomalies(tmp_path).notes) == 1  # on the good image


class TestLabelme:
    def test_flat(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", "b.jpg", "c.png", "d.png", "d_mask.png", "e.png")
        write(tmp_path / "a.json", labelme("hole"))
        write(tmp_path / "b.json", labelme())
        write(tmp_path / "d.json", labelme())
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [
            ("c.png", "anomaly", None),
            ("d.png", "anomaly", "d_mask.png"),
            ("e.png", "anomaly", None),
            ("a.png", "hole", "drawn"),
        ]
        assert good(anomalies) == ["b.jpg"]
        name = tmp_path.name
        assert anomalies.notes[0] == (
            f"without a LabelMe file or a mask, but taken as anomalies: {name}/c.png, {name}/e.png"
        )
        mask = anomalies.samples[-1].read_mask((2, 3))
        assert mask is not None
        assert mask.tolist() == [[True, False, False]] * 2

    def test_the_folder_names_the_type(self, tmp_path: Path) -> None:
        touch(tmp_path, "dent/a.png", "dent/b.png", "good/c.png")
        write(tmp_path / "dent/a.json", labelme("hole"))
        write(tmp_path / "dent/b.json", labelme())
        write(tmp_path / "good/c.json", labelme("hole"))
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("dent/a.png", "dent", "drawn"), ("dent/b.png", "dent", None)]
        assert good(anomalies) == ["good/c.png"]

    @pytest.mark.parametrize(
        ("text", "reason"), [("{", "not JSON"), ("{}", "neither LabelMe"), ('{"shapes": 1}', "no list")]
    )
    def test_broken(self, tmp_path: Path, text: str, reason: str) -> None:
        touch(tmp_path, "a.png")
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match=rf"a\.json: .*{reason}"):
            open_anomalies(tmp_path)

    def test_a_file_without_an_image_is_told(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        write(tmp_path / "b.json", labelme("hole"))
        write(tmp_path / "info.json", {"camera": 1})
        (tmp_path / "._x.json").write_text("hidden")
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("a.png", "anomaly", None)]
        assert anomalies.notes == ["no COCO file, and beside no image, so left aside: b.json, info.json"]


class TestCoco:
    @pytest.mark.parametrize("place", ["labels.json", "annotations/instances.json"])
    def test_found(self, tmp_path: Path, place: str) -> None:
        touch(tmp_path, "a.png", "sub/b.png", "images/c.png", "unlisted.png")
        write(tmp_path / place, coco("a.png", "sub/b.png", "c.png", annotated=2))
        write(tmp_path / "info.json", {"camera": 1})
        anomalies = open_anomalies(tmp_path)
        assert described(anomalies) == [("a.png", "dent", "drawn"), ("sub/b.png", "dent", "drawn")]
        assert good(anomalies) == ["images/c.png"]
        mask = anomalies.samples[0].read_mask((4, 6))
        assert mask is not None
        assert mask.tolist() == [[True] * 4 + [False] * 2] * 2 + [[False] * 6] * 2

    def test_given(self, tmp_path: Path) -> None:
        touch(tmp_path, "data/a.png", "data/b.png", "other/b.png")
        first, second = (write(tmp_path / f"data/{name}.json", coco(f"{name}.png")) for name in "ab")
        outside = write(tmp_path / "other/labels.json", coco("b.png"))
        second = second.rename(tmp_path / "data/second.json")
        assert [
            described(open_anomalies(tmp_path / "data", annotations=path))[0][0] for path in (first, second, outside)
        ] == [
            "a.png",
            "b.png",
            "b.png",
        ]

    def test_names_are_relative_to_the_file_first(self, tmp_path: Path) -> None:
        touch(tmp_path, "annotations/a.png", "a.png", "pictures/b.png")
        write(tmp_path / "annotations/x.json", coco("a.png", "../pictures/./b.png", "..\\pictures\\c.png", annotated=3))
        with pytest.raises(DataError, match=r"c\.png"):
            open_anomalies(tmp_path)
        touch(tmp_path, "pictures/c.png")
        assert [path for path, *_ in described(open_anomalies(tmp_path))] == [
            "annotations/a.png",
            "pictures/b.png",
            "pictures/c.png",
        ]

    @pytest.mark.parametrize(
        "name",
        [
            *("../secret.png", "sub/../../secret.png", "..\\secret.png", "/etc/hostname", "C:\\x.png"),
            *("missing.png", "sub", "", ".", "..", "a\0b", "\ud800.png", "x" * 5000, "loop/a.png"),
        ],
    )
    def test_names_that_lead_nowhere(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path, "secret.png", "data/sub/a.png")
        (tmp_path / "data/loop").symlink_to("loop")
        path = write(tmp_path / "data/x.json", coco(name))
        with pytest.raises(DataError) as caught:
            open_anomalies(tmp_path / "data")
        assert str(caught.value) == (
            f"cannot use annotations {path}: image {name!r} does not exist; it must be relative and stay inside "
            f"{tmp_path / 'data'}"
        )

    def test_an_absolute_path_is_refused_even_inside(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        write(tmp_path / "x.json", coco(str(tmp_path / "a.png")))
        with pytest.raises(DataError, match="must be relative"):
            open_anomalies(tmp_path)

    def test_a_link_to_a_folder_outside_is_not_followed(self, tmp_path: Path) -> None:
        touch(tmp_path, "secret/a.png", "data/b.png")
        (tmp_path / "data/link").symlink_to(tmp_path / "secret")
        write(tmp_path / "data/x.json", coco("link/a.png"))
        with pytest.raises(DataError, match=r"link/a\.png.*stay inside"):
            open_anomalies(tmp_path / "data")

    def test_errors(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        write(tmp_path / "x.json", coco("a.png", "./a.png"))
        with pytest.raises(DataError, match=r"x\.json: image './a\.png' is listed twice"):
            open_anomalies(tmp_path)
        write(tmp_path / "y.json", coco("a.png"))
        with pytest.raises(DataError, match=r"^several COCO files in .*: x\.json, y\.json; say which one to take$"):
            open_anomalies(tmp_path)
        with pytest.raises(DataError, match=r"z\.json: No such file"):
            open_anomalies(tmp_path, annotations=tmp_path / "z.json")
        with pytest.raises(DataError, match=r"l\.json: neither COCO"):
            open_anomalies(tmp_path, annotations=write(tmp_path / "l.json", labelme()))
        (tmp_path / "l.json").write_text("?")
        with pytest.raises(DataError, match=r"l\.json: not JSON"):
            open_anomalies(tmp_path)

    def test_only_good_images(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png")
        write(tmp_path / "x.json", coco("a.png", annotated=0))
        with pytest.raises(DataError, match="no anomalies found"):
            open_anomalies(tmp_path)


class TestReadMask:
    def test_file(self, tmp_path: Path) -> None:
        anomaly = Anomaly(path=tmp_path / "a.png", defect_type="dent", mask=save(tmp_path / "m.png", [[0, 3], [0, 0]]))
        mask = anomaly.read_mask((2, 2))
        assert mask is not None
        assert mask.tolist() == [[False, True], [False, False]]
        fitted = anomaly.read_mask((4, 4))
        assert fitted is not None
        assert fitted.sum() == 4
        with pytest.raises(ImageError, match=r"m\.png: the mask is 2 x 2"):
            anomaly.read_mask((2, 4))

    def test_none(self, tmp_path: Path) -> None:
        empty = save(tmp_path / "m.png", [[0, 0]])
        assert Anomaly(path=tmp_path, defect_type="dent", mask=empty).read_mask((1, 2)) is None
        assert Anomaly(path=tmp_path, defect_type="dent").read_mask((1, 2)) is None
        drawn = Shapes(source=tmp_path, size=None, regions=())
        assert Anomaly(path=tmp_path, defect_type="dent", mask=drawn).read_mask((1, 2)) is None


class TestMaskNotes:
    def test_nothing_to_tell(self) -> None:
        assert mask_notes({}) == []
        assert mask_notes({Path("dent/0.png"): 0.8, Path("dent/1.png"): 1e-6}) == []

    def test_one(self) -> None:
        assert mask_notes({Path("r/dent/0.png"): 0.93, Path("r/dent/1.png"): 0.0}) == [
            "dent/1.png has an empty mask; only its label is used",
            "the mask of dent/0.png marks 93 % of the image; if white means good in your masks, invert them",
        ]

    def test_many(self) -> None:
        shares = {Path(f"dent/{i}.png"): 0.0 for i in range(2)} | {Path(f"hole/{i}.png"): 0.9 for i in range(8)}
        empty, full = mask_notes(shares)
        assert empty == "dent/0.png, dent/1.png have empty masks; only their labels are used"
        assert full == (
            "the masks of hole/0.png (90 %), hole/1.png (90 %), hole/2.png (90 %), hole/3.png (90 %), hole/4.png (90 %)"
            " and 3 more mark most of their images; if white means good in your masks, invert them"
        )


keys = st.sampled_from(["images", "annotations", "categories", "shapes", "id", "file_name", "name", "image_id"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.sampled_from(["a.png", "../a.png", "dent"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)


@given(content=json_values, name=st.sampled_from(["a.json", "x.json"]), is_given=st.booleans())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_json_raises_another_error(tmp_path: Path, content: object, name: str, is_given: bool) -> None:
    touch(tmp_path, "a.png")
    for old in tmp_path.glob("*.json"):
        old.unlink()
    path = write(tmp_path / name, content)
    try:
        assert open_anomalies(tmp_path, annotations=path if is_given else None).samples
    except AdtrError as error:
        assert "\n" not in str(error)  # noqa: PT017 - some examples are valid

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adtr.demo.defects import DEFECTS, VISIBLE_LEVELS
from adtr.demo.textures import TEXTURES, build_demo_dataset, load_photograph, plan_crops
from adtr.errors import AdtrError, ConfigError, DataError

pytest.importorskip("skimage")

SMALL: dict[str, Any] = {"train": 4, "test_good": 2, "test_per_type": 1, "validation": 3, "patch": 64, "size": 96}


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "brick"
    build_demo_dataset(root, **SMALL)
    return root


def test_the_layout_is_mvtecs(built: Path) -> None:
    expected = {f"train/good/{i:03d}.png" for i in range(4)} | {"test/good/000.png", "test/good/001.png"}
    expected |= {f"validation/good/{i:03d}.png" for i in range(3)} | {f"test/{name}/000.png" for name in DEFECTS}
    expected |= {f"ground_truth/{name}/000_mask.png" for name in DEFECTS}
    assert set(files(built)) == expected


def test_without_validation_images_there_is_no_folder_and_nothing_else_changes(built: Path, tmp_path: Path) -> None:
    build_demo_dataset(tmp_path / "without", **{**SMALL, "validation": 0})
    expected = {name: content for name, content in files(built).items() if not name.startswith("validation/")}
    assert files(tmp_path / "without") == expected
    assert not (tmp_path / "without/validation").exists()


def test_images_are_rgb_and_masks_are_black_and_white(built: Path) -> None:
    for path in built.rglob("*.png"):
        with Image.open(path) as image:
            assert image.size == (96, 96)
            assert image.mode == ("L" if "ground_truth" in path.parts else "RGB")
            if image.mode == "L":
                assert set(np.unique(image)) == {0, 255}


def test_the_seed_decides_every_byte(built: Path, tmp_path: Path) -> None:
    build_demo_dataset(tmp_path / "again", **SMALL)
    assert files(tmp_path / "again") == files(built)
    build_demo_dataset(tmp_path / "other", seed=1, **SMALL)
    other = files(tmp_path / "other")
    assert other.keys() == files(built).keys()
    assert all(other[name] != content for name, content in files(built).items())


def test_defects_are_planted_where_the_masks_say(built: Path) -> None:
    # The plan of the crops is the first thing drawn from the seed, so it can be drawn again here.
    crop_rng = np.random.default_rng(0).spawn(1)[0]
    photograph = load_photograph("brick")
    crops = plan_crops(512, 512, side=64, train=4, test=2 + len(DEFECTS) + 3, rng=crop_rng)[1]
    for i, crop in enumerate(crops[2 + len(DEFECTS) :]):  # chosen as the test patches are
        held_out = np.asarray(Image.open(built / f"validation/good/{i:03d}.png"))
        np.testing.assert_array_equal(held_out, crop.cut(photograph, 96))
    for crop, name in zip(crops[2 : 2 + len(DEFECTS)], DEFECTS, strict=True):
        good = crop.cut(photograph, 96).astype(int)
        change = np.abs(np.asarray(Image.open(built / "test" / name / "000.png")) - good).max(axis=2)
        mask = np.asarray(Image.open(built / "ground_truth" / name / "000_mask.png")) > 0
        assert change[mask].mean() > 2 * VISIBLE_LEVELS
        assert change[~mask].max() <= VISIBLE_LEVELS


@pytest.mark.parametrize(("height", "width", "side"), [(512, 512, 128), (512, 512, 170), (90, 64, 30), (101, 300, 16)])
def test_no_test_pixel_is_in_a_training_crop(height: int, width: int, side: int) -> None:
    train, test = plan_crops(height, width, side=side, train=300, test=300, rng=np.random.default_rng(3))
    seen = {"train": np.zeros((height, width), bool), "test": np.zeros((height, width), bool)}
    for name, crops in (("train", train), ("test", test)):
        assert len(crops) == 300
        for crop in crops:
            assert crop.left >= 0
            assert crop.top >= 0
            assert crop.left + side <= width
            assert crop.top + side <= height
            seen[name][crop.top : crop.top + side, crop.left : crop.left + side] = True
    assert not (seen["train"] & seen["test"]).any()
    assert seen["train"][: height // 3].any()
    assert seen["train"][-height // 3 :].any()


def test_a_cut_depends_on_its_crop_alone() -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (96, 80, 3), dtype=np.uint8)
    crop = plan_crops(96, 80, side=32, train=1, test=0, rng=np.random.default_rng(1))[0][0]
    altered = 255 - photograph
    inside = np.s_[crop.top : crop.top + 32, crop.left : crop.left + 32]
    altered[inside] = photograph[inside]
    np.testing.assert_array_equal(crop.cut(photograph, 64), crop.cut(altered, 64))
    literal = photograph[inside][:, ::-1] if crop.mirrored else photograph[inside]
    np.testing.assert_array_equal(crop.cut(photograph, 32), literal)


@pytest.mark.parametrize("texture", TEXTURES)
def test_every_texture_is_in_the_wheel(texture: str) -> None:
    photograph = load_photograph(texture)
    assert photograph.shape == (512, 512, 3)
    assert photograph.dtype == np.uint8
    assert photograph.std() > 10


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"texture": "marble"}, "unknown texture 'marble': choose one of brick"),
        ({"patch": 171}, "patch must be in 1..170"),
        ({"patch": 0}, "patch must be in 1..170"),
        ({"train": 0}, "train must be 1 or more, not 0"),
        ({"validation": -1}, "validation must be 0 or more, not -1"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
    ],
)
def test_wrong_settings_are_named_and_nothing_is_written(tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_demo_dataset(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_folder_with_content_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        build_demo_dataset(tmp_path, **SMALL)
    assert set(files(tmp_path)) == {"mine.txt"}


def test_a_failure_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        raise DataError(f"{image.shape} {rng}")

    monkeypatch.setattr("adtr.demo.textures.DEFECTS", {"hole": fail})
    with pytest.raises(DataError):
        build_demo_dataset(tmp_path / "new", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_scikit_image_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(AdtrError, match=r"pip install 'adtr\[demo\]'"):
        build_demo_dataset(tmp_path / "new", **SMALL)

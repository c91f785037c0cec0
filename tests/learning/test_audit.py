"""The audit of good images: planted defects come first, copies are named, nothing depends on chance."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import adtr
from adtr.errors import ConfigError, DataError, ImageError
from adtr.learning.audit import Audit
from conftest import SMALL, defect_image, good_image

PLANTED = ("030.png", "031.png", "032.png")


@pytest.fixture(scope="module")
def dirty(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data set with three defects among its good training images, one of them a copy of a test image."""
    folder = Path(shutil.copytree(dataset, tmp_path_factory.mktemp("dirty") / "discs"))
    rng = np.random.default_rng(5)
    for name in PLANTED[:2]:
        Image.fromarray(defect_image(rng)[0]).save(folder / "train/good" / name)
    shutil.copy(folder / "test/dark/002.png", folder / "train/good" / PLANTED[2])
    return folder


@pytest.fixture(scope="module")
def found(dirty: Path) -> Audit:
    return adtr.audit(dirty, **SMALL)


def test_planted_defects_come_first(found: Audit) -> None:
    assert [image.rank for image in found.images] == list(range(1, 28))
    assert {Path(image.name).name for image in found.images[:3]} == set(PLANTED)
    scores = [image.score for image in found.images]
    assert scores == sorted(scores, reverse=True)
    assert found.images[2].severity > 3 > found.images[13].severity


def test_the_map_shows_where(found: Audit, dataset: Path) -> None:
    """The copied test image is more suspicious on the defect that its mask marks than elsewhere."""
    image = next(image for image in found.images if Path(image.name).name == PLANTED[2])
    with Image.open(dataset / "ground_truth/dark/002_mask.png") as mask:
        marked = np.asarray(mask.convert("L").resize((8, 8), Image.Resampling.BOX)) > 127
    assert image.score_map.shape == (8, 8)
    assert image.score_map[marked].mean() > 1.2 * image.score_map[~marked].mean()


def test_the_contradiction_is_named(found: Audit) -> None:
    assert found.count("contradiction") == len(found.copies) == 1
    assert found.copies[0].identical
    assert [(Path(m.name).name, m.part, m.label) for m in found.copies[0].members] == [
        (PLANTED[2], "train", "good"),
        ("002.png", "test", "dark"),
    ]


def test_held_out_images_are_ranked_too_and_may_not_be_copies_of_training_images(dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "discs"))
    (folder / "validation/good").mkdir(parents=True)
    shutil.copy(folder / "train/good/003.png", folder / "validation/good/copy.png")
    Image.fromarray(defect_image(np.random.default_rng(5))[0]).save(folder / "validation/good/defect.png")
    audit = adtr.audit(folder, **SMALL)
    assert (len(audit.images), Path(audit.images[0].name).name) == (26, "defect.png")
    assert [(Path(m.name).name, m.part) for m in audit.copies[0].members] == [
        ("003.png", "train"),
        ("copy.png", "validation"),
    ]
    assert (audit.copies[0].kind, audit.copies[0].identical) == ("leak", True)


def test_the_record_is_plain(found: Audit) -> None:
    record = found.to_dict()
    assert record["images"][0] == {
        "path": found.images[0].name,
        "rank": 1,
        "score": found.images[0].score,
        "severity": found.images[0].severity,
    }
    assert len(record["images"]) == 27
    assert record["copies"][0]["kind"] == "contradiction"


def test_the_same_images_give_the_same_ranking(found: Audit, dirty: Path) -> None:
    again = adtr.audit(dirty, **SMALL)
    assert [(image.name, image.score) for image in again.images] == [(i.name, i.score) for i in found.images]


def test_images_in_memory() -> None:
    rng = np.random.default_rng(0)
    images = [good_image(rng) for _ in range(8)]
    images.append(defect_image(rng)[0])
    found = adtr.audit(images, **SMALL)
    assert found.images[0].source is images[8]
    assert found.images[0].name == "an image in memory"


def test_unreadable_images(dataset: Path, tmp_path: Path) -> None:
    for path in sorted((dataset / "train/good").iterdir())[:6]:
        shutil.copy(path, tmp_path)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        adtr.audit(tmp_path, **SMALL)
    found = adtr.audit(tmp_path, on_error="skip", **SMALL)
    assert len(found.images) == 6
    assert [image.path for image in found.skipped] == [tmp_path / "broken.png"]
    assert found.to_dict()["skipped"][0]["path"] == str(tmp_path / "broken.png")


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        adtr.audit(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="image_sise"):
        adtr.audit([np.zeros((8, 8, 3), np.uint8)] * 3, image_sise=3)
    with pytest.raises(DataError, match="2 good images are too few"):
        adtr.audit([np.zeros((64, 64, 3), np.uint8)] * 2, **SMALL)

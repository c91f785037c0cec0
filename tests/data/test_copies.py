"""Copies: what is one picture, what is not, and what is wrong with it."""

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from adtr.data.copies import Copies, Member, find_copies, members_of
from adtr.data.folder import open_dataset
from adtr.data.loading import SkippedImage
from adtr.errors import ImageError
from conftest import good_image


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Shots of one part, as alike as a camera on a line makes them: only what is at random differs."""
    rng = np.random.default_rng(seed)
    shots = []
    for _ in range(count):
        dirt = Image.fromarray(rng.integers(0, 60, (6, 6), np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
        shot = good_image(rng).astype(np.int16) + np.asarray(dirt)[..., None]
        shots.append(Image.fromarray(np.clip(shot, 0, 255).astype(np.uint8)))
    return shots


def train(sources: list[Image.Image]) -> list[Member]:
    return [Member(source=source, part="train", label="good") for source in sources]


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=50)
    return Image.open(buffer)


@pytest.mark.parametrize(
    "alter",
    [
        lambda image: image,
        jpeg,
        lambda image: image.resize((61, 55)),
        lambda image: image.resize((300, 300), Image.Resampling.BICUBIC),
        lambda image: ImageEnhance.Brightness(image).enhance(0.85),
        lambda image: ImageEnhance.Contrast(jpeg(image.resize((80, 80)))).enhance(1.1),
        lambda image: image.convert("L"),
    ],
)
def test_an_altered_copy_is_found_and_nothing_else(alter: Callable[[Image.Image], Image.Image]) -> None:
    images = pictures(12)
    copies = find_copies(train([*images, alter(images[7])]))
    assert len(copies) == 1
    assert copies[0].members[0].source is images[7]
    assert len(copies[0].members) == 2
    assert copies[0].kind == "duplicate"


def test_shots_of_one_part_are_no_copies() -> None:
    assert find_copies(train(pictures(40))) == []


def test_many_copies_of_each_hide_nothing() -> None:
    """Somebody augmented the data set before it came here."""
    images = pictures(40)
    altered = [ImageEnhance.Brightness(image).enhance(0.9 + 0.02 * i) for image in images for i in range(4)]
    copies = find_copies(train([*images, *altered]))
    assert sorted(len(group.members) for group in copies) == [5] * 40


def test_variants_of_a_product_are_no_copies() -> None:
    """They differ from each other far more than the shots of one of them."""
    shots = pictures(60)
    variants = [image.rotate(90 * (i % 3)) for i, image in enumerate(shots)]
    assert find_copies(train(variants)) == []


def test_identical_files_are_told_from_near_ones(tmp_path: Path) -> None:
    for i, picture in enumerate(pictures(6)):
        picture.save(tmp_path / f"{i}.png")
    (tmp_path / "same.png").write_bytes((tmp_path / "1.png").read_bytes())
    with Image.open(tmp_path / "2.png") as image:
        image.save(tmp_path / "near.jpg")
    members = members_of([sample.path for sample in open_dataset(tmp_path).train], None)
    found = {copies.members[-1].name: copies for copies in find_copies(members)}
    assert {Path(name).name: copies.identical for name, copies in found.items()} == {
        "same.png": True,
        "near.jpg": False,
    }


def test_two_identical_files_are_enough(tmp_path: Path) -> None:
    picture = pictures(1)[0]
    for name in "ab":
        picture.save(tmp_path / f"{name}.png")
    members = members_of([tmp_path / "a.png", tmp_path / "b.png"], None)
    assert [copies.identical for copies in find_copies(members)] == [True]


def test_plain_images_do_not_divide_by_zero() -> None:
    plain = [Image.new("RGB", (20, 20), (value, value, value)) for value in (10, 200)]
    assert find_copies(train(plain)) == []
    assert find_copies([]) == []


def member(part: str, label: str) -> Member:
    return Member(source="x", part=part, label=label)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "kind"),
    [
        ([member("train", "good"), member("train", "good")], "duplicate"),
        ([member("test", "scratch"), member("test", "scratch")], "duplicate"),
        ([member("train", "good"), member("test", "good")], "leak"),
        ([member("train", "good"), member("test", "scratch")], "contradiction"),
        ([member("test", "dent"), member("test", "scratch")], "contradiction"),
    ],
)
def test_what_is_wrong_with_copies(members: list[Member], kind: str) -> None:
    copies = Copies(members=members, identical=False)
    assert copies.kind == kind
    assert copies.to_dict()["kind"] == kind


def test_leaks_and_contradictions_of_a_data_set(dataset: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(dataset, tmp_path / "discs"))
    with Image.open(folder / "train/good/003.png") as image:
        image.save(folder / "test/good/leak.bmp")  # other bytes
    shutil.copy(folder / "train/good/004.png", folder / "test/dark/wrong.png")
    opened = open_dataset(folder)
    copies = find_copies(members_of([sample.path for sample in opened.train], opened))
    named = [(c.kind, sorted(Path(m.name).name for m in c.members)) for c in copies]
    assert named == [("contradiction", ["004.png", "wrong.png"]), ("leak", ["003.png", "leak.bmp"])]


def test_unreadable_images(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    pictures(1)[0].save(tmp_path / "fine.png")
    members = members_of([tmp_path / "broken.png", tmp_path / "fine.png"], None)
    with pytest.raises(ImageError, match="broken"):
        find_copies(members)
    skipped: list[SkippedImage] = []
    assert find_copies(members, on_error="skip", skipped=skipped) == []
    assert [image.path for image in skipped] == [tmp_path / "broken.png"]

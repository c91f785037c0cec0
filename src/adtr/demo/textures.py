"""A data set in MVTec's layout, cut from the photographic textures that scikit-image ships in its wheel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adtr.demo import TEXTURES
from adtr.demo.defects import DEFECTS, Image
from adtr.errors import AdtrError, ConfigError, DataError
from adtr.files import replace_folder


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A square part of the photograph.

    Attributes:
        left: first column, in pixels.
        top: first row, in pixels.
        side: width and height, in pixels.
        mirrored: whether the columns are reversed after cutting.
    """

    left: int
    top: int
    side: int
    mirrored: bool

    def cut(self, photograph: Image, size: int) -> Image:
        """The crop of a photograph (H, W, 3), resampled to `size` x `size`; no pixel outside the crop plays a part."""
        from PIL import Image as PilImage

        part = photograph[self.top : self.top + self.side, self.left : self.left + self.side]
        part = np.ascontiguousarray(part[:, ::-1] if self.mirrored else part)
        resample = PilImage.Resampling.BICUBIC
        return np.asarray(PilImage.fromarray(part).resize((size, size), resample), dtype=np.uint8)


def plan_crops(
    height: int, width: int, *, side: int, train: int, test: int, rng: np.random.Generator
) -> tuple[list[Crop], list[Crop]]:
    """Choose where the patches are cut.

    The test patches come from a band of rows in the middle of the photograph, the training patches from the bands above
    and below it. Patches of one band may overlap each other; a training patch never shares a pixel with a test patch.
    The middle is tested because a photograph's scale and light change from its top to its bottom: there, the training
    patches have seen both sides of what is asked.

    Args:
        height: of the photograph, in pixels.
        width: of the photograph, in pixels.
        side: of a crop, in pixels, at most a third of the height and at most the width.
        train: number of training crops.
        test: number of test crops.
        rng: source of all randomness.

    Returns:
        The training crops and the test crops.

    Raises:
        ConfigError: if the photograph is too small for such crops.
    """
    if not 1 <= side <= min(height // 3, width):
        raise ConfigError(f"patch must be in 1..{min(height // 3, width)} for a photograph {width} x {height} pixels")
    # The test band keeps a small freedom to shift; all else is for training.
    band = side + (height - 3 * side) // 4
    first = (height - band) // 2
    last = first + band

    def crop(tops: NDArray[np.intp]) -> Crop:
        left = int(rng.integers(width - side + 1))
        return Crop(left=left, top=int(rng.choice(tops)), side=side, mirrored=bool(rng.integers(2)))

    above, below = np.arange(first - side + 1), np.arange(last, height - side + 1)
    inside = np.arange(first, last - side + 1)
    return [crop((above, below)[i % 2]) for i in range(train)], [crop(inside) for _ in range(test)]


def build_demo_dataset(
    root: Path,
    *,
    texture: str = "brick",
    seed: int = 0,
    train: int = 80,
    test_good: int = 12,
    test_per_type: int = 6,
    validation: int = 20,
    patch: int = 128,
    size: int = 256,
) -> None:
    """Write `train/good`, `validation/good`, `test/good`, `test/<defect>` and `ground_truth/<defect>` under a folder.

    Training and test patches come from disjoint regions of the photograph: no pixel of a test patch, good or defective,
    is ever in a training patch (see `plan_crops`). The validation patches, which set the thresholds, are chosen as the
    test patches are: nothing but chance sets the one apart from the other, so that the promise holds. The defects are
    drawn (see `adtr.demo.defects`), all else is photographed. The same arguments give the same bytes. The folder
    appears when it is complete.

    Args:
        root: a folder that does not exist yet or is empty.
        texture: one of `TEXTURES`.
        seed: of crops and defects, 0 or more.
        train: number of good training images.
        test_good: number of good test images.
        test_per_type: number of test images per kind of defect.
        validation: number of good images that set the thresholds; 0: no such folder.
        patch: side of a crop in pixels of the photograph.
        size: side of the written images in pixels.

    Raises:
        AdtrError: if scikit-image is not installed, or the folder cannot be written.
        ConfigError: if the texture is unknown or a number is out of its range.
        DataError: if the folder has content already.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("train", train, 1),
        ("test_good", test_good, 1),
        ("test_per_type", test_per_type, 1),
        ("validation", validation, 0),
        ("size", size, 64),
    ):
        if value < least:
            raise ConfigError(f"{name} must be {least} or more, not {value}")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root} is not an empty folder: name a new one for the demo's images")

    photograph = load_photograph(texture)
    # Every kind of defect has its own generator: a change to one kind leaves the others as they are.
    crop_rng, *defect_rngs = np.random.default_rng(seed).spawn(1 + len(DEFECTS))
    test = test_good + test_per_type * len(DEFECTS)
    train_crops, others = plan_crops(
        *photograph.shape[:2], side=patch, train=train, test=test + validation, rng=crop_rng
    )

    with replace_folder(root) as draft:
        for i, crop in enumerate(train_crops):
            _write_png(draft / "train" / "good" / f"{i:03d}.png", crop.cut(photograph, size))
        for i, crop in enumerate(others[test:]):
            _write_png(draft / "validation" / "good" / f"{i:03d}.png", crop.cut(photograph, size))
        waiting = iter(others)
        for i in range(test_good):
            _write_png(draft / "test" / "good" / f"{i:03d}.png", next(waiting).cut(photograph, size))
        for (name, draw), rng in zip(DEFECTS.items(), defect_rngs, strict=True):
            for i in range(test_per_type):
                image, mask = draw(next(waiting).cut(photograph, size), rng)
                _write_png(draft / "test" / name / f"{i:03d}.png", image)
                _write_png(draft / "ground_truth" / name / f"{i:03d}_mask.png", mask.astype(np.uint8) * 255)


def load_photograph(texture: str) -> Image:
    """The whole photograph of a texture, uint8 of shape (H, W, 3); nothing is downloaded.

    Raises:
        ConfigError: if the texture is unknown.
        AdtrError: if scikit-image is not installed.
    """
    if texture not in TEXTURES:
        raise ConfigError(f"unknown texture {texture!r}: choose one of {', '.join(TEXTURES)}")
    try:
        from skimage import data
    except ImportError as error:
        raise AdtrError("the demo needs scikit-image: pip install 'adtr[demo]'") from error
    gray = np.asarray(getattr(data, texture)(), dtype=np.uint8)
    return np.repeat(gray[..., None], 3, axis=2)


def _write_png(path: Path, image: Image) -> None:
    from PIL import Image as PilImage

    path.parent.mkdir(parents=True, exist_ok=True)
    PilImage.fromarray(image).save(path)

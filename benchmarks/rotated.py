"""Make a hard data set from an easy one: parts at any angle and place, with defects of a few pixels and their masks.

    python benchmarks/rotated.py transistor runs/rotated-transistor
    python benchmarks/peers.py --datasets runs/rotated-transistor

Every good training image is rotated and shifted at random, and so is every good test image, once as it is and once with
one small planted defect. The border is filled by reflection. The layout is MVTec AD's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adtr.data.folder import open_dataset
from common import dataset_folder, parser

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

SIDE = 256
SHIFT = 0.08
"""Largest shift, as a share of the side."""
RADIUS = (2.0, 5.0)
"""Of a planted defect, in pixels."""


def pose(image: Image.Image, rng: np.random.Generator) -> Picture:
    """The image at `SIDE` pixels, turned by any angle and shifted by up to `SHIFT`, (SIDE, SIDE, 3)."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    center = np.full(2, (SIDE - 1) / 2)
    offset = center - turn @ (center + rng.uniform(-SHIFT, SHIFT, 2) * SIDE)
    channels = [ndimage.affine_transform(pixels[..., c], turn, offset, order=1, mode="reflect") for c in range(3)]
    return np.stack(channels, axis=-1)


def _distance(at: NDArray[np.float64]) -> NDArray[np.float64]:
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return np.hypot(rows - at[0], columns - at[1])


def spot(pixels: Picture, at: NDArray[np.float64], rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A dark or bright disk."""
    mask = _distance(at) <= rng.uniform(*RADIUS)
    changed = pixels.astype(float)
    changed[mask] += -70 if changed[mask].mean() > 110 else 70
    return _rounded(changed), mask


def scratch(pixels: Picture, at: NDArray[np.float64], rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A straight line, two pixels wide and four radii long."""
    angle, length = rng.uniform(0, np.pi), 4 * rng.uniform(*RADIUS)
    steps = np.arange(-length / 2, length / 2, 0.5)[:, None] * [np.sin(angle), np.cos(angle)] + at
    mask = np.zeros((SIDE, SIDE), bool)
    for row, column in np.clip(np.rint(steps).astype(int), 0, SIDE - 2):
        mask[row : row + 2, column : column + 2] = True
    changed = pixels.astype(float)
    changed[mask] += -70 if changed[mask].mean() > 110 else 70
    return _rounded(changed), mask


def patch(pixels: Picture, at: NDArray[np.float64], rng: np.random.Generator) -> tuple[Picture, Mask]:
    """A piece of another place of the same image."""
    mask = _distance(at) <= 1.3 * rng.uniform(*RADIUS)
    shift = rng.integers(SIDE // 8, SIDE // 3, 2) * rng.choice([-1, 1], 2)
    moved = np.roll(pixels, shift, axis=(0, 1))
    return np.where(mask[..., None], moved, pixels), mask


DEFECTS: dict[str, Callable[[Picture, NDArray[np.float64], np.random.Generator], tuple[Picture, Mask]]] = {
    "spot": spot,
    "scratch": scratch,
    "patch": patch,
}


def _rounded(values: NDArray[np.float64]) -> Picture:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def plant(kind: str, pixels: Picture, rng: np.random.Generator) -> tuple[Picture, Mask]:
    """One defect in the middle three quarters; another place is drawn until it changes the pixels visibly."""
    while True:
        changed, mask = DEFECTS[kind](pixels, rng.uniform(SIDE / 8, SIDE * 7 / 8, 2), rng)
        if np.abs(changed.astype(int) - pixels)[mask].mean() > 20:
            return changed, mask


def main() -> None:
    made = parser(__doc__)
    made.add_argument("dataset", help="name or folder of the data set whose good images are taken")
    made.add_argument("folder", type=Path, help="where the new data set goes")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    dataset = open_dataset(dataset_folder(options.data, options.dataset))
    rng = np.random.default_rng(options.seed)
    good = [sample for sample in dataset.test if not sample.is_anomalous]
    folder: Path = options.folder
    for part in ("train/good", "test/good", *(f"{t}/{kind}" for kind in DEFECTS for t in ("test", "ground_truth"))):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i, sample in enumerate(dataset.train):
        Image.fromarray(pose(Image.open(sample.path), rng)).save(folder / f"train/good/{i:04}.png")
    for i, sample in enumerate(good):
        image = Image.open(sample.path)
        Image.fromarray(pose(image, rng)).save(folder / f"test/good/{i:04}.png")
        kind = list(DEFECTS)[i % len(DEFECTS)]
        changed, mask = plant(kind, pose(image, rng), rng)
        Image.fromarray(changed).save(folder / f"test/{kind}/{i:04}.png")
        Image.fromarray(mask).save(folder / f"ground_truth/{kind}/{i:04}_mask.png")
    print(f"{len(dataset.train)} training images, {len(good)} good and {len(good)} defective test images in {folder}")


if __name__ == "__main__":
    main()

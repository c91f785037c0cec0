"""How often the drift monitor raises a false alarm, how soon a true one, and whether it tells the cause.

    python benchmarks/drift.py --data DATA                       # fits, scores (kept in runs/drift-scores.json), measures
    python benchmarks/drift.py --data DATA --streams 50          # uses the scores that are there

Every score is of a real image that training never saw, by a detector fitted here on others: `quick` on a part of the good
images of transistor and magnetic tile, and on 1,500 CIFAR-10 vehicles. Streams are random orders of those images, without
repetition, so that they are exchangeable with their reference; only the few defective images are drawn with repetition.
Changes (brightness, blur, shift, rotation) are made on the real images at the detector's resolution of 256 px.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from adtr import AnomalyDetector
from adtr.data.folder import open_dataset
from adtr.data.parquet import ParquetImages
from cifar_external import CLASSES, SMALL_IMAGES, labels_of
from common import dataset_folder, parser

Picture = NDArray[np.uint8]
Scores = dict[str, list[float]]

SIDE = 256
TRAINED = {"transistor": 113, "magnetic_tile": 361}
"""Good training images that the detector is fitted on; the others, and the good test images, are the pool."""
VEHICLES = ("automobile", "truck")


def brightness(factor: float) -> Callable[[Picture], Picture]:
    return lambda image: np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)


def blur(sigma: float) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.gaussian_filter(image, (sigma, sigma, 0))


def shift(pixels: int) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.shift(image, (0, pixels, 0), order=1, mode="nearest")


def rotation(degrees: float) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.rotate(image, degrees, reshape=False, order=1, mode="nearest")


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "none": lambda image: image,
    "brightness x 0.5": brightness(0.5),
    "brightness x 0.7": brightness(0.7),
    "brightness x 0.9": brightness(0.9),
    "brightness x 1.1": brightness(1.1),
    "brightness x 1.3": brightness(1.3),
    "blur 0.5 px": blur(0.5),
    "blur 1 px": blur(1.0),
    "blur 2 px": blur(2.0),
    "shift 3 px": shift(3),
    "shift 8 px": shift(8),
    "shift 20 px": shift(20),
    "rotation 1°": rotation(1),
    "rotation 3°": rotation(3),
    "rotation 10°": rotation(10),
}


def read(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def score_parts(name: str, data: Path | None) -> Scores:
    """Scores of the pool under each change, and of the defective test images."""
    dataset = open_dataset(dataset_folder(data, name))
    order = np.random.default_rng(0).permutation(len(dataset.train))
    train = [dataset.train[i].path for i in order]
    fitted, left = train[: TRAINED[name]], train[TRAINED[name] :]
    detector = AnomalyDetector(holdout=0.1).fit([read(path) for path in fitted])
    good = [read(path) for path in [*left, *(s.path for s in dataset.test if not s.is_anomalous)]]
    scores = {}
    for change, function in CHANGES.items():
        scores[change] = (-detector.score_samples([function(image) for image in good])).tolist()
        print(name, change, f"median score {np.median(scores[change]):.3f}", flush=True)
    scores["defects"] = (-detector.score_samples([read(s.path) for s in dataset.test if s.is_anomalous])).tolist()
    return scores


def score_vehicles(data: Path | None) -> Scores:
    """Scores of 10,500 CIFAR-10 vehicles and of 1,000 photographs of something else, at 32 px."""
    folder = dataset_folder(data, "cifar10")
    vehicles: list[bytes] = []
    for part in ("train", "test"):
        images = ParquetImages(folder / f"{part}.parquet")
        wanted = np.isin(labels_of(images), [CLASSES.index(name) for name in VEHICLES])
        vehicles += [images[int(i)] for i in np.flatnonzero(wanted)]
    order = np.random.default_rng(0).permutation(len(vehicles))
    detector = AnomalyDetector(**SMALL_IMAGES).fit([vehicles[i] for i in order[:1500]])
    return {
        "none": (-detector.score_samples([vehicles[i] for i in order[1500:]])).tolist(),
        "defects": (-detector.score_samples(dataset_folder(data, "irrelevant_photos"))).tolist(),
    }


def all_scores(data: Path | None, file: Path) -> dict[str, Scores]:
    """Those of the file, or new ones."""
    if not file.exists():
        scores = {name: score_parts(name, data) for name in TRAINED}
        scores["vehicles"] = score_vehicles(data)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scores))
    return json.loads(file.read_text())


def main() -> None:
    made = parser(__doc__)
    options = made.parse_args()
    all_scores(options.data, options.output / "drift-scores.json")


if __name__ == "__main__":
    main()

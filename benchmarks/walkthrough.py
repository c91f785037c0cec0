"""The pictures of docs/adtr-plus.md: synthetic anomalies, and a detector before and after three marked images.

    python benchmarks/walkthrough.py            # writes runs/synthetic.jpg, runs/improve.jpg and what was measured

The images are the demo's: patches of a photograph that scikit-image ships, with drawn defects.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from adtr import AnomalyDetector, Prediction
from adtr.data.images import read_image, read_mask
from adtr.data.synthetic import SYNTHETIC
from adtr.demo.textures import build_demo_dataset
from adtr.report.pictures import contact_sheet, overlay, shown_range
from common import parser, table, write

SIDE = 192
MARKED = 3
SHOWN = 4


def synthetic_sheet(folder: Path) -> Image.Image:
    """A row for each kind: five anomalies on good patches, and their masks beside them."""
    good = [np.asarray(read_image(path)) for path in sorted(folder.iterdir())[:6]]
    tiles = []
    for kind in SYNTHETIC.values():
        rng = np.random.default_rng(1)
        for i in range(5):
            image, mask = kind(good[i], good[i + 1], rng)
            tiles += [
                Image.fromarray(image).resize((SIDE, SIDE)),
                Image.fromarray(mask).convert("RGB").resize((SIDE, SIDE)),
            ]
    return contact_sheet(tiles, columns=10)


def small(image: Image.Image) -> Image.Image:
    return image.convert("RGB").resize((SIDE, SIDE))


def heat(image: Image.Image, prediction: Prediction) -> Image.Image:
    low, high = shown_range(prediction.thresholds.pixel)
    picture = overlay(image, prediction.anomaly_map, low=low, high=high, threshold=prediction.thresholds.pixel)
    return small(picture)


def mark(data: Path, kind: str, folder: Path) -> list[Path]:
    """What a person would do: put the first images of a type, and their masks, into a folder. Returns the others."""
    images = sorted((data / "test" / kind).iterdir())
    for part in (kind, f"ground_truth/{kind}"):
        (folder / part).mkdir(parents=True)
    for path in images[:MARKED]:
        shutil.copy(path, folder / kind)
        shutil.copy(data / "ground_truth" / kind / f"{path.stem}_mask.png", folder / "ground_truth" / kind)
    return images[MARKED:]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--texture", default="brick")
    made.add_argument("--kind", help="the defect type that is marked; by default the one that is localised worst")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as name:
        data, marked = Path(name) / "data", Path(name) / "marked"
        build_demo_dataset(data, texture=options.texture, seed=options.seed, test_per_type=12)
        synthetic_sheet(data / "train/good").save(options.output / "synthetic.jpg", quality=88)
        detector = AnomalyDetector(seed=options.seed).fit(data)
        per_type = detector.evaluate(data).per_type
        kind = options.kind or min(per_type, key=lambda t: per_type[t].pixel_auroc or 1)
        others = mark(data, kind, marked)
        better = detector.improve(marked)
        for path in (marked / kind).iterdir():  # judged on what neither has seen
            (data / "test" / kind / path.name).unlink()
        rows = []
        for which, fitted in (("before", detector), ("after", better)):
            metrics = fitted.evaluate(data)
            found = sum(prediction.is_anomalous for prediction in fitted.predict(others))
            for what, m in (("all types", metrics), (kind, metrics.per_type[kind])):
                rows.append(
                    {
                        "model": which,
                        "defects": what,
                        "image AUROC": m.image_auroc,
                        "pixel AUROC": m.pixel_auroc,
                        "found": f"{found}/{len(others)}" if what == kind else "",
                    }
                )
        tiles = []
        for path in others[:SHOWN]:
            image = read_image(path)
            mask = read_mask(data / "ground_truth" / kind / f"{path.stem}_mask.png", (image.height, image.width))
            before, after = (fitted.predict(path)[0] for fitted in (detector, better))
            tiles += [small(image), small(Image.fromarray(mask))]
            tiles += [heat(image, before), heat(image, after)]
        contact_sheet(tiles, columns=4).save(options.output / "improve.jpg", quality=88)
    write(options.output, "walkthrough", rows, table(rows))
    print("\n".join(better.improvement_.describe()))


if __name__ == "__main__":
    main()

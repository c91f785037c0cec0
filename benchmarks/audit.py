"""What `adtr audit` finds: defects planted among good training images, and copies.

Defects: real defective test images of all types are planted among the good training images, several times at random;
found is what stands in the first tenth of the ranking, where chance would find a tenth. `cross-fit` ranks by networks
that learned from the other folds, which the audit could use instead.

Copies: some images are saved once more in several ways, and sought among all images of the data set.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, ImageEnhance

from adtr.config import Config, load_preset
from adtr.data.copies import Member, find_copies, members_of
from adtr.data.folder import open_dataset
from adtr.data.images import read_image
from adtr.learning.audit import audit_config, rank
from adtr.learning.cross_fitting import cross_fit
from common import dataset_folder, parser, spread, table, write
from planting import Embedded, new_network, part_of


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


def smaller(image: Image.Image, times: int) -> Image.Image:
    return image.resize((max(1, image.width // times), max(1, image.height // times)), Image.Resampling.BICUBIC)


ALTERED: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 40": lambda image: jpeg(image, 40),
    "half the size": lambda image: smaller(image, 2),
    "a quarter of the size": lambda image: smaller(image, 4),
    "15 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "15 % more contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.15),
    "half the size, 10 % brighter, JPEG 60": lambda image: jpeg(
        ImageEnhance.Brightness(smaller(image, 2)).enhance(1.1), 60
    ),
    "2 % cropped at each side": lambda image: image.crop(
        (image.width // 50, image.height // 50, image.width - image.width // 50, image.height - image.height // 50)
    ),
}


def configuration(method: str) -> Config:
    return audit_config() if method == "nearest" else load_preset("quick")


def find_planted(data: Embedded, share: float, seed: int, method: str, steps: int) -> dict[str, object]:
    """Which of the planted images stand in the first tenth."""
    config = configuration(method).override(seed=seed, max_steps=steps)
    planted = data.plant(share, seed)
    rows = np.concatenate([data.train, planted])
    cache = part_of(data.cache, rows)
    started = time.perf_counter()
    if method == "nearest":
        scores, _ = rank(cache, config, torch.device("cpu"))
    else:
        scores, _ = cross_fit(new_network(config), cache, 2, config.training)
    seconds = time.perf_counter() - started
    first = rows[np.argsort(-scores)[: round(0.1 * len(rows))]]
    types: dict[str, list[bool]] = {}
    for row in planted:
        types.setdefault(data.samples[row].defect_type, []).append(bool(row in first))
    return {
        "found": float(np.isin(planted, first).mean()),
        "planted": len(planted),
        "by_type": {name: [sum(hits), len(hits)] for name, hits in sorted(types.items())},
        "seconds": seconds,
    }


def find_altered(folder: Path, chosen: int) -> list[dict[str, object]]:
    """Copies of some images, altered in each way, among all images."""
    dataset = open_dataset(folder)
    members = members_of([sample.path for sample in dataset.train], dataset)
    among = sum(len(group.members) for group in find_copies(members))
    rows: list[dict[str, object]] = [{"copies": "none: the images as they are", "named": f"{among} of {len(members)}"}]
    sources = [members[i].source for i in np.random.default_rng(0).permutation(len(members))[:chosen]]
    with TemporaryDirectory() as temporary:
        copies: dict[Path, tuple[str, object]] = {}
        for i, source in enumerate(sources):
            image = read_image(source)
            for name, alter in ALTERED.items():
                path = Path(temporary) / f"{i}-{len(copies)}.png"
                alter(image).save(path)
                copies[path] = name, source
        extra = [Member(source=path, part="train", label="good") for path in copies]
        groups = [{member.source for member in group.members} for group in find_copies([*members, *extra])]
    for name in ALTERED:
        hits = [
            any({path, source} <= group for group in groups) for path, (way, source) in copies.items() if way == name
        ]
        rows.append({"copies": name, "named": f"{sum(hits)} of {len(hits)}"})
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="*", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    made.add_argument("--share", type=float, default=0.05, help="planted images, as a share of the good ones")
    made.add_argument("--methods", nargs="+", default=["nearest"], choices=["nearest", "cross-fit"])
    made.add_argument("--steps", type=int, default=150, help="training steps of each fold")
    made.add_argument("--copies", nargs="*", default=[], metavar="DATASET", help="measure copies on these too")
    options = made.parse_args()
    results: list[dict[str, object]] = []
    rows = []
    for name in options.datasets:
        for method in options.methods:
            data = Embedded.of(dataset_folder(options.data, name), configuration(method))
            runs = []
            for seed in options.seeds:
                runs.append(find_planted(data, options.share, seed, method, options.steps))
                results.append({"data": name, "method": method, "seed": seed, **runs[-1]})
                print(results[-1], flush=True)
            found = [float(str(run["found"])) for run in runs]
            rows.append(
                {
                    "data": name,
                    "method": method,
                    "planted": f"{runs[0]['planted']} beside {len(data.train)}",
                    "found in the first tenth": f"{np.mean(found):.0%} ({min(found):.0%} to {max(found):.0%})",
                    "ranking, s": spread([float(str(run["seconds"])) for run in runs]),
                }
            )
    markdown = table(rows) if rows else ""
    for name in options.copies:
        copies = find_altered(dataset_folder(options.data, name), 50)
        results += [{"data": name, **row} for row in copies]
        markdown += f"\n{name}\n\n{table(copies)}"
    write(options.output, "audit", results, markdown)


if __name__ == "__main__":
    main()

"""Ray: one worker, two workers and plain `adtr predict` beside each other, and what one image costs at each stage.

Every way answers for a smaller and a larger number of the same images, as a command: the difference is what images
cost, the rest is the start. Of several rounds, in which all ways take turns, the fastest counts. Stages are timed on
one core.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image

from adtr import AnomalyDetector
from adtr.data.folder import open_dataset
from adtr.data.loading import load_image
from adtr.scaling.answers import Answers
from adtr.scaling.sources import find_units
from common import dataset_folder, median_seconds, parser, peak_memory, table, write

FORMATS = {"png": {}, "jpg": {"quality": 95}}


def write_images(folder: Path, pictures: list[Image.Image], count: int, suffix: str) -> list[Path]:
    """As many files, each picture again and again."""
    folder.mkdir(parents=True)
    for i, picture in enumerate(pictures[:count]):
        picture.save(folder / f"{i:05}.{suffix}", **FORMATS[suffix])
    for i in range(len(pictures), count):
        shutil.copy(folder / f"{i % len(pictures):05}.{suffix}", folder / f"{i:05}.{suffix}")
    return sorted(folder.iterdir())


def seconds_of(model: Path, images: Path, way: dict[str, object]) -> float:
    """Wall time of one command."""
    with TemporaryDirectory() as name:
        command = [sys.executable, "-m", "adtr", "predict", str(model), str(images), "-q", "-o", f"{name}/out.jsonl"]
        environment = dict(os.environ)
        environment.pop("OMP_NUM_THREADS", None)
        if way["engine"] == "ray":
            command += ["--engine", "ray", "--workers", str(way["cores"])]
        else:
            command = ["taskset", "-c", ",".join(map(str, range(int(way["cores"])))), *command]
        started = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started


def scaling(model: Path, folders: list[Path], counts: list[int], rounds: int) -> list[dict[str, object]]:
    """Images/s and start of each way, and how much of its first the second core brings."""
    ways: list[dict[str, object]] = [{"engine": e, "cores": c} for e in ("local", "ray") for c in (1, 2)]
    best: dict[tuple[int, int], float] = {}
    for _ in range(rounds):
        for (i, way), (j, folder) in itertools.product(enumerate(ways), enumerate(folders)):
            best[i, j] = min(best.get((i, j), float("inf")), seconds_of(model, folder, way))
            print(way, counts[j], f"{best[i, j]:.1f} s", flush=True)
    for i, way in enumerate(ways):
        each = (best[i, 1] - best[i, 0]) / (counts[1] - counts[0])
        way |= {"images/s": 1 / each, "start, s": best[i, 0] - counts[0] * each}
    for way in ways:
        alone = next(other for other in ways if (other["engine"], other["cores"]) == (way["engine"], 1))
        local = next(other for other in ways if (other["engine"], other["cores"]) == ("local", way["cores"]))
        way["times its one core"] = float(way["images/s"]) / float(alone["images/s"])
        way["times local"] = float(way["images/s"]) / float(local["images/s"])
    return ways


def stages(detector: AnomalyDetector, folder: Path, pictures: list[Image.Image]) -> list[dict[str, object]]:
    """Milliseconds an image on one core: from file to network size, and from there to the verdict."""
    size = detector.fitted_config_.embedding.image_size
    rows: list[dict[str, object]] = []
    for side, suffix in itertools.product((512, 1024), FORMATS):
        resized = [picture.resize((side, side)) for picture in pictures[:16]]
        paths = write_images(folder / f"{side}-{suffix}", resized, 16, suffix)
        loaded = [load_image(path, size) for path in paths]

        def load(paths: list[Path] = paths) -> None:
            for path in paths:
                load_image(path, size)

        def judge(loaded: list = loaded) -> None:
            for prediction in detector.judge(loaded):
                prediction.to_dict()

        judge()
        row = {"side": side, "format": suffix, "KiB": np.mean([path.stat().st_size for path in paths]) / 1024}
        for name, function in {"read and decode, ms": load, "judge, ms": judge}.items():
            row[name] = median_seconds(function, rounds=5) / 16 * 1000
        rows.append(row)
    return rows


def driver(folder: Path, images: int = 50_000) -> list[dict[str, object]]:
    """What the one process that lists and keeps has to do for each image."""
    many = folder / "many"
    many.mkdir()
    for i in range(images):
        (many / f"{i:06}.png").touch()
    before, started = peak_memory(), time.perf_counter()
    units = find_units([str(many)])
    rows: list[dict[str, object]] = [{"what": "list", "us an image": (time.perf_counter() - started) / images * 1e6}]
    rows[0]["bytes an image"] = max(0.0, peak_memory() - before) * 2**20 / images
    answers = Answers(folder / "answers", {})
    region = {"box": [10, 20, 30, 40], "area": 900, "peak": 3.25}
    rng = np.random.default_rng(0)
    numbers = ("score", "p_value", "severity", "brightness", "sharpness")
    values = [
        {
            "path": path,
            **{name: float(rng.random()) for name in numbers},
            "threshold": 0.5,
            "verdict": "good",
            "is_anomalous": False,
            "regions": [region] if i % 20 == 0 else [],
        }
        for i, path in enumerate(units["path"].to_pylist())
    ]
    started = time.perf_counter()
    for value in values:
        answers.add(value)
    answers.finish()
    seconds = time.perf_counter() - started
    size = sum(part.stat().st_size for part in answers.parts())
    return [*rows, {"what": "keep", "us an image": seconds / images * 1e6, "bytes an image": size / images}]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--dataset", default="transistor", help="its test images are the pictures")
    made.add_argument(
        "--counts", nargs=2, type=int, default=[256, 1024], help="images of each command; several blocks for each"
    )
    made.add_argument("--side", type=int, default=512, help="pixels of the images of each command")
    made.add_argument("--rounds", type=int, default=2)
    options = made.parse_args()
    dataset = open_dataset(dataset_folder(options.data, options.dataset))
    pictures = [Image.open(sample.path).convert("RGB") for sample in dataset.test]
    with TemporaryDirectory() as name:
        folder = Path(name)
        model = folder / "model"
        detector = AnomalyDetector(max_steps=50).fit([np.asarray(picture) for picture in pictures[:40]])
        detector.save(model)
        resized = [picture.resize((options.side, options.side)) for picture in pictures]
        folders = [folder / str(count) for count in options.counts]
        for place, count in zip(folders, options.counts, strict=True):
            write_images(place, resized, count, "png")
        ways = scaling(model, folders, options.counts, options.rounds)
        os.sched_setaffinity(0, {0})
        torch.set_num_threads(1)
        one_core = stages(detector, folder, pictures)
        kept = driver(folder)
    markdown = f"{table(ways)}\n## Stages, one core\n\n{table(one_core)}\n## Driver\n\n{table(kept)}"
    write(options.output, "ray_scaling", {"scaling": ways, "stages": one_core, "driver": kept}, markdown)


if __name__ == "__main__":
    main()

"""Many images on one machine: time and memory of `fit` and of streaming `predict` as the number of images grows.

Images are generated, small, and take the whole way: files, decoding, features, cache, training, thresholds. Figures for
100,000 images are extrapolated from the two largest runs, by the straight line through them, and say so.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from adtr import AnomalyDetector
from common import parser, peak_memory, table, write

SIDE = 64
TARGET = 100_000


def generate(folder: Path, count: int) -> None:
    """Distinct noisy pictures of `SIDE` pixels, JPEG."""
    rng = np.random.default_rng(0)
    ground = Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).resize((SIDE, SIDE))
    base = np.asarray(ground).astype(np.int16)
    for i in range(count):
        noisy = np.clip(base + rng.integers(-20, 20, base.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:06}.jpg", quality=80)


def measure(what: str, folder: Path, model: Path, grid: str) -> dict[str, float]:
    """One fit or prediction in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--child", what, str(folder), str(model), grid]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return {"seconds": float(words[-2]), "peak": float(words[-1])}


def child(what: str, folder: Path, model: Path, grid: str) -> None:
    started = time.perf_counter()
    if what == "fit":
        AnomalyDetector(image_size=SIDE, grid_size=grid, max_steps=100).fit(folder).save(model)
    else:
        detector = AnomalyDetector.load(model)
        for _ in detector.stream(sorted(folder.iterdir())):
            pass
    print(time.perf_counter() - started, peak_memory())


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5])
        return
    made = parser(__doc__)
    made.add_argument("--counts", nargs="+", type=int, default=[500, 2000, 8000])
    made.add_argument("--grid", default="8", help="feature tokens on each side")
    options = made.parse_args()
    results: list[dict[str, object]] = []
    with TemporaryDirectory() as name:
        for count in options.counts:
            folder = Path(name) / str(count)
            folder.mkdir()
            generate(folder, count)
            for what in ("fit", "predict"):
                run = measure(what, folder, Path(name) / "model", options.grid)
                results.append({"what": what, "images": count, "s": run["seconds"], "peak memory, MiB": run["peak"]})
                print(results[-1], flush=True)
    for what in ("fit", "predict"):
        a, b = [row for row in results if row["what"] == what][-2:]
        row: dict[str, object] = {"what": f"{what}, extrapolated", "images": TARGET}
        for key in ("s", "peak memory, MiB"):
            slope = (float(b[key]) - float(a[key])) / (int(b["images"]) - int(a["images"]))
            row[key] = float(b[key]) + slope * (TARGET - int(b["images"]))
        results.append(row)
    write(options.output, "scale", results, table(results))


if __name__ == "__main__":
    main()

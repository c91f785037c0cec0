"""Start-up: `adtr --help` and `adtr info` against an empty Python, and the first prediction of a process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from adtr import AnomalyDetector
from common import median_seconds, parser, table, write


def main() -> None:
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rng = np.random.default_rng(0)
        images = [rng.integers(0, 255, (64, 64, 3), np.uint8) for _ in range(16)]
        AnomalyDetector(epochs=1).fit(images).save(folder / "model")
        Image.fromarray(images[0]).save(folder / "image.png")
        adtr = [sys.executable, "-m", "adtr"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "adtr --help": [*adtr, "--help"],
            "adtr fit --help": [*adtr, "fit", "--help"],
            "adtr info": [*adtr, "info", str(folder / "model")],
            "import torch": [sys.executable, "-c", "import torch"],
            "first prediction": [*adtr, "predict", str(folder / "model"), str(folder / "image.png")],
        }
        seconds = {
            name: median_seconds(lambda c=command: subprocess.run(c, check=True, capture_output=True))
            for name, command in commands.items()
        }
    rows = [
        {"command": name, "seconds": value, "times `python -c pass`": value / seconds["python -c pass"]}
        for name, value in seconds.items()
    ]
    write(options.output, "startup", seconds, table(rows))


if __name__ == "__main__":
    main()

"""What the benchmarks share: where data lie, what machine this is, and how results are written."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from adtr.data.parquet import ParquetImages

Result = TypeVar("Result")

DATASETS = {
    "transistor": "mvtec/transistor",
    "magnetic_tile": "magnetic_tile",
    "cifar10": "cifar10",
    "irrelevant_photos": "irrelevant_photos",
}

SMALL_IMAGES = {"image_size": 32, "grid_size": 8, "batch_size": 64, "top_k": 20, "pool_size": 0.25}
"""Fields that fit `quick` to CIFAR-10's images at their own size."""


def labels_of(images: ParquetImages) -> NDArray[np.int64]:
    """Of CIFAR-10's images in a file of the hub, their places in `adtr.data.cifar.CLASSES`."""
    from pyarrow import parquet

    return parquet.read_table(images.path, columns=["label"])["label"].to_numpy()


def parser(description: str) -> argparse.ArgumentParser:
    """Options that every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    made.add_argument("--data", type=Path, default=os.environ.get("ADTR_DATA"), help="folder of the data sets")
    made.add_argument("--output", type=Path, default=Path("runs"), help="receives NAME.json and NAME.md")
    return made


def dataset_folder(data: Path | None, name: str) -> Path:
    """The folder of a data set by its short name; any other name is a folder of its own."""
    folder = Path(data or ".") / DATASETS[name] if name in DATASETS else Path(name)
    if not folder.is_dir():
        sys.exit(f"no such data set: {folder}; give --data or set ADTR_DATA")
    return folder


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    import torch

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("adtr", "torch", "timm", "numpy", "pillow")},
        "threads": torch.get_num_threads(),
    }


def matrix_ceiling(dtype_name: str, device: torch.device, *, seconds: float = 1.0) -> float:
    """FLOP/s of a large matrix product, the best of several rounds: what the machine can do at most."""
    import torch

    rows, side = (4096, 1024) if device.type == "cpu" else (8192, 8192)
    dtype = getattr(torch, dtype_name)
    a, b = (torch.randn(length, side, device=device).to(dtype) for length in (rows, side))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * rows * side * side / best


def peak_memory() -> float:
    """Largest resident set of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_processes(jobs: int, function: Callable[..., Result], tasks: Sequence[tuple[Any, ...]]) -> Iterator[Result]:
    """Results of a function of a module for each tuple of arguments, as they come; of so many processes at a time."""
    if jobs == 1:
        yield from (function(*task) for task in tasks)
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(function, *task) for task in tasks]):
            yield future.result()


def median_seconds(function: Callable[[], object], *, rounds: int = 5) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def spread(values: Sequence[float]) -> str:
    """Mean and half the range of several seeds."""
    return f"{statistics.fmean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


def table(rows: Sequence[dict[str, object]]) -> str:
    """A Markdown table; the first row's keys are the columns."""
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(c, "") for c in columns)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write(output: Path, name: str, results: object, markdown: str) -> None:
    """Write `NAME.json` and `NAME.md`, and show the latter."""
    output.mkdir(parents=True, exist_ok=True)
    record = {"command": " ".join(sys.argv), "machine": machine(), "results": results}
    (output / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (output / f"{name}.md").write_text(f"# {name}\n\n`{record['command']}`\n\n{markdown}")
    print(markdown)

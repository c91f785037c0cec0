"""The default recipe, one change at a time: three seeds on each data set, at the last step.

Each row is the whole of `fit` and `evaluate` with one or two fields of the configuration changed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from adtr import AnomalyDetector
from common import dataset_folder, in_processes, parser, spread, table, write

CHANGES: dict[str, dict[str, object]] = {
    "quick": {},
    "features not standardised": {"standardize": False},
    "AdamW, its best rate here": {"optimizer": "adamw", "learning_rate": 1e-3},
    "learning rate 1e-3": {"learning_rate": 1e-3},
    "learning rate 1e-2": {"learning_rate": 1e-2},
    "constant rate": {"schedule": "step", "learning_rate": 1e-3},
    "batches of 4": {"batch_size": 4},
    "batches of 16": {"batch_size": 16},
    "2 + 2 layers": {"encoder_layers": 2, "decoder_layers": 2},
    "width 256, 8 heads, feed-forward 1,024": {"width": 256, "heads": 8, "feedforward": 1024},
    "feed-forward 1,024": {"feedforward": 1024},
    "levels 2, 3, 4": {"levels": "2,3,4"},
    "levels 3, 4, 5": {"levels": "3,4,5"},
    "level 3 alone": {"levels": "3"},
    "last level alone": {"levels": "last"},
    "1 step": {"max_steps": 1},
    "150 steps": {"max_steps": 150},
    "500 steps": {"max_steps": 500},
    "1,000 steps": {"max_steps": 1000},
    "8x8 tokens": {"grid_size": 8},
    "320 px, 20x20 tokens": {"image_size": 320, "grid_size": 20},
    "no memory": {"memory_size": 0},
    "memory of 1,000 patches": {"memory_size": 1000},
    "memory of weight 1": {"memory_weight": 1},
    "memory of weight 3": {"memory_weight": 3},
    "no distance as a whole": {"mahalanobis_weight": 0},
    "distance as a whole of weight 1": {"mahalanobis_weight": 1},
    "pooling window 1/8": {"pool_size": 0.125},
}
METRICS = ("image_auroc", "pixel_auroc", "aupro")


def run(folder: Path, name: str, change: str, seed: int) -> dict[str, Any]:
    """A fit and its evaluation."""
    detector = AnomalyDetector(seed=seed, **CHANGES[change])
    started = time.perf_counter()
    detector.fit(folder)
    seconds = time.perf_counter() - started
    metrics = detector.evaluate(folder)
    figures = {key: getattr(metrics, key) for key in METRICS}
    return {"dataset": name, "change": change, "seed": seed, "fit_seconds": seconds, **figures}


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--changes", nargs="+", default=list(CHANGES), choices=CHANGES, metavar="NAME")
    made.add_argument("--jobs", type=int, default=1, help="fits at a time; more than 1 make their seconds meaningless")
    options = made.parse_args()
    tasks = [
        (dataset_folder(options.data, name), name, change, seed)
        for name, change, seed in product(options.datasets, options.changes, options.seeds)
    ]
    results: list[dict[str, Any]] = []
    for result in in_processes(options.jobs, run, tasks):
        results.append(result)
        print(result, flush=True)
        write(options.output, "ablation", results, table(rows(results)))  # what there is so far: it takes hours


def rows(results: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """One for each change on each data set."""
    made = []
    for name, change in dict.fromkeys((result["dataset"], result["change"]) for result in results):
        runs = [result for result in results if (result["dataset"], result["change"]) == (name, change)]
        row: dict[str, object] = {"data": name, "change": change, "seeds": len(runs)}
        made.append(row | {key: spread([run[key] for run in runs]) for key in (*METRICS, "fit_seconds")})
    return made


if __name__ == "__main__":
    main()

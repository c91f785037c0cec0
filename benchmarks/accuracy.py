"""Accuracy of `adtr fit` and `adtr evaluate` on real data sets, with the total wall time of fitting.

Each fit is a fresh detector at its last step; thresholds come from held-out good images, never from the test set.
With `--budgets`, the schedule is stretched or cut so that a whole fit, features included, takes about so many seconds:
accuracy against time.
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

from adtr import AnomalyDetector
from common import dataset_folder, parser, spread, table, write

PROBE_STEPS = 20
METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_ap", "pixel_ap")


def steps_within(budget: float, folder: Path, preset: str, overrides: dict[str, str]) -> int:
    """Training steps that fit into `budget` seconds beside everything else, by the pace of a short fit."""
    started = time.perf_counter()
    detector = AnomalyDetector(preset, **{**overrides, "max_steps": PROBE_STEPS}).fit(folder)
    training = detector.metadata_["training"]["seconds"]
    other = time.perf_counter() - started - training
    return max(1, round((budget - other) * PROBE_STEPS / training))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--preset", default="quick")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of the preset")
    made.add_argument("--budgets", nargs="*", type=float, default=[], help="seconds of a whole fit")
    options = made.parse_args()
    overrides = dict(item.split("=", 1) for item in options.set)
    results = []
    for name, budget in product(options.datasets, options.budgets or [None]):
        folder = dataset_folder(options.data, name)
        schedule = {} if budget is None else {"max_steps": steps_within(budget, folder, options.preset, overrides)}
        for seed in options.seeds:
            detector = AnomalyDetector(options.preset, seed=seed, **{**overrides, **schedule})
            started = time.perf_counter()
            detector.fit(folder)
            fit_seconds = time.perf_counter() - started
            started = time.perf_counter()
            metrics = detector.evaluate(folder)
            results.append(
                {
                    "dataset": name,
                    "seed": seed,
                    "budget": budget,
                    "fit_seconds": fit_seconds,
                    "evaluate_seconds": time.perf_counter() - started,
                    **{key: getattr(metrics, key) for key in METRICS},
                    "per_type": metrics.to_dict()["per_type"],
                    "loss": detector.metadata_["training"]["losses"][-1],
                    "steps": detector.metadata_["training"]["steps"],
                }
            )
            print({key: value for key, value in results[-1].items() if key != "per_type"}, flush=True)
    rows = []
    for name, budget in product(options.datasets, options.budgets or [None]):
        runs = [result for result in results if result["dataset"] == name and result["budget"] == budget]
        row: dict[str, object] = {"data": name, "seeds": len(runs)}
        if budget is not None:
            row |= {"budget, s": budget, "steps": spread([run["steps"] for run in runs])}
        row |= {key: spread([run[key] for run in runs]) for key in METRICS}
        row["fit, s"] = spread([run["fit_seconds"] for run in runs])
        rows.append(row)
    write(options.output, "accuracy-time" if options.budgets else "accuracy", results, table(rows))


if __name__ == "__main__":
    main()

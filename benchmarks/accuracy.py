"""Accuracy of `adtr fit` and `adtr evaluate` on real data sets, with the total wall time of fitting.

Each fit is a fresh detector at its last step; thresholds come from held-out good images, never from the test set.
"""

from __future__ import annotations

import time

from adtr import AnomalyDetector
from common import dataset_folder, parser, spread, table, write

METRICS = ("image_auroc", "pixel_auroc", "aupro", "image_ap", "pixel_ap")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--preset", default="quick")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of the preset")
    options = made.parse_args()
    overrides = dict(item.split("=", 1) for item in options.set)
    results = []
    for name in options.datasets:
        folder = dataset_folder(options.data, name)
        for seed in options.seeds:
            detector = AnomalyDetector(options.preset, seed=seed, **overrides)
            started = time.perf_counter()
            detector.fit(folder)
            fit_seconds = time.perf_counter() - started
            started = time.perf_counter()
            metrics = detector.evaluate(folder)
            results.append(
                {
                    "dataset": name,
                    "seed": seed,
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
    for name in options.datasets:
        runs = [result for result in results if result["dataset"] == name]
        row: dict[str, object] = {"data": name, "seeds": len(runs)}
        row |= {key: spread([run[key] for run in runs]) for key in METRICS}
        row["fit, s"] = spread([run["fit_seconds"] for run in runs])
        rows.append(row)
    write(options.output, "accuracy", results, table(rows))


if __name__ == "__main__":
    main()

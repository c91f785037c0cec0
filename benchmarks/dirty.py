"""What undetected defects among the "good" training images cost, and what `adtr audit` gives back.

Real defective test images are planted among the training images, so that some train the network and some set its
thresholds. The test set is what is left, the same for every share of planted images. "looked at" removes the planted
images among the most suspicious tenth, as a person would who looks at these; "cut off" removes that whole tenth unseen.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from adtr.calibration import Calibration, exceeds, split_holdout
from adtr.config import Config, load_preset
from adtr.data.images import read_mask
from adtr.learning.audit import audit_config, rank
from adtr.learning.cross_fitting import train_on_good
from adtr.metrics import MetricsAccumulator
from adtr.prediction import upsample
from adtr.training.features import score_cached
from common import dataset_folder, parser, spread, table, write
from planting import Embedded, new_network, part_of

SHOWN = ("image_auroc", "aupro", "false_alarms", "missed", "missed_5", "planted_left")


def fit_and_judge(data: Embedded, rows: NDArray[np.int64], test: NDArray[np.int64], config: Config) -> dict[str, float]:
    """What `fit` does with some rows, judged on others at thresholds asked for 1 and 5 % of false alarms."""
    network, cache = new_network(config), part_of(data.cache, rows)
    training, held = split_holdout(len(rows), config.calibration, config.training.seed)
    train_on_good(network, cache, training, config.training)
    calibration = Calibration.of(*score_cached(network, cache, torch.from_numpy(held)))
    scores, maps = score_cached(network, data.cache, torch.from_numpy(test))
    accumulator = MetricsAccumulator()
    for row, score, score_map in zip(test, scores.tolist(), maps, strict=True):
        sample, size = data.samples[row], data.sizes[row]
        mask = read_mask(sample.mask, size) if sample.mask else None
        accumulator.add(score, upsample(score_map, size), mask, defect_type=sample.defect_type)
    metrics = accumulator.compute()
    bad = np.isin(test, data.bad)
    above, above_5 = (exceeds(scores, calibration.thresholds(rate).image) for rate in (0.01, 0.05))
    return {
        "image_auroc": float(metrics.image_auroc or 0),
        "aupro": float(metrics.aupro or 0),
        "promised": calibration.thresholds(0.01).promised_rate,
        "false_alarms": float(above[~bad].mean()),
        "missed": float((~above[bad]).mean()),
        "missed_5": float((~above_5[bad]).mean()),
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.05, 0.1])
    made.add_argument("--steps", type=int, default=500, help="training steps of each fit")
    options = made.parse_args()
    results: list[dict[str, object]] = []
    for name in options.datasets:
        config = load_preset("quick").override(max_steps=options.steps)
        folder = dataset_folder(options.data, name)
        data, audited = Embedded.of(folder, config), Embedded.of(folder, audit_config())
        for seed, share in product(options.seeds, (0.0, *options.shares)):
            config = config.override(seed=seed)
            planted = data.plant(share, seed)
            test = np.setdiff1d(np.concatenate([data.good, data.bad]), data.plant(max(options.shares), seed))
            rows = np.concatenate([data.train, planted])
            kept = {"as it is": rows}
            if len(planted):
                scores, _ = rank(part_of(audited.cache, rows), audit_config(seed=seed), torch.device("cpu"))
                order = rows[np.argsort(-scores)]
                suspicious = order[: round(0.1 * len(order))]
                kept["looked at"] = np.setdiff1d(rows, np.intersect1d(planted, suspicious))
                kept["cut off"] = np.setdiff1d(rows, suspicious)
            for cleaning, chosen in kept.items():
                run = fit_and_judge(data, chosen, test, config)
                run["planted_left"] = float(np.isin(planted, chosen).sum())
                results.append(
                    {"data": name, "seed": seed, "planted": share, "training set": cleaning, "images": len(rows), **run}
                )
                print(results[-1], flush=True)
    rows_shown = []
    for key in dict.fromkeys((r["data"], r["planted"], r["training set"]) for r in results):
        runs = [r for r in results if (r["data"], r["planted"], r["training set"]) == key]
        figures = {name: spread([float(str(run[name])) for run in runs]) for name in SHOWN}
        rows_shown.append({"data": key[0], "planted": f"{key[1]:.0%}", "training set": key[2], **figures})
    write(options.output, "dirty", results, table(rows_shown))


if __name__ == "__main__":
    main()

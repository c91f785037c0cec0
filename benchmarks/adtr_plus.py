"""ADTR against ADTR+: synthetic anomalies, a few labelled images per defect type, and types that nobody labelled.

Each run starts from the detector fitted with the same seed, ends at the last step, and is tested on the test images
that it did not learn from; the detector before is tested on the same images. Nothing is held out for the guard.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from adtr import AnomalyDetector
from adtr.data.anomalies import Anomalies, Anomaly
from adtr.data.folder import Dataset, Sample, open_dataset
from adtr.data.images import read_mask
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.prediction import upsample
from adtr.training.features import EmbeddedImages, embed_images, score_cached
from common import dataset_folder, in_processes, parser, spread, table, write

METRICS = ("image_auroc", "pixel_auroc", "aupro", "pixel_ap")
COUNTS = (1, 3, 10)


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A data set's test images with their features, which no training changes."""

    dataset: Dataset
    embedded: EmbeddedImages
    masks: list[NDArray[np.bool_] | None]

    @classmethod
    def embed(cls, dataset: Dataset, detector: AnomalyDetector) -> TestSet:
        """One pass of the detector's backbone over the test images."""
        embedded = embed_images(detector.network_, [sample.path for sample in dataset.test])
        masks = [
            read_mask(sample.mask, size) if sample.mask else None
            for sample, size in zip(dataset.test, embedded.sizes, strict=True)
        ]
        return cls(dataset=dataset, embedded=embedded, masks=masks)

    def evaluate(self, detector: AnomalyDetector, without: set[Path]) -> Metrics:
        """Metrics on the images that are not in `without`."""
        index = [i for i, sample in enumerate(self.dataset.test) if sample.path not in without]
        scores, maps = score_cached(detector.network_, self.embedded.cache, torch.tensor(index))
        accumulator = MetricsAccumulator()
        for i, score, score_map in zip(index, scores, maps, strict=True):
            sample = self.dataset.test[i]
            anomaly_map = upsample(score_map, self.embedded.sizes[i])
            accumulator.add(float(score), anomaly_map, self.masks[i], defect_type=sample.defect_type)
        return accumulator.compute()


def labelled(dataset: Dataset, count: int, seed: int, types: list[str]) -> Anomalies:
    """So many images, drawn at random, of each of some defect types; of small types at most half."""
    chosen: list[Sample] = []
    for name in types:
        of_type = [sample for sample in dataset.test if sample.defect_type == name]
        order = np.random.default_rng(seed).permutation(len(of_type))
        chosen += [of_type[i] for i in order[: min(count, len(of_type) // 2)]]
    samples = [Anomaly(path=sample.path, defect_type=sample.defect_type, mask=sample.mask) for sample in chosen]
    return Anomalies(root=dataset.root, samples=samples, good=[], notes=[])


def plans(dataset: Dataset, seed: int, wanted: list[str]) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """What to learn from: a name, the type that was left out, and the arguments of `improve`."""
    types = dataset.defect_types
    if "synthetic" in wanted:
        for kind in ("confetti", "scar", "blend"):
            yield kind, None, {"synthetic": [kind]}
    for labels in ("pixel", "image"):
        if labels in wanted:
            for count in COUNTS:
                anomalies = labelled(dataset, count, seed, types)
                yield f"{count} per type, {labels}", None, {"anomalies": anomalies, "labels": labels}
    if "transfer" in wanted:
        for name in types:
            anomalies = labelled(dataset, max(COUNTS), seed, [t for t in types if t != name])
            yield "transfer", name, {"anomalies": anomalies, "labels": "pixel"}


def values(metrics: Metrics, of_type: str | None) -> dict[str, float | None]:
    """The whole test set's figures, or one type's."""
    if of_type is None:
        return {key: getattr(metrics, key) for key in METRICS}
    one = metrics.per_type[of_type]
    return {"image_auroc": one.image_auroc, "pixel_auroc": one.pixel_auroc}


def run(
    folder: Path, name: str, seed: int, preset: str, wanted: list[str], overrides: dict[str, Any]
) -> list[dict[str, Any]]:
    """All plans of one data set and seed."""
    dataset = open_dataset(folder)
    base = AnomalyDetector(preset, seed=seed).fit(dataset, keep_features=True)
    test = TestSet.embed(dataset, base)
    results = []
    for what, left_out, arguments in plans(dataset, seed, wanted):
        started = time.perf_counter()
        better = base.improve(**arguments, **overrides)
        seconds = time.perf_counter() - started
        learned = {sample.path for sample in arguments["anomalies"].samples} if "anomalies" in arguments else set()
        before, after = (values(test.evaluate(d, learned), left_out) for d in (base, better))
        results.append(
            {
                "dataset": name,
                "seed": seed,
                "what": what,
                "left_out": left_out,
                "seconds": seconds,
                "before": before,
                "after": after,
            }
        )
        print(results[-1], flush=True)
    return results


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--preset", default="quick")
    made.add_argument("--what", nargs="+", default=["synthetic", "pixel", "image", "transfer"])
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of `improve`")
    made.add_argument("--jobs", type=int, default=1, help="seeds at a time; more than 1 make the seconds meaningless")
    options = made.parse_args()
    overrides = {"anomaly_holdout": 0, **dict(item.split("=", 1) for item in options.set)}
    tasks = [
        (dataset_folder(options.data, name), name, seed, options.preset, options.what, overrides)
        for name, seed in product(options.datasets, options.seeds)
    ]
    results: list[dict[str, Any]] = []
    for done in in_processes(options.jobs, run, tasks):
        results += done
        write(options.output, "adtr-plus", results, tables(results))


def tables(results: list[dict[str, Any]]) -> str:
    """Before, after and the mean gain of each plan; then the types that were never labelled."""
    rows, transfer = [], []
    for name, what, left_out in dict.fromkeys((r["dataset"], r["what"], r["left_out"]) for r in results):
        runs = [r for r in results if (r["dataset"], r["what"], r["left_out"]) == (name, what, left_out)]
        row: dict[str, object] = (
            {"data": name, "learned": what} if left_out is None else {"data": name, "type": left_out}
        )
        for key in runs[0]["after"]:
            before, after = ([r[when][key] for r in runs] for when in ("before", "after"))
            if None in before + after:
                continue
            gain = statistics.fmean(after) - statistics.fmean(before)
            row[key] = f"{statistics.fmean(before):.4f} → {spread(after)} ({gain:+.4f})"
        row["s"] = spread([r["seconds"] for r in runs]).split(" ")[0]
        (rows if left_out is None else transfer).append(row)
    text = table(rows) if rows else ""
    if transfer:
        text += f"\n## Types that were never labelled\n\n{table(transfer)}"
    return text


if __name__ == "__main__":
    main()

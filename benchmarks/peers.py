"""Peers side by side: anomalib's methods and a plain nearest neighbour against adtr, in one run.

Same images, same decoding and resizing, same packaged EfficientNet-Lite2 weights, same metrics code, raw scores; what
trains takes as many steps as adtr. Prediction is timed from files to scores and maps, adtr's at the images' own size,
the others' as anomalib makes them; no metric is computed meanwhile, and the methods take turns, since the pace of a
shared machine changes within minutes. anomalib lives in an environment of its own:

    python3 -m venv peers-env
    peers-env/bin/pip install -c constraints.txt anomalib==2.7.0 .
    peers-env/bin/python benchmarks/peers.py --data DATA

`adtr experiment mvtec --peers` sets the same methods beside the paper's tables.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from adtr import AnomalyDetector
from adtr.config import load_preset
from adtr.experiments.peers import PEERS, Bench, Scorer, judge, why_not
from adtr.experiments.subjects import Subject, Subjects
from adtr.metrics import Metrics
from adtr.model.backbones import import_timm
from adtr.model.embedding import Embedding
from common import dataset_folder, parser, spread, table, write

ROUNDS = 3


def nearest_neighbour(bench: Bench) -> Scorer:
    """A random 1 % of the features that adtr itself sees (16x16, standardised), Euclidean distance."""
    embedding = Embedding(load_preset("quick").embedding)
    with torch.inference_mode():
        bank = torch.cat([embedding(_as_uint8(images)) for images, _ in bench.images(bench.sources)]).flatten(0, 1)
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    generator = torch.Generator().manual_seed(bench.training.seed)
    chosen = torch.randperm(len(bank), generator=generator)[: max(1, len(bank) // 100)]
    bank = (bank[chosen] - mean) / std

    def score(images: Tensor) -> tuple[Tensor, Tensor]:
        features = (embedding(_as_uint8(images)) - mean) / std
        maps = torch.cdist(features, bank.expand(len(features), -1, -1)).amin(-1).unflatten(-1, (16, 16))
        return maps.amax(dim=(-2, -1)), maps

    return score


def _as_uint8(images: Tensor) -> Tensor:
    return (images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


METHODS: dict[str, Callable[[Bench], Scorer]] = {**PEERS, "nearest neighbour 1 %": nearest_neighbour}


@dataclass(frozen=True)
class Fitted:
    """A method after training, and how to predict all test images with it."""

    metrics: Metrics
    fit_seconds: float
    predict: Callable[[], None]


def fit_peer(method: str, subject: Subject, seed: int) -> Fitted:
    config = load_preset("quick").override(seed=seed)
    torch.manual_seed(seed)
    started = time.perf_counter()
    bench = Bench.of(subject, config, None)
    scorer = METHODS[method](bench)
    seconds = time.perf_counter() - started

    def predict() -> None:
        with torch.inference_mode():
            for images, _ in bench.images(subject.test):
                scorer(images)

    return Fitted(judge(scorer, subject, bench), seconds, predict)


def fit_adtr(subject: Subject, seed: int, overrides: dict[str, str]) -> Fitted:
    started = time.perf_counter()
    detector = AnomalyDetector(seed=seed, **overrides).fit(subject.train)
    seconds = time.perf_counter() - started

    def predict() -> None:
        for prediction, _ in detector.stream(subject.test):
            assert prediction.anomaly_map.shape == prediction.size

    return Fitted(detector.evaluate(subject.root), seconds, predict)


def in_turns(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median seconds of each call over `ROUNDS` rounds, in each of which every one has its turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def run(
    subject: Subject, methods: Sequence[str], seed: int, overrides: dict[str, str]
) -> dict[str, dict[str, float | None]]:
    """Each method's figures on one data set."""
    fitted = {}
    for method in methods:
        fitted[method] = fit_adtr(subject, seed, overrides) if method == "adtr" else fit_peer(method, subject, seed)
        print(f"{method} fitted in {fitted[method].fit_seconds:.0f} s", flush=True)
    seconds = in_turns({method: one.predict for method, one in fitted.items()})
    return {
        method: {
            **{key: getattr(one.metrics, key) for key in ("image_auroc", "pixel_auroc", "aupro")},
            "fit_seconds": one.fit_seconds,
            "images_per_second": len(subject.test) / seconds[method],
        }
        for method, one in fitted.items()
    }


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--methods", nargs="+", default=["adtr", *METHODS])
    made.add_argument("--limit", type=int, help="train every method on at most so many images, the same for all")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of adtr's preset")
    return made.parse_args()


def main() -> None:
    options = arguments()
    import_timm()  # before anomalib, which would fail where torchvision and torch are of different builds
    overrides = dict(item.split("=", 1) for item in options.set)
    methods = []
    for method in options.methods:
        if method in PEERS and (reason := why_not(method, load_preset("quick"))):
            print(f"not run: {method} {reason}", flush=True)
        else:
            methods.append(method)
    results: list[dict[str, object]] = []
    rows = []
    for name in options.datasets:
        subjects = Subjects("mvtec", dataset_folder(options.data, name))
        subject = subjects.open(subjects.names[0])
        if options.limit and options.limit < len(subject.train):
            chosen = np.random.default_rng(0).permutation(len(subject.train))[: options.limit]
            subject = replace(subject, train=[subject.train[i] for i in np.sort(chosen)])
        runs = []
        for seed in options.seeds:
            runs.append(run(subject, methods, seed, overrides))
            results += [{"dataset": name, "method": method, "seed": seed, **one} for method, one in runs[-1].items()]
            print(table(results[-len(runs[-1]) :]), flush=True)
        for method in methods:
            row: dict[str, object] = {"data": name, "trained on": len(subject.train), "method": method}
            for key in runs[0][method]:
                values = [value for one in runs if (value := one[method][key]) is not None]
                row[key] = spread(values) if values else "-"
            rows.append(row)
        write(options.output, "peers", results, table(rows))


if __name__ == "__main__":
    main()

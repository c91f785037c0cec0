"""Peers side by side: anomalib's methods and a plain nearest neighbour against adtr, in one run.

Same images, same decoding and resizing, same packaged EfficientNet-Lite2 weights, same metrics code, raw scores; what
trains takes as many steps as adtr. Prediction is timed from files to scores and maps, adtr's at the images' own size,
the others' as anomalib makes them; no metric is computed meanwhile. anomalib lives in an environment of its own:

    python3 -m venv peers-env
    peers-env/bin/pip install -c constraints.txt anomalib==2.7.0 .
    peers-env/bin/python benchmarks/peers.py --data DATA

`adtr experiment mvtec --peers` sets the same methods beside the paper's tables.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

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


def run_peer(method: str, subject: Subject, seed: int) -> dict[str, object]:
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

    return _row(method, seed, judge(scorer, subject, bench), seconds, len(subject.test) / fastest(predict))


def run_adtr(subject: Subject, seed: int, overrides: dict[str, str]) -> dict[str, object]:
    started = time.perf_counter()
    detector = AnomalyDetector(seed=seed, **overrides).fit(subject.train)
    seconds = time.perf_counter() - started

    def predict() -> None:
        for prediction, _ in detector.stream(subject.test):
            assert prediction.anomaly_map.shape == prediction.size

    metrics = detector.evaluate(subject.root)
    return _row("adtr", seed, metrics, seconds, len(subject.test) / fastest(predict))


def fastest(function: Callable[[], None]) -> float:
    """Seconds of the fastest of `ROUNDS` calls; the pace of a shared machine changes within seconds."""
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)


def _row(method: str, seed: int, metrics: Metrics, seconds: float, rate: float) -> dict[str, object]:
    values = {key: getattr(metrics, key) for key in ("image_auroc", "pixel_auroc", "aupro")}
    return {"method": method, "seed": seed, **values, "fit_seconds": seconds, "images_per_second": rate}


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
    results, rows = [], []
    for name in options.datasets:
        subjects = Subjects("mvtec", dataset_folder(options.data, name))
        subject = subjects.open(subjects.names[0])
        if options.limit and options.limit < len(subject.train):
            chosen = np.random.default_rng(0).permutation(len(subject.train))[: options.limit]
            subject = replace(subject, train=[subject.train[i] for i in np.sort(chosen)])
        for method in options.methods:
            if method in PEERS and (reason := why_not(method, load_preset("quick"))):
                print(f"not run: {method} {reason}", flush=True)
                continue
            runs = []
            for seed in options.seeds:
                adtr = method == "adtr"
                overrides = dict(item.split("=", 1) for item in options.set)
                run = run_adtr(subject, seed, overrides) if adtr else run_peer(method, subject, seed)
                runs.append(run)
                results.append({"dataset": name, **run})
                print(results[-1], flush=True)
            keys = ("image_auroc", "pixel_auroc", "aupro", "fit_seconds", "images_per_second")
            rows.append(
                {
                    "data": name,
                    "trained on": len(subject.train),
                    "method": method,
                    **{key: spread([r[key] for r in runs]) if runs[0][key] is not None else "-" for key in keys},
                }
            )
    write(options.output, "peers", results, table(rows))


if __name__ == "__main__":
    main()

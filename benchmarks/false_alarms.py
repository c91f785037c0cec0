"""Does the promise hold? False alarms on real good images that neither trained a network nor set its thresholds.

For each data set one network is trained on some of its good images. The others are scored once in both ways that adtr
has: from cached features, as `fit` scores the images that set the thresholds, and from the file, as `predict` does.
Then they are split at random, again and again, into images that set the thresholds and images that are judged.

`--folds` measures what has no proof: thresholds from cross-fitting on few images, beside those of a hold-out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from adtr import AnomalyDetector
from adtr.calibration import Calibration, exceeds, split_holdout
from adtr.config import Config, load_preset
from adtr.data.cifar import CLASSES
from adtr.data.folder import open_dataset
from adtr.data.parquet import ParquetImages
from adtr.device import choose_device, choose_precision
from adtr.learning.cross_fitting import cross_fit, train_on_good
from adtr.model.network import ADTR
from adtr.training.features import embed_images, score_cached
from common import SMALL_IMAGES, dataset_folder, labels_of, parser, table, write

RATES = (0.01, 0.05, 0.1)
SHARE = 0.6  # of the images that did not train set the thresholds, the others are judged


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Good images that trained nothing, scored in both ways."""

    name: str
    trained: int
    cached: NDArray[np.float32]
    """Image scores from cached features, (n,)."""
    cached_maps: NDArray[np.float32]
    """Score maps, (n, h, w)."""
    predicted: NDArray[np.float32]
    """Image scores from files, (n,)."""
    peaks: NDArray[np.float32]
    """Maxima of the anomaly maps at the images' own sizes, (n,)."""
    official: NDArray[np.bool_]
    """Whether an image is of the data set's own test part, (n,)."""


def score(name: str, train: Sequence[object], test: Sequence[object], learn: int, **overrides: object) -> Scored:
    """Train on `learn` of the training part's good images; score all others."""
    order = np.random.default_rng(0).permutation(len(train))
    learned = [train[i] for i in np.sort(order[:learn])]
    others = [*(train[i] for i in np.sort(order[learn:])), *test]
    detector = AnomalyDetector(holdout=0, holdout_min=1, **overrides).fit(learned)  # its own threshold is not used
    embedded = embed_images(detector.network_, others)
    cached, maps = score_cached(detector.network_, embedded.cache, torch.arange(len(others)))
    predicted = [(p.score, p.anomaly_map.max()) for p, _ in detector.stream(others)]
    scores, peaks = np.array(predicted, np.float32).T
    official = np.arange(len(others)) >= len(others) - len(test)
    return Scored(
        name=name, trained=learn, cached=cached, cached_maps=maps, predicted=scores, peaks=peaks, official=official
    )


def count(scored: Scored, held: NDArray[np.int64], judged: NDArray[np.int64], rate: float) -> dict[str, object]:
    """False alarms among the judged images by the thresholds of the others."""
    thresholds = Calibration.of(scored.cached[held], scored.cached_maps[held]).thresholds(rate)
    alarms = exceeds(scored.predicted[judged], thresholds.image)
    return {
        "alarms": int(alarms.sum()),
        "first": bool(alarms[0]),
        "marked": int(exceeds(scored.peaks[judged], thresholds.pixel).sum()),
        "judged": len(judged),
        "k": round((1 - thresholds.promised_rate) * (len(held) + 1)),
        "held": len(held),
    }


def band(judged: int, held: int, k: int) -> stats.rv_discrete:
    """Of the number of alarms among new images, when the k-th smallest of `held` scores is the threshold."""
    return stats.betabinom(judged, held + 1 - k, k)


def split_again_and_again(scored: Scored, splits: int) -> tuple[list[dict[str, object]], dict[str, object]]:
    """One row for each rate, and the counts behind it."""
    n = len(scored.cached)
    held = max(9, int(SHARE * n) // 100 * 100 - 1)  # so many promise the rates exactly
    rng = np.random.default_rng(1)
    orders = [rng.permutation(n) for _ in range(splits)]
    rows, counts = [], {}
    for rate in RATES:
        runs = [count(scored, order[:held], order[held:], rate) for order in orders]
        alarms = np.array([run["alarms"] for run in runs])
        judged, k = n - held, int(runs[0]["k"])
        expected = band(judged, held, k)
        low, high = expected.interval(0.95)
        single, promised = sum(bool(run["first"]) for run in runs), 1 - k / (held + 1)
        once = stats.binom(splits, promised)
        given = _official(scored, rate)
        rows.append(
            {
                "data": scored.name,
                "set thresholds": held,
                "judged": judged,
                "promised": f"{promised:.1%}",
                "mean observed": f"{alarms.mean() / judged:.2%}",
                "splits inside the 95 % band": f"{np.mean((alarms >= low) & (alarms <= high)):.0%}",
                "one new image a split: alarms": f"{single} of {splits}",
                "its 99 % band": "{:.0f} to {:.0f}".format(*once.interval(0.99)),
                "images with a marked pixel": f"{np.mean([run['marked'] for run in runs]) / judged:.2%}",
                "the data set's own split": given,
            }
        )
        counts[rate] = {"alarms": alarms.tolist(), "judged": judged, "held": held, "k": k}
    return rows, counts


def _official(scored: Scored, rate: float) -> str:
    held, judged = np.flatnonzero(~scored.official), np.flatnonzero(scored.official)
    run = count(scored, held, judged, rate)
    low, high = band(len(judged), len(held), int(run["k"])).interval(0.95)
    return f"{run['alarms']} of {len(judged)} ({low:.0f} to {high:.0f})"


def compare_folds(folder: Path, images: int, draws: int, steps: int) -> list[dict[str, object]]:
    """Few good images: thresholds from five folds beside thresholds from a hold-out, on all the other images."""
    dataset = open_dataset(folder)
    good = [s.path for s in (*dataset.train, *dataset.test) if not s.is_anomalous]
    bad = [s.path for s in dataset.test if s.is_anomalous]
    config = load_preset("quick").override(max_steps=steps)
    network = ADTR(config).place(choose_device("cpu"), choose_precision("auto", choose_device("cpu")))
    cache = embed_images(network, [*good, *bad]).cache
    fresh = {name: value.clone() for name, value in network.state_dict().items()}
    results: list[dict[str, object]] = []
    for draw in range(draws):
        chosen = np.sort(np.random.default_rng(draw).permutation(len(good))[:images])
        new = torch.from_numpy(np.setdiff1d(np.arange(len(good) + len(bad)), chosen))
        anomalous = new.numpy() >= len(good)
        for folds in (0, 5):
            network.load_state_dict(fresh)
            calibration = _calibrate(network, cache, chosen, config.override(folds=folds, seed=draw))
            scores, _ = score_cached(network, cache, new)
            for rate in (0.025, 0.05, 0.1):
                thresholds = calibration.thresholds(rate)
                above = exceeds(scores, thresholds.image)
                results.append(
                    {
                        "draw": draw,
                        "folds": folds,
                        "rate": rate,
                        "promised": thresholds.promised_rate,
                        "false_alarms": float(above[~anomalous].mean()),
                        "missed": float((~above[anomalous]).mean()),
                    }
                )
        print(results[-6:], flush=True)
    return results


def _calibrate(network: ADTR, cache: object, chosen: NDArray[np.int64], config: Config) -> Calibration:
    """What `fit` does, on some rows of a cache; the network is trained in place."""
    from adtr.training.feature_cache import FeatureCache

    assert isinstance(cache, FeatureCache)
    part = FeatureCache.of(cache.features[torch.from_numpy(chosen)])
    training, held = split_holdout(len(part), config.calibration, config.training.seed)
    if folds := config.calibration.folds:
        scores, maps = cross_fit(network, part, folds, config.training)
    train_on_good(network, part, training, config.training)
    if not folds:
        scores, maps = score_cached(network, part, torch.from_numpy(held))
    return Calibration.of(scores, maps, folds=folds)


def summarize_folds(results: list[dict[str, object]]) -> list[dict[str, object]]:
    rows = []
    for rate in (0.025, 0.05, 0.1):
        for folds in (0, 5):
            runs = [r for r in results if (r["rate"], r["folds"]) == (rate, folds)]
            alarms, missed = (np.array([r[key] for r in runs]) for key in ("false_alarms", "missed"))
            rows.append(
                {
                    "asked": f"{rate:.1%}",
                    "thresholds from": f"{folds} folds" if folds else "hold-out",
                    "promised or expected": f"{runs[0]['promised']:.1%}",
                    "false alarms": f"{alarms.mean():.1%} ({alarms.min():.1%} to {alarms.max():.1%})",
                    "missed": f"{missed.mean():.1%} ({missed.min():.1%} to {missed.max():.1%})",
                }
            )
    return rows


def draw_plot(counts: dict[str, dict[float, dict[str, object]]], path: Path) -> None:
    """Observed counts of false alarms over the splits, and what they must follow."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update({"svg.hashsalt": "adtr", "svg.fonttype": "none", "font.size": 8})
    from matplotlib import pyplot as plt

    figure, grid = plt.subplots(len(counts), len(RATES), figsize=(9, 2 * len(counts)), squeeze=False)
    for axes, (name, by_rate) in zip(grid, counts.items(), strict=True):
        for axis, (rate, c) in zip(axes, by_rate.items(), strict=True):
            expected = band(c["judged"], c["held"], c["k"])
            low, high = (int(x) for x in expected.interval(0.9999))
            support = np.arange(low, high + 1)
            width = max(1, round(len(support) / 16))  # alarms in one bar
            edges = np.arange(low, high + width + 1, width)
            share = np.histogram(c["alarms"], edges - 0.5)[0] / len(c["alarms"])
            exact = [expected.pmf(np.arange(a, a + width)).sum() for a in edges[:-1]]
            centers = (edges[:-1] + (width - 1) / 2) / c["judged"]
            axis.bar(centers, share, width / c["judged"] * 0.9, color="#d94a4e", label="observed")
            axis.step(centers, exact, where="mid", color="#202024", lw=1, label="exact")
            axis.axvline(rate, color="#787880", ls=":", lw=1)
            axis.set_title(f"{name}, promised {rate:.0%}", fontsize=8)
            axis.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=None))
            axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(5))
            axis.set_yticks([])
    grid[0][0].legend(fontsize=7, frameon=False)
    for axis in grid[-1]:
        axis.set_xlabel("false alarms among the judged")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def score_data_set(name: str, data: Path | None, steps: int) -> Scored:
    if name in CLASSES:
        folder, label = dataset_folder(data, "cifar10"), CLASSES.index(name)
        parts = [ParquetImages(folder / f"{part}.parquet") for part in ("train", "test")]
        train, test = ([part[int(i)] for i in np.flatnonzero(labels_of(part) == label)] for part in parts)
        return score(name, train, test, 1000, **{**SMALL_IMAGES, "batch_size": 32, "max_steps": steps})
    dataset = open_dataset(dataset_folder(data, name))
    test = [s.path for s in dataset.test if not s.is_anomalous]
    train = [s.path for s in dataset.train]
    return score(name, train, test, min(400, 2 * len(train) // 5), max_steps=steps)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="*", default=["transistor", "magnetic_tile", *CLASSES[:3]])
    made.add_argument("--splits", type=int, default=200)
    made.add_argument("--steps", type=int, default=200, help="training steps of each network")
    made.add_argument("--plot", type=Path, help="SVG file")
    made.add_argument("--folds", metavar="DATASET", help="compare five folds with a hold-out on this data set instead")
    made.add_argument("--images", type=int, default=40, help="good images at hand, for --folds")
    made.add_argument("--draws", type=int, default=6, help="of them, for --folds")
    options = made.parse_args()
    if options.folds:
        results = compare_folds(
            dataset_folder(options.data, options.folds), options.images, options.draws, options.steps
        )
        write(options.output, "false-alarms-folds", results, table(summarize_folds(results)))
        return
    rows: list[dict[str, object]] = []
    counts = {}
    for name in options.datasets:
        scored = score_data_set(name, options.data, options.steps)
        more, counts[name] = split_again_and_again(scored, options.splits)
        rows += more
        print(table(more), flush=True)
    if options.plot:
        draw_plot(counts, options.plot)
    write(options.output, "false-alarms", {"rows": rows, "counts": counts}, table(rows))


if __name__ == "__main__":
    main()

"""The image-level loss (Eq. 9): CIFAR-10 classes, with irrelevant photographs as the only anomalies that training sees.

For each class: fit on its training images, `improve` with the external photographs, test on its 1,000 test images and
as many drawn from the other classes (Section 4.1). Detectors are judged at their last step.
"""

from __future__ import annotations

import time

import numpy as np
from sklearn.metrics import roc_auc_score

from adtr import AnomalyDetector
from adtr.data.parquet import ParquetImages
from common import dataset_folder, parser, spread, table, write

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SMALL_IMAGES = {"image_size": 32, "grid_size": 8, "batch_size": 64, "top_k": 20, "pool_size": 0.25}


def labels_of(images: ParquetImages) -> np.ndarray:
    from pyarrow import parquet

    return parquet.read_table(images.path, columns=["label"])["label"].to_numpy()


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--classes", nargs="+", default=list(CLASSES[:3]), choices=CLASSES)
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of `quick`")
    options = made.parse_args()
    folder, photos = (dataset_folder(options.data, name) for name in ("cifar10", "irrelevant_photos"))
    overrides = {**SMALL_IMAGES, **dict(item.split("=", 1) for item in options.set)}
    train, test = ParquetImages(folder / "train.parquet"), ParquetImages(folder / "test.parquet")
    train_labels, test_labels = labels_of(train), labels_of(test)
    results, rows = [], []
    for name in options.classes:
        label = CLASSES.index(name)
        good = [train[int(i)] for i in np.flatnonzero(train_labels == label)]
        for seed in options.seeds:
            rng = np.random.default_rng(seed)
            normal = np.flatnonzero(test_labels == label)
            others = rng.choice(np.flatnonzero(test_labels != label), len(normal), replace=False)
            images = [test[int(i)] for i in (*normal, *others)]
            truth = np.repeat([0, 1], len(normal))
            started = time.perf_counter()
            base = AnomalyDetector(seed=seed, **overrides).fit(good, keep_features=True)
            fitted = time.perf_counter()
            better = base.improve(external=photos)
            improved = time.perf_counter()
            before, after = (float(roc_auc_score(truth, -d.score_samples(images))) for d in (base, better))
            seconds = {"fit_seconds": fitted - started, "improve_seconds": improved - fitted}
            results.append({"class": name, "seed": seed, "before": before, "after": after, **seconds})
            print(results[-1], flush=True)
        runs = [r for r in results if r["class"] == name]
        rows.append(_row(name, runs))
    rows.append(_row("mean", results))
    write(options.output, "cifar-external", results, table(rows))


def _row(name: str, runs: list[dict[str, float]]) -> dict[str, object]:
    gains = [run["after"] - run["before"] for run in runs]
    return {
        "class": name,
        "ADTR": spread([run["before"] for run in runs]),
        "ADTR+": spread([run["after"] for run in runs]),
        "gain": spread(gains),
        "fit, s": spread([run["fit_seconds"] for run in runs]).split(" ")[0],
        "improve, s": spread([run["improve_seconds"] for run in runs]).split(" ")[0],
    }


if __name__ == "__main__":
    main()

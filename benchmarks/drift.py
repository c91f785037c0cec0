"""How often the drift monitor raises a false alarm, how soon a true one, and whether it tells the cause.

    python benchmarks/drift.py --data DATA                  # fits, scores (kept in runs/drift-scores.json), measures
    python benchmarks/drift.py --data DATA --streams 50     # uses the scores that are there

Every score is of a real image that training never saw, by a detector fitted here on others: `quick` on a part of the
good images of transistor and magnetic tile, and on 1,500 CIFAR-10 vehicles. Streams are random orders of those images,
without repetition, so that they are exchangeable with their reference; only the few defective images are drawn with
repetition. Changes (brightness, blur, shift, rotation) are made on the real images at the detector's 256 px.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from adtr import AnomalyDetector
from adtr.data.folder import open_dataset
from adtr.data.parquet import ParquetImages
from adtr.monitoring import Alarm, DriftMonitor, MonitorConfig
from cifar_external import CLASSES, SMALL_IMAGES, labels_of
from common import dataset_folder, parser, table, write

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Scores = dict[str, list[float]]

SIDE = 256
TRAINED = {"transistor": 113, "magnetic_tile": 361}
"""Good training images that the detector is fitted on; the others, and the good test images, are the pool."""
VEHICLES = ("automobile", "truck")
REFERENCE = {"transistor": 40, "magnetic_tile": 150}
"""About as many as `fit` holds out of all good images."""
BEFORE = {"transistor": 60, "magnetic_tile": 200}
"""Images of the stream before a change."""
SHARES = (0.1, 0.2, 0.3)
HORIZON = 10_000


def brightness(factor: float) -> Callable[[Picture], Picture]:
    return lambda image: np.clip(np.rint(image * factor), 0, 255).astype(np.uint8)


def blur(sigma: float) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.gaussian_filter(image, (sigma, sigma, 0))


def shift(pixels: int) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.shift(image, (0, pixels, 0), order=1, mode="nearest")


def rotation(degrees: float) -> Callable[[Picture], Picture]:
    return lambda image: ndimage.rotate(image, degrees, reshape=False, order=1, mode="nearest")


CHANGES: dict[str, Callable[[Picture], Picture]] = {
    "none": lambda image: image,
    "brightness x 0.5": brightness(0.5),
    "brightness x 0.7": brightness(0.7),
    "brightness x 0.9": brightness(0.9),
    "brightness x 1.1": brightness(1.1),
    "brightness x 1.3": brightness(1.3),
    "blur 0.5 px": blur(0.5),
    "blur 1 px": blur(1.0),
    "blur 2 px": blur(2.0),
    "shift 3 px": shift(3),
    "shift 8 px": shift(8),
    "shift 20 px": shift(20),
    "rotation 1°": rotation(1),
    "rotation 3°": rotation(3),
    "rotation 10°": rotation(10),
}


def read(path: Path) -> Picture:
    return np.asarray(Image.open(path).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def score_parts(name: str, data: Path | None) -> Scores:
    """Scores of the pool under each change, and of the defective test images."""
    dataset = open_dataset(dataset_folder(data, name))
    order = np.random.default_rng(0).permutation(len(dataset.train))
    train = [dataset.train[i].path for i in order]
    fitted, left = train[: TRAINED[name]], train[TRAINED[name] :]
    detector = AnomalyDetector(holdout=0.1).fit([read(path) for path in fitted])
    good = [read(path) for path in [*left, *(s.path for s in dataset.test if not s.is_anomalous)]]
    scores = {}
    for change, function in CHANGES.items():
        scores[change] = (-detector.score_samples([function(image) for image in good])).tolist()
        print(name, change, f"median score {np.median(scores[change]):.3f}", flush=True)
    scores["defects"] = (-detector.score_samples([read(s.path) for s in dataset.test if s.is_anomalous])).tolist()
    return scores


def score_vehicles(data: Path | None) -> Scores:
    """Scores of 10,500 CIFAR-10 vehicles and of 1,000 photographs of something else, at 32 px."""
    folder = dataset_folder(data, "cifar10")
    vehicles: list[bytes] = []
    for part in ("train", "test"):
        images = ParquetImages(folder / f"{part}.parquet")
        wanted = np.isin(labels_of(images), [CLASSES.index(name) for name in VEHICLES])
        vehicles += [images[int(i)] for i in np.flatnonzero(wanted)]
    order = np.random.default_rng(0).permutation(len(vehicles))
    detector = AnomalyDetector(**SMALL_IMAGES).fit([vehicles[i] for i in order[:1500]])
    return {
        "none": (-detector.score_samples([vehicles[i] for i in order[1500:]])).tolist(),
        "defects": (-detector.score_samples(dataset_folder(data, "irrelevant_photos"))).tolist(),
    }


def all_scores(data: Path | None, file: Path) -> dict[str, Scores]:
    """Those of the file, or new ones."""
    if not file.exists():
        scores = {name: score_parts(name, data) for name in TRAINED}
        scores["vehicles"] = score_vehicles(data)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(scores))
    return json.loads(file.read_text())


def watch(reference: Floats, stream: Floats, config: MonitorConfig) -> tuple[Alarm | None, Alarm | None]:
    """The alarm as it was raised, and when it was settled or the stream ended."""
    monitor = DriftMonitor(reference.tolist(), config)
    raised = None
    for score in stream.tolist():
        if monitor.update(score) and raised is None:
            raised = monitor.alarm
        if monitor.settled:
            break
    return raised, monitor.alarm


def highest_statistic(reference: Floats, stream: Floats, seed: int, *, fixed: bool = False) -> float:
    """Of a monitor that never raises an alarm; `fixed` ranks against the reference alone, which breaks the promise."""
    monitor = DriftMonitor(reference.tolist(), MonitorConfig(false_alarm_rate=1e-300, seed=seed))
    highest = 0.0
    for score in stream.tolist():
        if monitor.update(score):
            return math.inf
        if fixed:
            monitor._sorted.remove(score)  # noqa: SLF001
        highest = max(highest, monitor.statistic)
    return highest


def in_control(scores: dict[str, Scores], streams: int) -> list[dict[str, object]]:
    """Share of streams of good images with an alarm, beside the promise."""
    rows = []
    for name, reference, fixed in (
        ("vehicles", 40, False),
        ("vehicles", 100, False),
        ("vehicles", 500, False),
        ("transistor", 40, False),
        ("magnetic_tile", 150, False),
        ("vehicles", 100, True),
    ):
        pool = np.array(scores[name]["none"])
        length = min(HORIZON, len(pool) - reference)
        highest = []
        for seed in range(streams if not fixed else max(1, streams // 10)):
            order = np.random.default_rng(seed).permutation(pool)
            highest.append(
                highest_statistic(order[:reference], order[reference : reference + length], seed, fixed=fixed)
            )
        row: dict[str, object] = {
            "images": f"{name}{', ranked against the reference alone' if fixed else ''}",
            "reference": reference,
            "stream": length,
            "streams": len(highest),
        }
        for rate in (0.01, 0.05, 0.1, 0.5):
            alarms = sum(value >= MonitorConfig(false_alarm_rate=rate).threshold for value in highest)
            row[f"alarms at {rate:.0%}"] = f"{alarms / len(highest):.1%}"
        rows.append(row)
        print(row, flush=True)
    return rows


def file_order(scores: dict[str, Scores]) -> list[dict[str, object]]:
    """No shuffling: the rest of the training folder is the reference, the good test images come as in their folder."""
    rows = []
    for name, fitted in TRAINED.items():
        pool = np.array(scores[name]["none"])
        tests = {"transistor": 60, "magnetic_tile": 191}[name]
        raised, _ = watch(pool[:-tests], pool[-tests:], MonitorConfig())
        rows.append(
            {
                "images": name,
                "fitted on": fitted,
                "reference": len(pool) - tests,
                "stream": tests,
                "alarm": "none" if raised is None else raised.describe(),
            }
        )
    return rows


def delays(found: list[tuple[Alarm | None, Alarm | None]], before: int, right: str) -> dict[str, object]:
    """Images from the change to the alarm, and how often the kind is right."""
    wait = [raised.image - before if raised else math.inf for raised, _ in found]
    true = [(raised, final) for raised, final in found if raised and final and raised.image > before]

    def quantile(q: float) -> str:
        value = np.quantile([w for w in wait if w > 0], q, method="higher")
        return f"{value:.0f}" if math.isfinite(value) else "-"

    def correct(alarms: list[Alarm]) -> str:
        return f"{sum(a.kind == right for a in alarms) / len(alarms):.0%}" if len(alarms) >= 10 else "-"

    return {
        "alarms": f"{len(true) / len(found):.0%}",
        "too early": f"{sum(w <= 0 for w in wait) / len(found):.1%}",
        "median": quantile(0.5),
        "90th percentile": quantile(0.9),
        "kind right at the alarm": correct([raised for raised, _ in true]),
        "after 30 more": correct([final for _, final in true]),
    }


def changes(scores: dict[str, Scores], streams: int) -> list[dict[str, object]]:
    """Delay after each change of the images, late in a stream and from its first image on."""
    rows = []
    for name in TRAINED:
        reference = REFERENCE[name]
        for before in (0, BEFORE[name]):
            for change in list(CHANGES)[1:]:
                found = []
                for seed in range(streams):
                    order = np.random.default_rng(seed).permutation(len(scores[name]["none"]))
                    good, changed = np.array(scores[name]["none"])[order], np.array(scores[name][change])[order]
                    start = reference + before
                    stream = np.concatenate([good[reference:start], changed[start:]])
                    found.append(watch(good[:reference], stream, MonitorConfig(seed=seed)))
                rows.append(
                    {
                        "images": name,
                        "reference": reference,
                        "good images first": before,
                        "change": change,
                        "changed images": len(scores[name]["none"]) - reference - before,
                        "median score": " -> ".join(f"{np.median(scores[name][c]):.1f}" for c in ("none", change)),
                        **delays(found, before, "conditions"),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def with_defects(good: Floats, defects: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Each image is replaced by a defective one with the probability `share`."""
    return np.where(rng.random(len(good)) < share, rng.choice(defects, len(good)), good)


def more_defects(scores: dict[str, Scores], streams: int) -> list[dict[str, object]]:
    """Delay after the share of defects has risen from 1 %."""
    rows = []
    for name, reference, before in (
        *((name, REFERENCE[name], BEFORE[name]) for name in TRAINED),
        ("vehicles", 150, 1000),
        ("vehicles", 1000, 1000),
    ):
        good, defects = np.array(scores[name]["none"]), np.array(scores[name]["defects"])
        for expected in (0.0, 0.02):
            for share in SHARES:
                found = []
                for seed in range(streams):
                    rng = np.random.default_rng(seed)
                    order = rng.permutation(good)
                    start = reference + before
                    stream = np.concatenate(
                        [
                            with_defects(order[reference:start], defects, 0.01, rng),
                            with_defects(order[start : start + 1000], defects, share, rng),
                        ]
                    )
                    config = MonitorConfig(expected_anomalies=expected, seed=seed)
                    found.append(watch(order[:reference], stream, config))
                rows.append(
                    {
                        "images": name,
                        "reference": reference,
                        "images at 1 %": before,
                        "defects": f"{share:.0%}",
                        "images then": min(1000, len(good) - start),
                        "expected": expected,
                        **delays(found, before, "anomalies"),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def usual_defects(scores: dict[str, Scores], streams: int) -> list[dict[str, object]]:
    """Alarms over 10,000 images with a constant share of defects."""
    rows = []
    good, defects = np.array(scores["vehicles"]["none"]), np.array(scores["vehicles"]["defects"])
    for reference, reference_share, expected in (
        (150, 0.0, 0.0),
        (500, 0.0, 0.0),
        (500, 0.02, 0.0),
        (150, 0.0, 0.02),
        (500, 0.0, 0.02),
        (500, 0.0, 0.05),
    ):
        found = []
        for seed in range(max(1, streams // 4)):
            rng = np.random.default_rng(seed)
            order = rng.permutation(good)
            first = with_defects(order[:reference], defects, reference_share, rng)
            stream = with_defects(order[reference : reference + HORIZON], defects, 0.02, rng)
            found.append(watch(first, stream, MonitorConfig(expected_anomalies=expected, seed=seed))[0])
        at = [alarm.image for alarm in found if alarm]
        rows.append(
            {
                "reference": reference,
                "defects in the reference": f"{reference_share:.0%}",
                "defects in the stream": "2%",
                "expected": expected,
                "streams": len(found),
                "alarms": f"{len(at) / len(found):.1%}",
                "median image of the alarm": f"{np.median(at):.0f}" if at else "-",
            }
        )
        print(rows[-1], flush=True)
    return rows


def auroc(scores: Scores) -> float:
    return float(
        roc_auc_score([0] * len(scores["none"]) + [1] * len(scores["defects"]), scores["none"] + scores["defects"])
    )


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--streams", type=int, default=200)
    options = made.parse_args()
    scores = all_scores(options.data, options.output / "drift-scores.json")
    tables = {
        "Nothing changes": in_control(scores, options.streams),
        "Nothing changes, order of the files": file_order(scores),
        "Defects as usual": usual_defects(scores, options.streams),
        "More defects": more_defects(scores, options.streams),
        "The images change": changes(scores, options.streams),
    }
    ranked = ", ".join(f"{name} {auroc(values):.3f}" for name, values in scores.items())
    text = "\n".join(f"## {title}\n\n{table(rows)}" for title, rows in tables.items())
    write(options.output, "drift", tables, f"Image AUROC of the defects: {ranked}\n\n{text}")


if __name__ == "__main__":
    main()

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import roc_auc_score

from adtr import AnomalyDetector
from adtr.data.cifar import CLASSES
from adtr.data.folder import list_images, open_dataset
from adtr.data.parquet import ParquetImages
from adtr.monitoring import REFINING, Alarm, DriftMonitor, MonitorConfig
from common import SMALL_IMAGES, dataset_folder, labels_of, parser, table, write

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]
Values = dict[str, list[float]]
"""Of the same images under each change, or of the defective images."""
Measured = dict[str, dict[str, Values]]

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
QUANTITIES = ("score", "brightness", "sharpness")


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


def measure(detector: AnomalyDetector, images: Sequence[object]) -> dict[str, list[float]]:
    rows = [(p.score, loaded.brightness, loaded.sharpness) for p, loaded in detector.stream(images)]
    return dict(zip(QUANTITIES, map(list, zip(*rows, strict=True)), strict=True))


def measure_parts(name: str, data: Path | None) -> dict[str, Values]:
    """Each quantity of the pool under each change, and of the defective test images."""
    dataset = open_dataset(dataset_folder(data, name))
    order = np.random.default_rng(0).permutation(len(dataset.train))
    train = [dataset.train[i].path for i in order]
    fitted, left = train[: TRAINED[name]], train[TRAINED[name] :]
    detector = AnomalyDetector(holdout=0.1).fit([read(path) for path in fitted])
    good = [read(path) for path in [*left, *(s.path for s in dataset.test if not s.is_anomalous)]]
    measured: dict[str, Values] = {quantity: {} for quantity in QUANTITIES}
    for change in (*CHANGES, "defects"):
        defects = [read(s.path) for s in dataset.test if s.is_anomalous]
        images = defects if change == "defects" else [CHANGES[change](image) for image in good]
        for quantity, values in measure(detector, images).items():
            measured[quantity][change] = values
        print(name, change, {q: f"{np.median(measured[q][change]):.4g}" for q in QUANTITIES}, flush=True)
    return measured


def measure_vehicles(data: Path | None) -> dict[str, Values]:
    """10,500 CIFAR-10 vehicles, and 1,000 photographs of something else, at 32 px."""
    folder = dataset_folder(data, "cifar10")
    vehicles: list[bytes] = []
    for part in ("train", "test"):
        images = ParquetImages(folder / f"{part}.parquet")
        wanted = np.isin(labels_of(images), [CLASSES.index(name) for name in VEHICLES])
        vehicles += [images[int(i)] for i in np.flatnonzero(wanted)]
    order = np.random.default_rng(0).permutation(len(vehicles))
    detector = AnomalyDetector(**SMALL_IMAGES).fit([vehicles[i] for i in order[:1500]])
    good = measure(detector, [vehicles[i] for i in order[1500:]])
    photos = measure(detector, list_images(dataset_folder(data, "irrelevant_photos")))
    return {quantity: {"none": good[quantity], "defects": photos[quantity]} for quantity in QUANTITIES}


def all_measured(data: Path | None, file: Path) -> Measured:
    """What the file holds, or new."""
    if not file.exists():
        measured = {name: measure_parts(name, data) for name in TRAINED}
        measured["vehicles"] = measure_vehicles(data)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(measured))
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


def in_control(measured: Measured, streams: int) -> list[dict[str, object]]:
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
        pool = np.array(measured[name]["score"]["none"])
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


def file_order(measured: Measured) -> list[dict[str, object]]:
    """No shuffling: the rest of the training folder is the reference, the good test images come as in their folder."""
    rows = []
    for name, tests in (("transistor", 60), ("magnetic_tile", 191)):
        for quantity in QUANTITIES:
            pool = np.array(measured[name][quantity]["none"])
            raised, _ = watch(pool[:-tests], pool[-tests:], MonitorConfig(quantity=quantity))
            text = "none" if raised is None else raised.describe()
            rows.append(
                {"images": f"{name}, {quantity}", "reference": len(pool) - tests, "stream": tests, "alarm": text}
            )
    return rows


@dataclass
class Verdict:
    """What the first alarm of several quantities said."""

    image: float
    quantities: set[str]
    """That raised an alarm at that image."""
    kind: str | None
    settled_kind: str | None


def watch_all(reference: dict[str, Floats], stream: dict[str, Floats], config: MonitorConfig) -> Verdict:
    """As `adtr monitor` does: the quantities share the rate, and conditions are the cause as soon as one says so."""
    rate = config.false_alarm_rate / len(reference)
    pairs = [
        watch(reference[name], stream[name], replace(config, quantity=name, false_alarm_rate=rate))
        for name in reference
    ]
    raised = [(first, last) for first, last in pairs if first and last]
    if not raised:
        return Verdict(math.inf, set(), None, None)
    image = min(first.image for first, _ in raised)
    at_once = {first.kind for first, _ in raised if first.image == image}
    later = {last.kind for _, last in raised if last.image <= image + REFINING}
    first_kind, settled_kind = ("conditions" if "conditions" in kinds else "anomalies" for kinds in (at_once, later))
    return Verdict(image, {first.quantity for first, _ in raised if first.image == image}, first_kind, settled_kind)


def delays(found: list[Verdict], before: int, right: str) -> dict[str, object]:
    """Images from the change to the alarm, what raised it, and how often the cause is right."""
    true = [verdict for verdict in found if before < verdict.image < math.inf]
    early = sum(verdict.image <= before for verdict in found)

    def quantile(q: float) -> str:
        value = np.quantile([v.image - before for v in found if v.image > before], q, method="higher")
        return f"{value:.0f}" if math.isfinite(value) else "-"

    def share(hits: int) -> str:
        return f"{hits / len(true):.0%}" if len(true) >= 10 else "-"

    by = {name: sum(name in verdict.quantities for verdict in true) for name in QUANTITIES}
    return {
        "alarms": f"{len(true) / len(found):.0%}",
        "too early": f"{early / len(found):.1%}",
        "median": quantile(0.5),
        "90th percentile": quantile(0.9),
        "first by": ", ".join(f"{name} {share(hits)}" for name, hits in by.items() if hits and len(true) >= 10) or "-",
        "cause right at once": share(sum(verdict.kind == right for verdict in true)),
        "30 images later": share(sum(verdict.settled_kind == right for verdict in true)),
    }


def changes(measured: Measured, streams: int) -> list[dict[str, object]]:
    """Delay after each change of the images, late in a stream and from its first image on."""
    rows = []
    for name in TRAINED:
        reference = REFERENCE[name]
        values = {q: {c: np.array(v) for c, v in measured[name][q].items()} for q in QUANTITIES}
        images = len(values["score"]["none"])
        for before in (0, BEFORE[name]):
            start = reference + before
            for change in list(CHANGES)[1:]:
                found = []
                for seed in range(streams):
                    order = np.random.default_rng(seed).permutation(images)
                    first = {q: values[q]["none"][order[:reference]] for q in QUANTITIES}
                    good = {q: values[q]["none"][order[reference:start]] for q in QUANTITIES}
                    stream = {q: np.concatenate([good[q], values[q][change][order[start:]]]) for q in QUANTITIES}
                    found.append(watch_all(first, stream, MonitorConfig(seed=seed)))
                rows.append(
                    {
                        "images": name,
                        "reference": reference,
                        "good images first": before,
                        "change": change,
                        "changed images": images - start,
                        **{
                            f"median {q}": " -> ".join(f"{np.median(values[q][c]):.3g}" for c in ("none", change))
                            for q in QUANTITIES
                        },
                        **delays(found, before, "conditions"),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def with_defects(good: NDArray[np.int64], defects: int, share: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of good images, each replaced with the probability `share` by one of a defective image, below 0."""
    return np.where(rng.random(len(good)) < share, -1 - rng.integers(defects, size=len(good)), good)


def pick(values: Values, indices: NDArray[np.int64]) -> Floats:
    good, defects = np.array(values["none"]), np.array(values["defects"])
    return np.where(indices >= 0, good[np.maximum(indices, 0)], defects[np.maximum(-1 - indices, 0)])


def more_defects(measured: Measured, streams: int) -> list[dict[str, object]]:
    """Delay after the share of defects has risen from 1 %."""
    rows = []
    for name, reference, before, quantities in (
        *((name, REFERENCE[name], BEFORE[name], QUANTITIES) for name in TRAINED),
        *((name, REFERENCE[name], BEFORE[name], ("score",)) for name in TRAINED),
        ("vehicles", 150, 1000, ("score",)),
        ("vehicles", 1000, 1000, ("score",)),
    ):
        values = measured[name]
        images, defects = len(values["score"]["none"]), len(values["score"]["defects"])
        start, end = reference + before, min(reference + before + 1000, images)
        for expected in (0.0, 0.02):
            for share in SHARES:
                found = []
                for seed in range(streams):
                    rng = np.random.default_rng(seed)
                    order = rng.permutation(images)
                    usual = with_defects(order[reference:start], defects, 0.01, rng)
                    stream = np.concatenate([usual, with_defects(order[start:end], defects, share, rng)])
                    config = MonitorConfig(expected_anomalies=expected, seed=seed)
                    first = {q: pick(values[q], order[:reference]) for q in quantities}
                    found.append(watch_all(first, {q: pick(values[q], stream) for q in quantities}, config))
                rows.append(
                    {
                        "images": name,
                        "watched": "all three" if len(quantities) > 1 else "score",
                        "reference": reference,
                        "images at 1 %": before,
                        "defects": f"{share:.0%}",
                        "images then": end - start,
                        "expected": expected,
                        **delays(found, before, "anomalies"),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def usual_defects(measured: Measured, streams: int) -> list[dict[str, object]]:
    """Alarms over 10,000 images with a constant share of defects."""
    rows = []
    values = measured["vehicles"]["score"]
    images, defects = len(values["none"]), len(values["defects"])
    for reference, reference_share, share, expected in (
        (150, 0.0, 0.02, 0.0),
        (500, 0.0, 0.02, 0.0),
        (500, 0.02, 0.02, 0.0),
        (500, 0.0, 0.05, 0.0),
        (500, 0.0, 0.02, 0.02),
        (500, 0.0, 0.05, 0.05),
    ):
        found = []
        for seed in range(max(1, streams // 4)):
            rng = np.random.default_rng(seed)
            order = rng.permutation(images)
            first = with_defects(order[:reference], defects, reference_share, rng)
            stream = with_defects(order[reference : reference + HORIZON], defects, share, rng)
            config = MonitorConfig(expected_anomalies=expected, seed=seed)
            found.append(watch(pick(values, first), pick(values, stream), config)[0])
        at = [alarm.image for alarm in found if alarm]
        rows.append(
            {
                "reference": reference,
                "defects in the reference": f"{reference_share:.0%}",
                "defects in the stream": f"{share:.0%}",
                "expected": expected,
                "streams": len(found),
                "alarms": f"{len(at) / len(found):.1%}",
                "median image of the alarm": f"{np.median(at):.0f}" if at else "-",
            }
        )
        print(rows[-1], flush=True)
    return rows


def auroc(values: Values) -> float:
    truth = [0] * len(values["none"]) + [1] * len(values["defects"])
    return float(roc_auc_score(truth, values["none"] + values["defects"]))


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--streams", type=int, default=200)
    options = made.parse_args()
    measured = all_measured(options.data, options.output / "drift-scores.json")
    tables = {
        "Nothing changes, order of the files": file_order(measured),
        "The images change": changes(measured, options.streams),
        "More defects": more_defects(measured, options.streams),
        "Defects as usual": usual_defects(measured, options.streams),
        "Nothing changes": in_control(measured, options.streams),
    }
    ranked = ", ".join(f"{name} {auroc(values['score']):.3f}" for name, values in measured.items())
    text = "\n".join(f"## {title}\n\n{table(rows)}" for title, rows in tables.items())
    write(options.output, "drift", tables, f"Image AUROC of the defects: {ranked}\n\n{text}")


if __name__ == "__main__":
    main()

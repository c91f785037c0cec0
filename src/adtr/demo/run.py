"""The demo from photograph to page."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

from adtr.demo.baseline import MeanImageBaseline
from adtr.demo.page import MetricRow, Panel, write_index
from adtr.demo.textures import build_demo_dataset
from adtr.detector import AnomalyDetector
from adtr.evaluation import Evaluated, add_to_metrics
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.progress import Progress
from adtr.report.sinks import save_panel

PAGE_METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro"}


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """What the demo measured and where its page lies."""

    metrics: Metrics
    baseline: Metrics
    page: Path


def run_demo(output: Path, *, texture: str, seed: int, progress: Progress) -> DemoResult:
    """Make the data, train, evaluate against the mean image, write panels and `index.html`.

    Args:
        output: an existing folder without `data`, `model`, `panels` and `samples` in it.
        texture: one of `adtr.demo.TEXTURES`.
        seed: of patches, defects and training.
        progress: is told of the stages.

    Raises:
        AdtrError: scikit-image is not installed, or the folder cannot be written.
    """
    data = output / "data"
    build_demo_dataset(data, texture=texture, seed=seed, patch=64)
    detector = AnomalyDetector(seed=seed).fit(data, progress=progress)
    detector.save(output / "model")

    good = sorted((data / "train" / "good").iterdir())
    baseline = MeanImageBaseline().fit(good)
    ours, theirs = MetricsAccumulator(), MetricsAccumulator()
    panels: list[Panel] = []
    false_alarms = 0
    for item in detector.evaluate_each(data, keep_images=True, progress=progress):
        add_to_metrics(ours, item)
        path = item.sample.path
        false_alarms += item.prediction.is_anomalous and not item.sample.is_anomalous
        theirs.add(baseline.score(path), baseline.score_map(path), item.truth(), defect_type=item.sample.defect_type)
        picture = save_panel(item, output / "panels" / item.sample.defect_type / f"{path.stem}.jpg")
        caption = f"{path.name}: score {item.prediction.score:.4g}, threshold {item.prediction.thresholds.image:.4g}"
        panels.append(
            Panel(
                file=picture.relative_to(output).as_posix(),
                kind=item.sample.defect_type,
                caption=caption,
                quality=_quality(item),
            )
        )
    metrics, baseline_metrics = ours.compute(), theirs.compute()

    (output / "samples").mkdir()
    samples = [shutil.copy(path, output / "samples" / path.name) for path in good[:6]]
    training, thresholds = detector.metadata_["training"], detector.thresholds_
    page = write_index(
        output,
        title=f"adtr on {texture}",
        lead="A transformer has learned to reconstruct the features of good patches of a photograph. Where the "
        "reconstruction of a new patch fails, or where it is far from all good ones that are remembered, the patch is "
        "anomalous. It has seen no defect before.",
        summary={
            "learned from": f"{training['images']} good images",
            "training": f"{training['total_seconds']:.0f} s on {training['device']}, seed {seed}",
            "tested on": f"{metrics.images} images, {metrics.anomalous} with a defect",
            "anomalous": f"above {thresholds.image:.4g}, set by {thresholds.images} more good images",
            "false alarms": f"{false_alarms} of {metrics.images - metrics.anomalous} good images; "
            f"at most {thresholds.promised_rate:.1%} promised, since good and held-out patches are drawn by one rule",
        },
        metrics=_rows(metrics, baseline_metrics),
        samples=[Path(sample).relative_to(output).as_posix() for sample in samples],
        panels=sorted(panels, key=lambda panel: (panel.kind == "good", panel.kind)),
        commands=[
            ("Learn from a folder of your own good images", "adtr fit GOOD_IMAGES --output MODEL"),
            ("Score new images, with heat maps", "adtr predict MODEL IMAGES --overlays HEATMAPS"),
            ("Measure on labelled images", "adtr evaluate MODEL DATA --panels PANELS"),
        ],
    )
    return DemoResult(metrics=metrics, baseline=baseline_metrics, page=page)


def _rows(ours: Metrics, theirs: Metrics) -> list[MetricRow]:
    rows = []
    for kind in ["all defects", *ours.per_type]:
        mine, other = (m if kind == "all defects" else m.per_type[kind] for m in (ours, theirs))
        values = [{name: _number(getattr(m, key)) for name, key in PAGE_METRICS.items()} for m in (mine, other)]
        rows.append(MetricRow(name=kind, detector=values[0], baseline=values[1]))
    return rows


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _quality(item: Evaluated) -> float:
    """How well one image was judged: its pixel AUROC, or for a good image how low it scored."""
    if not item.sample.is_anomalous:
        return -item.prediction.score
    alone = MetricsAccumulator()
    add_to_metrics(alone, item)
    pixels = alone.compute().pixel_auroc
    return 0.0 if pixels is None else pixels

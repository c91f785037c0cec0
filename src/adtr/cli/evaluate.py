"""`adtr evaluate`."""

from __future__ import annotations

import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adtr.cli.options import (
    check_output_file,
    device_option,
    false_alarm_rate_option,
    on_error_option,
    progress_on_stderr,
    quiet_option,
    report_skipped,
    say,
    to_json,
    track_option,
    weights_option,
)
from adtr.errors import ConfigError, OnError

if TYPE_CHECKING:
    from adtr.data.folder import Sample
    from adtr.metrics import Metrics, Scores

COLUMNS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="The numbers as JSON.")
@click.option("--panels", type=click.Path(path_type=Path), metavar="DIR", help="A picture of every test image.")
@false_alarm_rate_option
@weights_option
@device_option
@on_error_option
@track_option
@quiet_option
def command(
    model: Path,
    data: Path,
    output: Path | None,
    panels: Path | None,
    false_alarm_rate: float | None,
    backbone_weights: str | None,
    device: str,
    on_error: OnError,
    track: str | None,
    quiet: bool,
) -> None:
    """Measure a model on the test images of DATA.

    DATA holds test/<type>/ and ground_truth/<type>/ (MVTec's layout), or good/ beside defect folders. Images that the
    model learned from are left out.
    """
    from adtr.data.folder import open_dataset
    from adtr.files import check_writable, replace_file
    from adtr.report.sinks import output_paths, save_panel
    from adtr.store import read_metadata
    from adtr.tracking import tracked

    for name, package in {"sklearn": "scikit-learn", "rich": "rich"}.items():
        if find_spec(name) is None:  # where exported files run
            raise ConfigError(f"evaluating needs {package}: pip install {package}")
    read_metadata(model)
    dataset = open_dataset(data, reserve=False)
    if output is not None:
        check_output_file(output)
    panel_paths: dict[Path, Path] = {}
    if panels is not None:
        images = [sample.path for sample in dataset.test]
        names = [Path(sample.defect_type, sample.path.name) for sample in dataset.test]
        panel_paths = dict(zip(images, output_paths(images, names, panels, ".jpg"), strict=True))
        check_writable(panels)

    from adtr.decisions import decide, trade_off
    from adtr.detector import AnomalyDetector
    from adtr.evaluation import add_to_metrics, labelled_scores
    from adtr.metrics import MetricsAccumulator

    detector = AnomalyDetector.load(model, device=device, backbone_weights=backbone_weights)
    detector.set_rates(false_alarm_rate)
    accumulator = MetricsAccumulator()
    judged: list[tuple[Sample, float]] = []
    started = time.perf_counter()
    with tracked(track, f"evaluate {model.name}") as tracker:
        keep_images = panels is not None
        with (
            progress_on_stderr(quiet) as progress,
            closing(
                detector.evaluate_each(dataset, on_error=on_error, keep_images=keep_images, progress=progress)
            ) as stream,
        ):
            for item in stream:
                add_to_metrics(accumulator, item)
                judged.append((item.sample, item.prediction.score))
                if panels is not None:
                    panel = save_panel(item, panel_paths[item.sample.path])
                    if tracker is not None:
                        tracker.log_image(f"panels/{panel.relative_to(panels).as_posix()}", panel)
        metrics = accumulator.compute()
        report_skipped(detector.skipped_)
        labelled = labelled_scores(judged)
        thresholds = detector.thresholds_
        decisions = decide(thresholds.image, thresholds.promised_rate, *labelled)
        report = {
            **metrics.to_dict(),
            "skipped": len(detector.skipped_),
            **decisions.to_dict(),
            "trade_off": [point.to_dict() for point in trade_off(detector.calibration_, *labelled)],
            "seconds": time.perf_counter() - started,
            "model": str(model),
            "data": str(data),
        }
        if tracker is not None:
            tracker.log_config({"model": str(model), "data": str(data), **detector.fitted_config_.flat()})
            tracker.log_results(report)
            say(f"told {tracker.where}", quiet=quiet)
    if output is not None:
        replace_file(output, to_json(report))
    print_table(metrics)
    click.echo(
        f"at the threshold {decisions.threshold:.4g} (promised rate {decisions.promised_rate:.1%}):\n"
        f"false alarms   {decisions.false_alarms.describe()}\n"
        f"missed defects {decisions.missed.describe()}"
    )


def print_table(metrics: Metrics) -> None:
    """The metrics, overall and per type, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", overflow="fold")
    for name in ("images", *COLUMNS):
        table.add_column(name.replace("_", "\n", 1), justify="right")
    for name, scores in metrics.per_type.items():
        table.add_row(name, *_cells(scores))
    table.add_section()
    table.add_row("all", *_cells(metrics), style="bold")
    Console(markup=False, emoji=False).print(table)


def _cells(scores: Scores) -> list[str]:
    values = [getattr(scores, name) for name in COLUMNS]
    return [str(scores.images), *("-" if value is None else f"{value:.4f}" for value in values)]

"""`adtr report`."""

from __future__ import annotations

from pathlib import Path

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
    weights_option,
)
from adtr.errors import ConfigError, OnError


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--output",
    "-o",
    default="report.html",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The report, one HTML file.",
)
@false_alarm_rate_option
@click.option(
    "--panels",
    default=12,
    show_default=True,
    type=click.IntRange(0, 1000),
    metavar="N",
    help="False alarms, and misses, that are shown at most; 0: no images.",
)
@weights_option
@device_option
@on_error_option
@quiet_option
def command(
    model: Path,
    data: Path,
    output: Path,
    false_alarm_rate: float | None,
    panels: int,
    backbone_weights: str | None,
    device: str,
    on_error: OnError,
    quiet: bool,
) -> None:
    """Test a model on DATA, and write one file that a person can read.

    False alarms and misses with intervals, charts, and the worst mistakes as pictures. DATA is laid out as for
    `adtr evaluate`, and the numbers are the same. The file needs no network and no script, and prints well.
    """
    from adtr.data.folder import open_dataset
    from adtr.report.charts import require_matplotlib
    from adtr.store import read_metadata

    if output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--output must end in .html, not {output.name!r}")
    read_metadata(model)
    dataset = open_dataset(data, reserve=False)
    check_output_file(output)
    require_matplotlib()

    from adtr.detector import AnomalyDetector
    from adtr.report import write_report
    from adtr.report.verdict import summary

    detector = AnomalyDetector.load(model, device=device, backbone_weights=backbone_weights)
    detector.set_rates(false_alarm_rate)
    with progress_on_stderr(quiet) as progress:
        findings = write_report(
            detector, dataset, output, model=model, panels=panels, on_error=on_error, progress=progress
        )
    report_skipped(findings.skipped)
    click.echo(summary(findings))
    say(f"wrote {output}", quiet=quiet)

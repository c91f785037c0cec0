"""`adtr monitor`."""

from __future__ import annotations

import contextlib
import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adtr.cli.options import check_output_file, say, to_json
from adtr.errors import AdtrError, DataError, ModelError

if TYPE_CHECKING:
    from adtr.monitoring import Alarm, DriftMonitor, MonitorConfig

ALARM = 3
"""The exit code, apart from success, bugs and mistakes."""


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="Its held-out good images are the reference.",
)
@click.option(
    "--reference",
    default=100,
    show_default=True,
    type=click.IntRange(min=10),
    metavar="N",
    help="Without --model the first N rows are the reference.",
)
@click.option(
    "--false-alarm-rate",
    default=0.01,
    show_default=True,
    metavar="X",
    help="Greatest probability of an alarm within --horizon images while nothing changes.",
)
@click.option("--horizon", default=10_000, show_default=True, metavar="N", help="Images that the rate is stated for.")
@click.option(
    "--expected-anomalies",
    default=0.0,
    show_default=True,
    metavar="X",
    help="Share of anomalous images that is no reason for an alarm; up to 0.1.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Breaks ties between scores.")
@click.option(
    "--state",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Go on where the last call ended; is made where absent.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), metavar="FILE", help="A report as JSON.")
@click.option("--quiet", "-q", is_flag=True, help="No summary on stderr.")
def command(
    scores: Path,
    model: Path | None,
    reference: int,
    false_alarm_rate: float,
    horizon: int,
    expected_anomalies: float,
    seed: int,
    state: Path | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Watch the scores of `adtr predict` for a change, and say what changed.

    SCORES is a .jsonl or .csv file, or - for JSON lines on stdin, which are taken as they come.

    The exit code is 0 while the scores look like the reference and 3 after an alarm. The alarm is printed at once, and
    again when 30 more images have settled what it looks like; what follows is not read.
    """
    from adtr.monitoring import DriftMonitor, MonitorConfig

    config = MonitorConfig(
        false_alarm_rate=false_alarm_rate, horizon=horizon, expected_anomalies=expected_anomalies, seed=seed
    )
    for file in (state, output):
        if file is not None:
            check_output_file(file)
    with open_rows(scores) as rows:
        stream = read_scores(rows, str(scores))
        if state is not None and state.exists():
            monitor = resume(state, config)
        elif model is not None:
            monitor = DriftMonitor(held_out_scores(model), config)
        else:
            first = list(islice(stream, reference))
            if len(first) < reference:
                raise DataError(
                    f"{scores} has {len(first)} rows, but --reference takes the first {reference}; give a smaller "
                    "--reference or a --model"
                )
            monitor = DriftMonitor(first, config)
        told: Alarm | None = None
        try:
            for score in stream:
                if monitor.update(score) and told is None and (told := monitor.alarm) is not None:
                    click.echo(told.describe())
                if monitor.settled:
                    break
        except KeyboardInterrupt:  # how an endless stream ends
            if state is not None:
                monitor.save(state)
            raise
    if state is not None:
        monitor.save(state)
    if output is not None:
        write_report(output, monitor)
    if monitor.alarm is None:
        say(
            f"in control: {monitor.images} images against {monitor.reference_images} of the reference; evidence of a "
            f"change at {monitor.statistic / config.threshold:.2%} of what raises an alarm",
            quiet=quiet,
        )
        return
    if monitor.alarm != told:
        click.echo(monitor.alarm.describe())
    click.get_current_context().exit(ALARM)


def held_out_scores(model: Path) -> list[float]:
    """Scores of the good images that a model held out to set its thresholds.

    Raises:
        ModelError: the model is none, or has no such scores.
    """
    from adtr.calibration import ROUNDING
    from adtr.store import read_metadata

    _, calibration, _ = read_metadata(model)
    scores: tuple[float, ...] = getattr(calibration, "image_scores", ())
    if not scores or getattr(calibration, "folds", 0):
        reason = "its networks of the folds scored them" if scores else "it was made before they were kept"
        raise ModelError(f"{model} has no scores of held-out images ({reason}); leave --model out for --reference")
    return [score / ROUNDING for score in scores]  # kept with the thresholds' margin


def resume(state: Path, config: MonitorConfig) -> DriftMonitor:
    """The monitor of an earlier call.

    Raises:
        AdtrError: it was made with other options.
    """
    from adtr.monitoring import DriftMonitor

    monitor = DriftMonitor.load(state)
    if monitor.config != config:
        made = ", ".join(f"{name} {value}" for name, value in asdict(monitor.config).items())
        raise AdtrError(f"{state} was made with {made}; give the same options, or remove it to begin anew")
    return monitor


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    """Rows with their line numbers, as they come.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object.
    """
    if str(path) == "-":
        yield _json_rows(click.get_text_stream("stdin", "utf-8"), "stdin")
        return
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with file:
        if path.suffix == ".csv":
            reader = csv.DictReader(file)
            yield ((reader.line_num, row) for row in reader)
        else:
            yield _json_rows(file, str(path))


def _json_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{name}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{name}, line {number}: a row of `adtr predict` is needed, not {line.strip()[:40]}")
            yield number, row


def read_scores(rows: Iterable[tuple[int, dict[str, Any]]], name: str) -> Iterator[float]:
    """The score of each row.

    Raises:
        DataError: a row without a finite number as its score, with its line.
    """
    for number, row in rows:
        value = row.get("score")
        try:
            score = float("nan" if value is None or isinstance(value, bool) else value)
        except (TypeError, ValueError):
            score = math.nan
        if not math.isfinite(score):
            what = f"its score is {value!r}" if "score" in row else "it has no score"
            raise DataError(f"{name}, line {number}: {what}; a finite number is needed, as `adtr predict` writes it")
        yield score


def write_report(output: Path, monitor: DriftMonitor) -> None:
    """The state of affairs as JSON."""
    from adtr.files import replace_file

    report = {
        "images": monitor.images,
        "reference_images": monitor.reference_images,
        **asdict(monitor.config),
        "statistic": monitor.statistic,
        "threshold": monitor.config.threshold,
        "alarm": None if monitor.alarm is None else {**asdict(monitor.alarm), "text": monitor.alarm.describe()},
    }
    replace_file(output, to_json(report))

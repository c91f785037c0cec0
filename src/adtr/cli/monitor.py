"""`adtr monitor`."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from adtr.cli.options import check_output_file, say, to_json
from adtr.errors import AdtrError, DataError, ModelError
from adtr.files import parse_json, read_bounded, replace_file

if TYPE_CHECKING:
    from adtr.monitoring import Alarm, DriftMonitor, MonitorConfig

ALARM = 3
"""The exit code, apart from success, bugs and mistakes."""
FIELDS = ("score", "brightness", "sharpness")
"""Watched where the rows have them."""
MAX_LINE, MAX_STATE = 64 << 20, 1 << 30
"""Characters of a row, and bytes of the state."""


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="Its held-out good images are the reference of the score.",
)
@click.option(
    "--reference",
    default=100,
    show_default=True,
    type=click.IntRange(min=10),
    metavar="N",
    help="The first N rows are the reference of what has none from a model.",
)
@click.option("--field", "fields", multiple=True, metavar="NAME", help="What to watch; can be given several times.")
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
    fields: tuple[str, ...],
    false_alarm_rate: float,
    horizon: int,
    expected_anomalies: float,
    seed: int,
    state: Path | None,
    output: Path | None,
    quiet: bool,
) -> None:
    """Watch the scores of `adtr predict` for a change, and say what changed.

    SCORES is a .jsonl or .csv file, or - for JSON lines on stdin, which are taken as they come. Score, brightness and
    sharpness are watched where the rows have them, and share the false-alarm rate. Images are counted after the
    reference.

    The exit code is 0 while all is as in the reference and 3 after an alarm. Alarms are printed at once, and again when
    30 more images have settled what they mean; what follows is not read.
    """
    from adtr.monitoring import MonitorConfig

    config = MonitorConfig(
        false_alarm_rate=false_alarm_rate, horizon=horizon, expected_anomalies=expected_anomalies, seed=seed
    )
    for file in (state, output):
        if file is not None:
            check_output_file(file)
    told: dict[str, Alarm] = {}
    with open_rows(scores) as rows:
        first = None
        if state is not None and state.exists():
            watch = Watch.load(state, config, fields)
        else:
            first = next(rows, None)
            if first is None:
                raise DataError(f"{scores} has no rows")
            present = tuple(name for name in FIELDS if name in first[1])
            watch = Watch(config, reference, fields or present or ("score",))
            if model is not None:
                watch.begin("score", held_out_scores(model))
        try:
            for values in read_values(chain([first] if first else [], rows), watch.fields, str(scores)):
                watch.update(values)
                for name, alarm in watch.alarms().items():
                    if name not in told:
                        told[name] = alarm
                        click.echo(alarm.describe())
                if watch.settled():
                    break
        except KeyboardInterrupt:  # how an endless stream ends
            if state is not None:
                watch.save(state)
            raise
    if not watch.monitors:
        raise DataError(
            f"{scores} has {watch.images} rows, but --reference takes the first {reference}; give a smaller "
            "--reference or a --model"
        )
    if state is not None:
        watch.save(state)
    if output is not None:
        replace_file(output, to_json(watch.report()))
    alarms = watch.alarms()
    if not alarms:
        say(f"in control after {watch.images} images; {watch.describe()}", quiet=quiet)
        return
    for name, alarm in alarms.items():
        if alarm != told.get(name):
            click.echo(alarm.describe())
    click.get_current_context().exit(ALARM)


@dataclass
class Watch:
    """A monitor for each field, and the rows that gather for the reference of those that have none yet."""

    config: MonitorConfig
    """With the false-alarm rate of all fields together."""
    reference: int
    fields: tuple[str, ...]
    monitors: dict[str, DriftMonitor] = field(default_factory=dict)
    waiting: dict[str, list[float]] = field(default_factory=dict)
    images: int = 0

    def begin(self, name: str, reference: Iterable[float]) -> None:
        """Watch a field against a reference."""
        from adtr.monitoring import DriftMonitor

        self.monitors[name] = DriftMonitor(reference, self.share(name))

    def share(self, name: str) -> MonitorConfig:
        """What is promised of a field."""
        return replace(self.config, false_alarm_rate=self.config.false_alarm_rate / len(self.fields), quantity=name)

    def update(self, values: dict[str, float]) -> None:
        """Take the next row."""
        self.images += 1
        for name, value in values.items():
            if name in self.monitors:
                self.monitors[name].update(value)
                continue
            gathered = self.waiting.setdefault(name, [])
            gathered.append(value)
            if len(gathered) == self.reference:
                self.begin(name, self.waiting.pop(name))

    def alarms(self) -> dict[str, Alarm]:
        """Those that were raised, by field."""
        return {name: monitor.alarm for name, monitor in self.monitors.items() if monitor.alarm is not None}

    def settled(self) -> bool:
        """Whether an alarm was raised, and what follows would change none."""
        raised = [monitor for monitor in self.monitors.values() if monitor.alarm is not None]
        return bool(raised) and all(monitor.settled for monitor in raised)

    def describe(self) -> str:
        """How far each field is from an alarm."""
        shares = [f"{n} at {m.statistic / m.config.threshold:.2%} of an alarm" for n, m in self.monitors.items()]
        return ", ".join([*shares, *(f"{name} still gathers its reference" for name in self.waiting)])

    def report(self) -> dict[str, Any]:
        """The state of affairs, JSON values."""
        alarms = self.alarms()
        kinds = {alarm.kind for alarm in alarms.values()}
        return {
            "images": self.images,
            "cause": "conditions" if "conditions" in kinds else "anomalies" if kinds else None,
            **{name: value for name, value in asdict(self.config).items() if name != "quantity"},
            "fields": {
                name: {
                    "images": monitor.images,
                    "reference_images": monitor.reference_images,
                    "statistic": monitor.statistic,
                    "threshold": monitor.config.threshold,
                    "alarm": {**asdict(alarms[name]), "text": alarms[name].describe()} if name in alarms else None,
                }
                for name, monitor in self.monitors.items()
            },
        }

    def save(self, path: Path) -> None:
        """Write everything, for `load`."""
        values = {
            "config": asdict(self.config),
            "reference": self.reference,
            "fields": self.fields,
            "monitors": {name: monitor.to_dict() for name, monitor in self.monitors.items()},
            "waiting": self.waiting,
            "images": self.images,
        }
        replace_file(path, json.dumps(values) + "\n")

    @classmethod
    def load(cls, path: Path, config: MonitorConfig, fields: tuple[str, ...]) -> Watch:
        """What an earlier call saved.

        Raises:
            AdtrError: it cannot be read, or was made with other options.
        """
        from adtr.monitoring import DriftMonitor

        try:
            values = parse_json(read_bounded(path, MAX_STATE))
            made = dict(values["config"])
            watch = cls(
                config, int(values["reference"]), tuple(map(str, values["fields"])), images=int(values["images"])
            )
            watch.monitors = {name: DriftMonitor.from_dict(state) for name, state in values["monitors"].items()}
            watch.waiting = {name: list(map(float, gathered)) for name, gathered in values["waiting"].items()}
        except OSError as error:
            raise AdtrError(f"cannot read {path}: {error.strerror}") from error
        except AdtrError as error:
            raise AdtrError(f"{path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise AdtrError(f"{path} is not the state of a monitor; remove it to begin anew") from error
        if made != asdict(config) or (fields and fields != watch.fields):
            options = ", ".join(f"{name} {value}" for name, value in made.items() if name != "quantity")
            raise AdtrError(
                f"{path} was made with {options[:300]}, watching {', '.join(watch.fields)[:100]}; give the same "
                "options, or remove it to begin anew"
            )
        if any(monitor.config != watch.share(name) for name, monitor in watch.monitors.items()):
            raise AdtrError(f"{path} is not the state of a monitor; remove it to begin anew")
        return watch


def held_out_scores(model: Path) -> list[float]:
    """Scores of the good images that a model held out to set its thresholds.

    Raises:
        ModelError: it is no model, or held none out.
    """
    from adtr.calibration import ROUNDING
    from adtr.store import read_metadata

    _, calibration, _ = read_metadata(model)
    if calibration.folds:
        raise ModelError(
            f"{model} held no images out: other networks, those of the folds, scored them; leave --model out, so that "
            "the first rows are the reference"
        )
    return [score / ROUNDING for score in calibration.image_scores]  # kept with the thresholds' margin


@contextlib.contextmanager
def open_rows(path: Path) -> Iterator[Iterator[tuple[int, dict[str, Any]]]]:
    """Rows with their line numbers, as they come.

    Raises:
        DataError: the file cannot be read, or a line is no JSON object or no text.
    """
    if str(path) == "-":
        yield _json_rows(_lines(sys.stdin, "stdin"), "stdin")
        return
    try:
        file = path.open(encoding="utf-8", newline="")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    with file:
        if path.suffix == ".csv":
            yield _csv_rows(_lines(file, str(path)), str(path))
        else:
            yield _json_rows(_lines(file, str(path)), str(path))


def _lines(file: TextIO, name: str) -> Iterator[str]:
    """The lines of a file, none of which may fill the memory."""
    number = 0
    try:
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise DataError(f"{name}, line {number}: it is longer than {MAX_LINE} characters")
            yield line
    except UnicodeDecodeError as error:
        raise DataError(f"{name}, after line {number}: no UTF-8 text") from error


def _csv_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(lines)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: no CSV ({error})") from error


def _json_rows(lines: Iterable[str], name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError as error:
                raise DataError(f"{name}, line {number}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{name}, line {number}: a row of `adtr predict` is needed, not {line.strip()[:40]}")
            yield number, row


def read_values(
    rows: Iterable[tuple[int, dict[str, Any]]], fields: tuple[str, ...], name: str
) -> Iterator[dict[str, float]]:
    """What is watched, of each row.

    Raises:
        DataError: a row without a finite number in one of the fields, with its line.
    """
    for number, row in rows:
        values = {}
        for key in fields:
            value = row.get(key)
            try:
                values[key] = float("nan" if value is None or isinstance(value, bool) else value)
            except (TypeError, ValueError, OverflowError):
                values[key] = math.nan
            if not math.isfinite(values[key]):
                what = f"its {key} is {repr(value)[:40]}" if key in row else f"it has no {key}"
                raise DataError(
                    f"{name}, line {number}: {what}; a finite number is needed, as `adtr predict` writes it"
                )
        yield values

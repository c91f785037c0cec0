"""`adtr watch`."""

from __future__ import annotations

import json
import signal
from collections import Counter
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Literal

import click

from adtr.cli.options import (
    device_option,
    false_alarm_rate_option,
    hold_output,
    quiet_option,
    say,
    unsure_rate_option,
    weights_option,
)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", "-m", required=True, type=click.Path(path_type=Path), metavar="MODEL", help="Model folder.")
@click.option(
    "--output", "-o", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Receives results.jsonl."
)
@click.option(
    "--sort",
    type=click.Choice(["copy", "link"]),
    help="Put images into good/, unsure/ and anomalous/ of the output, as copies or symbolic links.",
)
@click.option(
    "--interval",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0.05, 3600),
    metavar="SECONDS",
    help="Between two looks; an image that did not change from one to the next is complete.",
)
@false_alarm_rate_option
@unsure_rate_option
@weights_option
@device_option
@quiet_option
def command(
    folder: Path,
    model: Path,
    output: Path,
    sort: Literal["copy", "link"] | None,
    interval: float,
    false_alarm_rate: float | None,
    unsure_rate: float | None,
    backbone_weights: str | None,
    device: str,
    quiet: bool,
) -> None:
    """Score what lands in a folder, each image once, until told to stop.

    Appends a JSON line for each image to results.jsonl, which is also the memory: after a restart the watch goes on
    where it was. A model that is replaced on disk is loaded anew. SIGTERM and Ctrl-C finish the image in work.
    """
    from adtr.watching import FolderWatch, check_apart

    check_apart(folder, output)
    click.get_current_context().with_resource(hold_output(output))
    watch = FolderWatch(folder, output, sort=sort)

    from adtr.detector import AnomalyDetector
    from adtr.serve.models import Models

    def load(path: Path) -> AnomalyDetector:
        detector = AnomalyDetector.load(path, device=device, backbone_weights=backbone_weights)
        detector.set_rates(false_alarm_rate, unsure_rate)
        return detector

    models = Models({"model": model}, load)
    # Not an Event: a signal whose handler sets one may interrupt its `wait` where both want the same lock.
    told: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told.put(number))
    say(f"watching {folder}; results go to {output / 'results.jsonl'}", quiet=quiet)
    counts: Counter[str] = Counter()
    while told.empty():
        models.look()
        loaded = models.get("model")
        assert loaded is not None
        for row in watch.look(loaded.detector, stop=lambda: not told.empty()):
            counts[row.get("verdict", "unreadable")] += 1
            if not quiet:
                click.echo(json.dumps(row, ensure_ascii=False))
        with suppress(Empty):
            told.put(told.get(timeout=interval))
    found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
    say(f"stopped after {counts.total()} images{f': {found}' if found else ''}", quiet=quiet)

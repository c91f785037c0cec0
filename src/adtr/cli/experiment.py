"""`adtr experiment`."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adtr.cli.options import (
    SectionedCommand,
    config_option,
    configuration_flags,
    device_option,
    hold_output,
    progress_on_stderr,
    quiet_option,
    resolve,
    say,
    track_option,
)
from adtr.errors import AdtrError, AdtrWarning, ConfigError
from adtr.experiments.plans import PLANS, Plan

if TYPE_CHECKING:
    from adtr.experiments.records import Record

FIGURES = "figures"
EXPERIMENTS = {**{plan.name: plan.help for plan in PLANS.values()}, FIGURES: "Figures 3 to 5 and A1 to A25"}


class ExperimentCommand(SectionedCommand):
    """A command whose help ends with what may be asked for."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The experiments."""
        with formatter.section("Experiments"):
            formatter.write_dl(list(EXPERIMENTS.items()))


@click.command(cls=ExperimentCommand)
@click.argument("name", metavar="NAME", type=click.Choice(list(EXPERIMENTS)))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Receives it all.")
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    metavar="ROOT",
    help="A folder of categories or one category, in MVTec AD's layout; or CIFAR-10.  "
    "[default: mvtec or cifar10 in the folder that ADTR_DATA names]",
)
@click.option(
    "--cifar", type=click.Path(path_type=Path, exists=True), metavar="ROOT", help="figures: CIFAR-10 as well."
)
@click.option("--categories", metavar="NAME,...", help="Only these categories or classes.  [default: all]")
@click.option("--seeds", default="0", show_default=True, metavar="N,...", help="A run for each.")
@click.option("--preset", metavar="NAME", help="A named configuration.  [default: the paper's]")
@config_option
@click.option(
    "--external",
    type=click.Path(path_type=Path, exists=True),
    metavar="DIR|FILE.parquet",
    help="cifar10: the irrelevant data set that ADTR+ learns from.",
)
@click.option("--peers", is_flag=True, help="mvtec: anomalib's methods beside adtr's (needs anomalib).")
@click.option(
    "--backbone-weights",
    "weights",
    multiple=True,
    metavar="[NAME=]FILE",
    help="Weights of the backbone, or of the named one; may be given several times; 'random' for none.",
)
@click.option(
    "--jobs",
    default=0,
    metavar="N",
    type=click.IntRange(0, 256),
    help="Categories at a time, each in a process.  [default: as many as the machine has room for]",
)
@device_option
@track_option
@quiet_option
@configuration_flags
def command(
    name: str,
    output: Path,
    data: Path | None,
    cifar: Path | None,
    categories: str | None,
    seeds: str,
    preset: str | None,
    config_file: Path | None,
    external: Path | None,
    peers: bool,
    weights: tuple[str, ...],
    jobs: int,
    device: str,
    track: str | None,
    quiet: bool,
    **flags: Any,  # noqa: ANN401 - the configuration's fields
) -> None:
    """Run one of the paper's experiments and write a report.

    A run that was cut goes on where it was. The report holds the paper's numbers beside those measured.
    """
    from adtr.experiments.records import FILE, Records
    from adtr.experiments.runs import Request, run
    from adtr.tracking import check_tool, tracked

    if track is not None:
        check_tool(track)
    plan = PLANS["mvtec" if name == FIGURES else name]
    preset, given = resolve(preset, config_file, flags, default=plan.preset)
    if "seed" in given:
        raise ConfigError("an experiment takes --seeds, not a seed")
    plan, given = _backbones(plan, given)
    if peers:
        plan = _with_peers(plan)
    request = Request(
        plan=plan,
        data=_data(plan, data),
        output=output,
        categories=tuple(categories.split(",")) if categories else (),
        seeds=_seeds(seeds),
        preset=preset,
        given=given,
        weights=dict(item.rpartition("=")[::2] for item in weights),
        external=external,
        device=device,
    )
    for planned in plan.rows:
        request.config(planned, request.seeds[0])  # a wrong field fails before any work
    click.get_current_context().with_resource(hold_output(output))
    if name == FIGURES:
        from adtr.experiments.figures import draw

        with progress_on_stderr(quiet) as progress:
            for path in draw(request, cifar, progress=progress):
                say(f"wrote {path}", quiet=quiet)
        return

    from adtr.experiments.report import write_report

    records = Records(output, name)

    def told(record: Record, left: int, seconds: float) -> None:
        say(_line(record) + (f"; {left} left, about {_duration(seconds)}" if left else ""), quiet=quiet)
        about = {key: record[key] for key in ("experiment", "row", "category")}
        try:
            with tracked(track, f"{record['category']} {record['row']} {record['seed']}") as tracker:
                if tracker is not None:
                    tracker.log_config({**about, **record["config"]})
                    tracker.log_results(record["metrics"])
        except AdtrError as error:
            warnings.warn(f"{error}; the work goes on", AdtrWarning, stacklevel=1)

    reasons: dict[str, str] = {}
    try:
        with progress_on_stderr(quiet) as progress:
            reasons = run(request, records, jobs=jobs, progress=progress, told=told)
    finally:
        if records.records:
            write_report(plan, records.records, output, reasons)
    for row, reason in reasons.items():
        say(f"not run: {row}: {reason}", quiet=quiet)
    say(f"{output / FILE}, {output / 'report.md'} and {output / 'report.html'} hold the results", quiet=quiet)


def _backbones(plan: Plan, given: dict[str, Any]) -> tuple[Plan, dict[str, Any]]:
    """Several backbones are the rows of the experiment that compares them."""
    names = str(given.get("backbone", "")).split(",")
    compares = "backbone" in plan.rows[0].changes
    if names == [""] or (len(names) == 1 and not compares):
        return plan, given
    return plan.with_backbones(names), {key: value for key, value in given.items() if key != "backbone"}


def _with_peers(plan: Plan) -> Plan:
    from adtr.experiments.peers import PEERS
    from adtr.experiments.plans import Row

    if plan.name != "mvtec":
        raise AdtrError("--peers belongs to the experiment mvtec")
    return replace(plan, rows=(*plan.rows, *(Row(name=name, peer=name) for name in PEERS)))


def _data(plan: Plan, data: Path | None) -> Path:
    if data is None and (root := os.environ.get("ADTR_DATA")):
        data = Path(root) / plan.data
    if data is None:
        raise AdtrError("give the data set with --data ROOT, or let ADTR_DATA name the folder that holds it")
    return data


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ConfigError(f"--seeds takes whole numbers such as 0,1,2, not {text!r}") from error


def _line(record: Record) -> str:
    """What a run measured."""
    values = {"image": record["metrics"]["image_auroc"], "pixel": record["metrics"]["pixel_auroc"]}
    numbers = ", ".join(f"{name} AUROC {value:.4f}" for name, value in values.items() if value is not None)
    return f"{record['category']} seed {record['seed']} {record['row']}: {numbers} in {_duration(record['seconds'])}"


def _duration(seconds: float) -> str:
    minutes, hours = round(seconds / 60), seconds / 3600
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 100 else f"{hours:.1f} h"

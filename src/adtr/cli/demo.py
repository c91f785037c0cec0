"""`adtr demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adtr.cli.options import progress_on_stderr, quiet_option, say
from adtr.demo import TEXTURES

if TYPE_CHECKING:
    from adtr.metrics import Metrics

PARTS = {"data", "index.html", "model", "panels", "samples"}
SHOWN_METRICS = {"image AUROC": "image_auroc", "pixel AUROC": "pixel_auroc", "AUPRO": "aupro"}


@click.command()
@click.option(
    "--output",
    "-o",
    default="demo-output",
    show_default=True,
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Receives data, model, panels, samples and index.html; an earlier demo there is replaced.",
)
@click.option("--texture", type=click.Choice(TEXTURES), default=TEXTURES[0], show_default=True, help="What to inspect.")
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(0, 2**31 - 1),
    metavar="N",
    help="Of patches, defects and training.",
)
@quiet_option
def command(output: Path, texture: str, seed: int, quiet: bool) -> None:
    """Train and judge a detector on real textures with planted defects.

    Good patches of a photograph train the detector; patches of another part of it, half of them with defects drawn on
    them, test it. Shows metrics beside a trivial baseline's and writes panels and a page.
    """
    from adtr.files import check_disposable, replace_folder

    started = time.perf_counter()
    check_disposable(output, "an earlier demo", needs=PARTS)
    with replace_folder(output) as draft:
        from adtr.demo.run import run_demo

        with progress_on_stderr(quiet) as progress:
            result = run_demo(draft, texture=texture, seed=seed, progress=progress)
    _print_comparison(result.metrics, result.baseline)
    say(f"done in {time.perf_counter() - started:.0f} s; open {output / result.page.name}", quiet=quiet)


def _print_comparison(ours: Metrics, theirs: Metrics) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in SHOWN_METRICS:
        table.add_column(f"{name}\nadtr", justify="right")
        table.add_column("\nmean image", justify="right", style="dim")
    for kind in [*ours.per_type, "all"]:
        mine, other = (metrics if kind == "all" else metrics.per_type[kind] for metrics in (ours, theirs))
        cells = [f"{getattr(m, key):.3f}" for key in SHOWN_METRICS.values() for m in (mine, other)]
        table.add_row(kind, *cells, style="bold" if kind == "all" else None)
    Console().print(table)

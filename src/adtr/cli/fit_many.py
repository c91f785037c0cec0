"""`adtr fit-many`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adtr.cli.options import (
    SectionedCommand,
    config_option,
    configuration_flags,
    device_option,
    extra_for,
    on_error_option,
    quiet_option,
    resolve,
    say,
    weights_option,
)
from adtr.errors import AdtrError, OnError

if TYPE_CHECKING:
    from adtr.experiments.records import Record


@click.command(cls=SectionedCommand)
@click.argument("root", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Receives it all.")
@click.option("--preset", metavar="NAME", help="A named configuration; `adtr presets` lists them.  [default: quick]")
@config_option
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: processes; ray: tasks on this machine, or on the cluster that RAY_ADDRESS names.",
)
@click.option(
    "--jobs",
    default=0,
    metavar="N",
    type=click.IntRange(0, 100_000),
    help="Products at a time.  [default: as many as there is room for]",
)
@weights_option
@device_option
@on_error_option
@quiet_option
@configuration_flags
def command(
    root: Path,
    output: Path,
    preset: str | None,
    config_file: Path | None,
    engine: Literal["local", "ray"],
    jobs: int,
    backbone_weights: str | None,
    device: str,
    on_error: OnError,
    quiet: bool,
    **flags: Any,  # noqa: ANN401 - the configuration's fields
) -> None:
    """Learn what good looks like, for each product in a folder of products.

    ROOT holds a folder for each, laid out as `adtr fit` takes it. DIR receives models/PRODUCT, summary.jsonl and
    summary.md. Given again, it fits what failed, what is new, and what has other good images or another configuration.
    """
    from adtr.scaling.products import SUMMARY, Order, fit_many, to_markdown

    preset, overrides = resolve(preset, config_file, flags)
    order = Order(
        root=root,
        output=output,
        preset=preset,
        overrides=overrides,
        backbone_weights=backbone_weights,
        device=device,
        on_error=on_error,
    )

    def told(record: Record, left: int) -> None:
        result = f"not fitted: {record['error']}" if record["error"] else f"fitted in {record['seconds']:.0f} s"
        say(f"{record['product']}: {result}" + (f"; {left} left" if left else ""), quiet=quiet)

    if engine == "ray":
        with extra_for("--engine ray", "ray"):
            import ray  # noqa: F401
    records = fit_many(order, engine=engine, jobs=jobs, told=told)
    click.echo(to_markdown(records), nl=False)
    failed = [record["product"] for record in records if record["error"]]
    if failed:
        raise AdtrError(
            f"{len(failed)} of {len(records)} products have no new model: {', '.join(failed)}; "
            f"{output / SUMMARY} tells why; given again, this command tries them again"
        )

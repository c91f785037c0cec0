"""`adtr audit`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adtr.cli.options import (
    SectionedCommand,
    config_option,
    configuration_flags,
    device_option,
    on_error_option,
    progress_on_stderr,
    quiet_option,
    report_skipped,
    resolve,
    say,
    to_json,
    weights_option,
)
from adtr.errors import OnError

if TYPE_CHECKING:
    from adtr.data.copies import Copies

SHOWN_COPIES = 20


@click.command(cls=SectionedCommand)
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), metavar="DIR", help="Receives audit.json and contact.jpg."
)
@click.option("--top", default=24, show_default=True, type=click.IntRange(1, 1000), help="Images to list and to show.")
@click.option("--preset", metavar="NAME", help="A named configuration; `adtr presets` lists them.  [default: quick]")
@config_option
@weights_option
@device_option
@on_error_option
@quiet_option
@partial(
    configuration_flags,
    sections=("embedding", "comparison"),
    without=("standardize", "memory_size", "memory_weight", "mahalanobis_weight"),
)
def command(
    data: Path,
    output: Path | None,
    top: int,
    preset: str | None,
    config_file: Path | None,
    backbone_weights: str | None,
    device: str,
    on_error: OnError,
    quiet: bool,
    **flags: Any,  # noqa: ANN401 - the configuration's fields
) -> None:
    """Find good images that may not be good, and copies.

    DATA holds good images, as for `adtr fit`; they are listed from the most suspicious one on. Copies are sought among
    the test images too: one picture in training and test, or under two labels, spoils what `adtr evaluate` says.
    """
    from adtr.data.folder import open_dataset
    from adtr.files import check_writable, replace_file

    preset, overrides = resolve(preset, config_file, flags)
    dataset = open_dataset(data)
    if output is not None:
        check_writable(output)

    from adtr.learning.audit import audit
    from adtr.report.sinks import save_contact_sheet

    with progress_on_stderr(quiet) as progress:
        found = audit(
            dataset,
            preset=preset,
            device=device,
            backbone_weights=backbone_weights,
            on_error=on_error,
            progress=progress,
            **overrides,
        )
    report_skipped(found.skipped)
    if output is not None:
        save_contact_sheet(found, output / "contact.jpg", top)
        replace_file(output / "audit.json", to_json(found.to_dict()))

    click.echo("rank   share  score  severity  image")
    for image in found.images[:top]:
        share = f"{image.rank / len(found.images):.1%}"
        click.echo(f"{image.rank:>4}  {share:>6}  {image.score:>5.3g}  {image.severity:>8.1f}  {image.name}")
    for copies in found.copies[:SHOWN_COPIES]:
        click.echo(describe(copies))
    if len(found.copies) > SHOWN_COPIES:
        click.echo(f"and {len(found.copies) - SHOWN_COPIES} more groups of copies")
    if dataset.note:
        say(dataset.note, quiet=quiet)
    counts = ", ".join(f"{found.count(kind)} {kind}s" for kind in ("contradiction", "leak", "duplicate"))
    say(f"{len(found.images)} good images ranked in {found.seconds:.0f} s; {counts}", quiet=quiet)
    if output is not None:
        say(f"saved {output}; look at {output / 'contact.jpg'} first", quiet=quiet)


def describe(copies: Copies) -> str:
    """One line."""
    names = ", ".join(f"{member.name} ({member.part}, {member.label})" for member in copies.members)
    return f"{copies.kind}: {'identical' if copies.identical else 'nearly the same'}: {names}"

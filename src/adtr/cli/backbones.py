"""`adtr backbones`."""

from __future__ import annotations

from importlib import util

import click


@click.command()
def command() -> None:
    """List the backbones of the paper and the embedded ones, and whether their weights are installed."""
    from adtr.model.backbones import PACKAGED, RECOMMENDED

    for name, description in RECOMMENDED.items():
        packaged = PACKAGED.get(name)
        state = "" if packaged is None else " [installed]" if util.find_spec(packaged.module) else " [not installed]"
        click.echo(f"{name:<28} {description}{state}")
    click.echo("Any other timm name that gives multi-level features works too.")

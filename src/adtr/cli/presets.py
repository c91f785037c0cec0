"""`adtr presets`."""

from __future__ import annotations

import click


@click.command()
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """List the named configurations; with NAME, show every field of one."""
    from adtr.config import list_presets, load_preset, settings

    if name is None:
        for preset, description in list_presets().items():
            click.echo(f"{preset:<16} {description}")
        return
    section = None
    for field, value in load_preset(name).flat().items():
        setting = settings()[field]
        if setting.section != section:
            section = setting.section
            click.echo(f"[{section}]")
        shown = "x".join(map(str, value)) if isinstance(value, tuple) else value
        click.echo(f"  {field:<18} {shown!s:<24} {setting.help}")

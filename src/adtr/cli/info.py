"""`adtr info`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adtr.cli.options import to_json
from adtr.errors import ModelError
from adtr.report.html import printable

if TYPE_CHECKING:
    from adtr.calibration import Thresholds
    from adtr.config import Config


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Everything, for machines.")
def command(model: Path, as_json: bool) -> None:
    """Show what a model is and how it was made; checks the hashes of its files."""
    from adtr.store import read_metadata

    config, calibration, metadata = read_metadata(model)
    thresholds = calibration.thresholds(config.calibration.false_alarm_rate, config.calibration.unsure_rate)
    if as_json:
        metadata["data"] = {k: v for k, v in metadata["data"].items() if not k.endswith("hashes")}
        click.echo(to_json({"config": config.to_dict(), **metadata, "thresholds": asdict(thresholds)}), nl=False)
        return
    try:
        lines = describe(model, config, metadata, thresholds)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ModelError(f"the metadata of {model} are not what adtr writes ({str(error)[:100]})") from error
    for line in lines:
        click.echo(printable(line))


def describe(model: Path, config: Config, metadata: dict[str, Any], thresholds: Thresholds) -> list[str]:
    """What a model is and how it was made, line by line.

    Raises:
        LookupError, TypeError, ValueError, AttributeError, ArithmeticError: something is missing or of another type.
    """
    data, training, backbone = metadata["data"], metadata["training"], metadata["backbone"]
    where = "stored inside" if backbone["stored"] else backbone["source"]
    lines = {
        "model": f"{model} (written by adtr {metadata['adtr']}, {metadata['created']})",
        "preset": config.preset,
        "backbone": f"{backbone['name']}; weights: {where}, SHA-256 {backbone['sha256'][:12]}",
        "images": f"{_size(config.embedding.image_size)} px, {_size(config.embedding.grid_size)} tokens",
        "learned from": f"{training['images']} good images of {data['folder'] or 'memory'}"
        + (f", {data['skipped']} unreadable ones skipped" if data["skipped"] else ""),
        "training": f"{len(training['losses'])} epochs, {training['total_seconds']:.0f} s on {training['device']} in "
        f"{training['precision']}, loss {training['losses'][0]:.4g} -> {training['losses'][-1]:.4g}",
        "decision": thresholds.describe(),
        "pixels": f"marked above {thresholds.pixel:.4g}",
    }
    if "verified" in metadata:
        verified = metadata["verified"]
        lines["verified"] = f"training repeats to the bit, for {verified['steps']} steps on {verified['images']} images"
    described = [f"{name:<13} {value}" for name, value in lines.items()]
    for past in metadata.get("improvements", []):
        before, after = past["before"], past["after"]
        described.append(
            f"improved with {', '.join(past['sources'])} ({sum(past['learned'].values())} labelled images); "
            f"false alarms {before['false_alarms']}/{before['good']} -> {after['false_alarms']}/{after['good']}, "
            f"missed {before['missed']}/{before['anomalies']} -> {after['missed']}/{after['anomalies']}"
        )
    return described


def _size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))

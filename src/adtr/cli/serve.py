"""`adtr serve`."""

from __future__ import annotations

import re
from pathlib import Path

import click

from adtr.cli.options import (
    device_option,
    extra_for,
    false_alarm_rate_option,
    unsure_rate_option,
    weights_option,
)
from adtr.errors import ConfigError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_LOCAL = ("127.0.0.1", "localhost", "::1")


def byte_size(text: str) -> int:
    """The number of bytes that a size such as 20MB means.

    Raises:
        click.BadParameter: it means none.
    """
    found = re.fullmatch(r"(\d{1,12})\s*([KMG]?)B?", text.strip().upper())
    if not found or not int(found[1]):
        raise click.BadParameter(f"{text!r} is no size such as 500KB or 20MB")
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Where to listen.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--token", envvar="ADTR_TOKEN", metavar="TEXT", help="Clients must show it; better in ADTR_TOKEN.")
@click.option("--insecure", is_flag=True, help="Let everybody in who can reach the address.")
@click.option(
    "--max-upload", default="20MB", show_default=True, type=byte_size, metavar="SIZE", help="Of a request's body."
)
@click.option(
    "--max-megapixels", default=25, show_default=True, type=click.IntRange(1, 80), metavar="N", help="Of an image."
)
@click.option(
    "--queue",
    default=128,
    show_default=True,
    type=click.IntRange(1, 10000),
    metavar="N",
    help="Images at once; 503 beyond.",
)
@click.option(
    "--batch-size",
    default=8,
    show_default=True,
    type=click.IntRange(1, 4096),
    help="Images in a forward pass, at most.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 64),
    metavar="N",
    help="Threads that each run a forward pass, with their share of the cores; the model is in memory once.",
)
@click.option(
    "--feedback", type=click.Path(path_type=Path), metavar="DIR", help="Keep images that users mark, for adtr improve."
)
@false_alarm_rate_option
@unsure_rate_option
@weights_option
@device_option
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    token: str | None,
    insecure: bool,
    max_upload: int,
    max_megapixels: int,
    queue: int,
    batch_size: int,
    workers: int,
    feedback: Path | None,
    false_alarm_rate: float | None,
    unsure_rate: float | None,
    backbone_weights: str | None,
    device: str,
) -> None:
    """Answer over HTTP: an API, and a page to try models on.

    Each MODEL is a path, or NAME=PATH. A model that is replaced on disk is loaded anew; no request is dropped. Prints
    its address on stdout and JSON lines on stderr. SIGTERM and Ctrl-C finish what was accepted.
    """
    if token is not None and len(token) < 8:
        raise ConfigError("the token has less than 8 characters, which can be guessed")
    if host not in _LOCAL and token is None and not insecure:
        raise ConfigError(
            f"{host} can be reached by other machines: set ADTR_TOKEN (or --token), or let everybody in with --insecure"
        )
    from adtr.serve.models import Models, name_models

    paths = name_models(models)
    with extra_for("the server", "serve"):
        from adtr.serve.app import create_app
        from adtr.serve.server import listen, run
        from adtr.serve.service import Settings
    from adtr.serve.log import log_to_stderr

    socket = listen(host, port)

    from adtr.detector import AnomalyDetector

    def load(path: Path) -> AnomalyDetector:
        detector = AnomalyDetector.load(path, device=device, backbone_weights=backbone_weights)
        detector.set_rates(false_alarm_rate, unsure_rate)
        return detector

    loaded = Models(paths, load)
    settings = Settings(
        token=token,
        local=not insecure,
        max_upload=max_upload,
        max_pixels=max_megapixels * 1_000_000,
        queue=queue,
        batch_size=batch_size,
        workers=workers,
        feedback=feedback,
    )
    app = create_app(loaded, settings)
    log_to_stderr()
    address, number = socket.getsockname()[:2]
    click.echo(f"http://{f'[{address}]' if ':' in address else address}:{number}")
    run(app, socket)

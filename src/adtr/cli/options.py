"""Options that several commands share, and the flags made from the configuration's fields."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin

import click

from adtr.config import read_config_file, settings
from adtr.errors import AdtrError
from adtr.files import check_writable
from adtr.locks import hold_folder
from adtr.report.html import printable
from adtr.settings import Setting, Size

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from adtr.data.loading import SkippedImage
    from adtr.progress import Progress

Function = TypeVar("Function", bound=Callable[..., Any])

CONFIGURATION = "Configuration (overrides the preset and --config)"


class SectionedCommand(click.Command):
    """A command whose configuration flags stand in a section of their own in the help."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Two sections in place of one."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": [], CONFIGURATION: []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                sections[CONFIGURATION if parameter.name in settings() else "Options"].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def configuration_flags(function: Function, sections: Sequence[str] = (), without: Collection[str] = ()) -> Function:
    """A flag for each field of the configuration (or of some sections), given as text, parsed by the field itself."""
    for setting in reversed(list(settings().values())):
        if (sections and setting.section not in sections) or setting.name in without:
            continue
        flag = f"--{setting.name.replace('_', '-')}"
        function = click.option(flag, setting.name, metavar=_metavar(setting), help=f"{setting.help}.")(function)
    return function


def _metavar(setting: Setting) -> str:
    if get_origin(setting.type) is not None and setting.type != Size:
        return "|".join(get_args(setting.type))
    return {int: "N", float: "X", bool: "true|false", str: "NAME", Size: "N|HxW"}[setting.type]


def resolve(
    preset: str | None, config_file: Path | None, flags: dict[str, Any], default: str = "quick"
) -> tuple[str, dict[str, Any]]:
    """Preset and overrides: flags win over the configuration file, which wins over the preset."""
    from_file, overrides = read_config_file(config_file) if config_file is not None else (None, {})
    given = {name: value for name, value in flags.items() if value is not None}
    return preset or from_file or default, {**overrides, **given}


device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda, cuda:N or mps."
)
config_option = click.option(
    "--config", "config_file", type=click.Path(path_type=Path), metavar="FILE", help="A YAML or TOML file."
)
weights_option = click.option(
    "--backbone-weights",
    metavar="FILE",
    help="Weights of the backbone: a safetensors file or a state dict; 'random' for none.",
)
on_error_option = click.option(
    "--on-error",
    type=click.Choice(["raise", "skip"]),
    default="raise",
    show_default=True,
    help="What to do with an image that cannot be read; skipped ones are named and counted.",
)
false_alarm_rate_option = click.option(
    "--false-alarm-rate",
    type=float,
    metavar="X",
    help="Share of good images that may be called anomalous.  [default: the model's]",
)
unsure_rate_option = click.option(
    "--unsure-rate",
    type=float,
    metavar="X",
    help="Share of good images that may be called unsure or anomalous; 0: every verdict is sure.",
)
track_option = click.option(
    "--track",
    metavar="TOOL[:WHERE]",
    help="Tell tensorboard[:DIR], mlflow[:URI] or wandb[:DIR] of it; wandb is offline unless WANDB_MODE=online.",
)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="No progress and no summary on stderr.")


def check_output_file(path: Path) -> None:
    """Fail before the work, not after it, where a file cannot be written.

    Raises:
        AdtrError: it cannot.
    """
    if path.is_dir():
        raise AdtrError(f"{path} is a folder, not a file; choose another --output")
    check_writable(path.parent)


@contextlib.contextmanager
def work_folder(output: Path, fabric: Fabric | None = None) -> Iterator[Path]:
    """The folder for checkpoints beside a model that is being made, which must be replaceable and nobody else's work.

    It goes once the model is there. What holds a checkpoint stays for --resume; an empty one is of no use to anybody.
    Of several processes the first one sees to all that.

    Raises:
        AdtrError: the output is something else than a model, cannot be written, or is being written.
    """
    from adtr.store import check_replaceable

    check_replaceable(output)
    work = _work_folder(output)
    if fabric is not None and not fabric.is_global_zero:
        yield work
        return
    check_writable(work)
    with hold_folder(work, output=output):
        try:
            yield work
        except BaseException:
            with contextlib.suppress(OSError):
                work.rmdir()
            raise
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def work_folder_of_others(output: Path) -> Iterator[None]:
    """For the process that starts those which have the work folder: fails early, and tidies up if they were killed.

    Raises:
        AdtrError: the output is something else than a model.
    """
    from adtr.store import check_replaceable

    check_replaceable(output)
    try:
        yield
    finally:
        work = _work_folder(output)
        if work.is_dir():
            with contextlib.suppress(OSError, AdtrError), hold_folder(work):
                work.rmdir()


def _work_folder(output: Path) -> Path:
    return output.with_name(f"{output.name}.unfinished")


@contextlib.contextmanager
def hold_output(folder: Path) -> Iterator[None]:
    """Be the only one who writes into an output folder.

    Raises:
        AdtrError: another process does, or it cannot be made.
    """
    check_writable(folder)
    with hold_folder(folder):
        yield


@contextlib.contextmanager
def extra_for(purpose: str, extra: str) -> Iterator[None]:
    """Say which optional dependencies are missing where an import inside the block fails.

    Raises:
        AdtrError: one is.
    """
    try:
        yield
    except ImportError as error:
        raise AdtrError(f"{purpose} needs {error.name}: pip install 'adtr[{extra}]'") from error


@contextlib.contextmanager
def progress_on_stderr(quiet: bool) -> Iterator[Progress]:
    """Bars on a terminal; nothing where stderr is a file or a pipe, when asked to be quiet, or without rich."""
    from adtr.progress import Bars, Silent

    if quiet or not sys.stderr.isatty() or find_spec("rich") is None:
        yield Silent()
    else:
        with Bars() as bars:
            yield bars


def say(message: str, *, quiet: bool = False) -> None:
    """A remark for people, on stderr."""
    if not quiet:
        click.echo(message, err=True)


def report_skipped(skipped: Sequence[SkippedImage]) -> None:
    """Name and count what could not be read; never quiet."""
    if skipped:
        click.echo(f"adtr: skipped {len(skipped)} unreadable image(s):", err=True)
        for image in skipped:
            click.echo(printable(f"  {image.path}: {image.reason}"), err=True)


def to_json(values: object) -> str:
    """JSON for people and machines."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

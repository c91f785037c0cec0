"""The command line. Each command's module is imported only when it is run, and torch only when it is needed."""

from __future__ import annotations

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NoReturn

import click

from adtr import __version__
from adtr.errors import AdtrError, AdtrWarning, is_out_of_memory
from adtr.settings import unknown

COMMANDS = {
    "audit": "Find good images that may not be good, and copies.",
    "fit": "Learn what good looks like from a folder of good images.",
    "fit-many": "Fit a detector for each product in a folder of products.",
    "improve": "Go on learning, from labelled, made or irrelevant anomalies.",
    "predict": "Score images, and show where they depart from good.",
    "watch": "Score what lands in a folder, and sort it.",
    "serve": "Answer over HTTP, with a page to try a model on.",
    "evaluate": "Measure a model on a labelled data set.",
    "report": "Test a model, and write a page that a quality manager can read.",
    "monitor": "Watch scores for a change, and say what changed.",
    "export": "Write a model as one file that runs without PyTorch.",
    "info": "Show what a model is and how it was made.",
    "presets": "List the named configurations, or show one.",
    "backbones": "List the backbones and where their weights come from.",
    "experiment": "Repeat one of the paper's experiments, its numbers beside those measured.",
    "demo": "Train and judge a detector on real textures, in two minutes.",
}

SYSTEM_REFUSES = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO
)  # fmt: skip
"""What is no bug, wherever a file is opened or written."""


LONGEST_LINE = 1500
"""Characters of an error."""


class LazyCommands(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command's object, from its module."""
        if cmd_name not in COMMANDS:
            raise AdtrError(unknown("command", cmd_name, COMMANDS))
        command: click.Command = import_module(f"adtr.cli.{cmd_name.replace('-', '_')}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's signature
        """Run the command; where whoever reads its output has seen enough, that is no failure."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _discard_stdout()
            return None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyCommands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with `adtr demo`, or with `adtr fit FOLDER --output MODEL`.",
)
@click.version_option(__version__, prog_name="adtr", message="%(prog)s %(version)s")
def cli() -> None:
    """Visual anomaly detection: learn from good images, find what departs from them."""


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    from adtr.report.html import printable

    line = printable(" ".join(message.splitlines()))  # what a file's name would tell the terminal to do is only shown
    click.echo(f"adtr: error: {line if len(line) <= LONGEST_LINE else f'{line[:LONGEST_LINE]}...'}", err=True)
    sys.exit(2)


def wait_briefly() -> None:
    """Let threads that wait for each other sleep sooner than after GNU OpenMP's 300,000 rounds.

    That default is no faster on a quiet machine, and half as fast where two other programs compute (docs/engine.md). It
    is read when torch is imported, so this comes first. What the environment sets is respected.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def main(arguments: list[str] | None = None, fail: Callable[[str], NoReturn] = fail) -> NoReturn:
    """Run a command. A user's mistake is one line, as `fail` tells it, and exit code 2; a bug is a traceback and 1."""
    arguments = sys.argv[1:] if arguments is None else arguments
    wait_briefly()
    if isinstance(sys.stdout, io.TextIOWrapper):  # any file name can be printed; in JSON the replacement is an escape
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on odd metadata, which change nothing
    try:
        with warnings.catch_warnings():
            warnings.showwarning = partial(_show_warning, warnings.showwarning)
            result = cli.main(args=arguments, prog_name="adtr", standalone_mode=False, obj=arguments)
        sys.exit(result if isinstance(result, int) else 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        fail(_with_command(error))
    except AdtrError as error:
        fail(str(error))
    except (click.Abort, KeyboardInterrupt):
        click.echo("adtr: stopped", err=True)
        sys.exit(130)
    except OSError as error:
        if error.errno not in SYSTEM_REFUSES:
            raise
        if error.errno == errno.ENOSPC:
            _discard_stdout()
        fail(f"cannot use {error.filename or 'stdout'}: {error.strerror}")
    except (MemoryError, RuntimeError, ImportError) as error:
        if not is_out_of_memory(error):
            raise
        fail("not enough memory: take a smaller --batch-size, or fit with a smaller --grid-size or --width")


def _show_warning(
    otherwise: Callable[..., None],
    message: Warning | str,
    category: type[Warning],
    *place: Any,  # noqa: ANN401
) -> None:
    """Ours as one line for people, not as a line of code."""
    if issubclass(category, AdtrWarning):
        click.echo(f"adtr: warning: {' '.join(str(message).splitlines())}", err=True)
    else:
        otherwise(message, category, *place)


def _discard_stdout() -> None:
    """Keep Python from failing once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _with_command(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{message} (see `{context.command_path} --help`)" if context is not None else message

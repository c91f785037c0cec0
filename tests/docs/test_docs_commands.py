"""The documentation's commands are commands of adtr, with options that they have and values that these take."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from pages import NAMES, PAGES, ROOT, blocks, tokens

from adtr.cli import COMMANDS, cli
from adtr.config import settings

SHELL = ("", "sh")
"""Languages of blocks of commands: indented ones have none."""
BENCHMARKS = [*(ROOT / "benchmarks").glob("*.py")]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each call of adtr in lines of a shell, behind a pipe too."""
    for line in text.replace("\\\n", " ").splitlines():
        if "adtr " not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if not set(word) & set("|&;<>"):
                words.append(word)
                continue
            while words and re.match(r"\w+=", words[0]):
                del words[0]
            if words and Path(words[0]).name == "adtr":
                yield words[1:]
            words = []


def check(words: list[str]) -> None:
    """Let click read a call, and look at the values.

    Raises:
        click.UsageError: an option that is not there, one without its value, or a value that it does not take.
        AdtrError: no such command, or a value that the configuration does not take.
    """
    name, *rest = words
    if name in ("--help", "--version"):
        return
    parent = click.Context(cli, info_name="adtr", **cli.context_settings)
    command = cli.get_command(parent, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=parent)
    values, _, _ = command.make_parser(context).parse_args(rest)
    for parameter in command.get_params(context):
        for value in _listed(values.get(parameter.name or "")):
            if not isinstance(value, str) or value.isupper():  # a flag, or a placeholder
                continue
            if parameter.name in settings():
                several = name == "experiment" and parameter.name == "backbone"
                settings()[parameter.name].parse(value.split(",")[0] if several else value)
            elif not isinstance(parameter.type, click.Path):
                parameter.type.convert(value, parameter, context)


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_blocks_are_understood(page: Path) -> None:
    for block in blocks(page):
        if block.language in SHELL:
            for words in commands(block.text):
                check(words)


def all_options() -> set[str]:
    """Every option of every command, and of the benchmarks."""
    parent = click.Context(cli, info_name="adtr", **cli.context_settings)
    found = {"--version", "--help"}
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        found |= {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    return found.union(*(re.findall(r'"(--[a-z-]+)"', file.read_text("utf-8")) for file in BENCHMARKS))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_options_in_the_text_exist(page: Path) -> None:
    options = all_options()
    for token in tokens(page):
        if token.type == "code_inline":
            words = token.content.replace("=", " ").split()
            if words[0] == "adtr" and len(words) > 1 and words[1].islower():
                assert words[1] in (*COMMANDS, "--help", "--version"), token.content
            if words[0] == "adtr" or words[0].startswith("--"):
                flags = {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)}
                assert flags <= options, token.content


@pytest.mark.parametrize(
    "wrong",
    ["fit data --outptu m", "fit data --epochs x", "predict m a --on-error maybe", "serve m --port", "fits data -o m"],
)
def test_a_wrong_command_is_found(wrong: str) -> None:
    [words] = commands(f"cat x | A=1 adtr {wrong} # and more")
    with pytest.raises((click.UsageError, ValueError)):
        check(words)

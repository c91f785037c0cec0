"""What `mkdocs build` does beyond its plugins: references made from the code, and equations."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

PACKAGE = Path(__file__).parents[1] / "src" / "adtr"


def on_config(config: MkDocsConfig) -> None:
    """Put the API reference at the end of the navigation."""
    config.nav[-1]["Reference"].append({"Modules": [{name: f"reference/api/{name}.md"} for name in rooms()]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Make a page for each part of the package."""
    from mkdocs.structure.files import File

    for name, modules in rooms().items():
        text = "".join(f"::: {module}\n    options: {{heading_level: 2}}\n\n" for module in modules)
        files.append(File.generated(config, f"reference/api/{name}.md", content=f"# {name}\n\n{text}"))


def on_page_markdown(markdown: str, **_: Any) -> str:  # noqa: ANN401
    """Fill in what is made from the code."""
    for place, make in MADE.items():
        if place in markdown:
            markdown = markdown.replace(place, make())
    return markdown


def on_page_content(content: str, **_: Any) -> str:  # noqa: ANN401
    """Turn equations into MathML, which browsers draw without a script."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        return convert(html.unescape(found["tex"]).strip(), display="block" if found["tag"] == "div" else "inline")

    pattern = r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>'
    return re.sub(pattern, mathml, content, flags=re.DOTALL)


def rooms() -> dict[str, list[str]]:
    """The modules of each part of the package, by the part's name; the command line has a reference of its own."""
    parts = {"adtr": [f"adtr.{file.stem}" for file in sorted(PACKAGE.glob("[!_]*.py"))]}
    for folder in sorted(file.parent for file in PACKAGE.glob("*/__init__.py")):
        if folder.name != "cli":
            name = f"adtr.{folder.name}"
            parts[name] = [name, *(f"{name}.{file.stem}" for file in sorted(folder.glob("[!_]*.py")))]
    return parts


class MarkdownFormatter(click.HelpFormatter):
    """Writes a command's help as Markdown."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:  # noqa: ARG002
        """The usage as a block of code."""
        self.write(f"    {prog} {args}\n\n")

    def write_heading(self, heading: str) -> None:
        """A section's name."""
        self.write(f"**{heading}**\n\n")

    def write_text(self, text: str) -> None:
        """Paragraphs."""
        self.write(f"{html.escape(text, quote=False)}\n\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 0, col_spacing: int = 0) -> None:  # noqa: ARG002
        """A table of names and what they mean."""
        self.write("| name | meaning |\n|---|---|\n")
        for row in filter(all, rows):
            name, text = (html.escape(" ".join(part.split()), quote=False).replace("|", "&#124;") for part in row)
            self.write(f"| <code>{name}</code> | {text} |\n")
        self.write("\n")


def commands_reference() -> str:
    """The help of every command."""
    from adtr.cli import COMMANDS, cli

    parent = click.Context(cli, info_name="adtr", **cli.context_settings)
    text = ""
    for name in COMMANDS:
        command = cli.get_command(parent, name)
        assert command is not None
        formatter = MarkdownFormatter()
        command.format_help(click.Context(command, info_name=name, parent=parent), formatter)
        text += f"## adtr {name}\n\n{formatter.getvalue()}\n"
    return text


def settings_reference() -> str:
    """A table of each section's fields: their value in each preset, and what they are."""
    from adtr.config import list_presets, load_preset, settings

    presets = {name: load_preset(name).flat() for name in list_presets()}
    head = f"| field | {' | '.join(presets)} | what |\n|---|{'---|' * len(presets)}---|\n"
    text, section = "", None
    for name, setting in settings().items():
        if setting.section != section:
            section = setting.section
            text += f"\n## {section}\n\n{head}"
        values = " | ".join(_shown(values[name]) for values in presets.values())
        text += f"| `{name}` | {values} | {setting.help} |\n"
    return text


def _shown(value: object) -> str:
    """A setting's value as the command line takes it."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


MADE: dict[str, Callable[[], str]] = {
    "<!-- made: commands -->": commands_reference,
    "<!-- made: settings -->": settings_reference,
}

"""The documentation's pages, and what is in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]


@dataclass(frozen=True, kw_only=True)
class Block:
    """A block of code."""

    language: str
    """What stands behind its fence; empty where it is indented."""
    text: str
    line: int


def tokens(page: Path) -> Iterator[Token]:
    """Every token of a page, those inside paragraphs too."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text("utf-8")):
        yield token
        yield from token.children or ()


def blocks(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    found = []
    for token in tokens(page):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            found.append(Block(language=token.info.strip(), text=token.content, line=token.map[0] + 1))
    return found

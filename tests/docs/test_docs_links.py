"""Whatever the documentation points to is there."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from pages import DOCS, NAMES, PAGES, ROOT, tokens


def anchors(page: Path) -> set[str]:
    """What a link to a page may end with: its headings, as GitHub and mkdocs name them."""
    found, inside = set(), False
    for token in tokens(page):
        if token.type == "inline" and inside:
            plain = "".join(child.content for child in token.children or ())
            found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
        inside = token.type == "heading_open"
    return found


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_relative_links_lead_to_something(page: Path) -> None:
    for token in tokens(page):
        target = str(token.attrs.get("href") or token.attrs.get("src") or "")
        link = urlsplit(target)
        if not target or link.scheme:
            continue
        place = (page.parent / unquote(link.path)).resolve() if link.path else page
        assert place.exists(), target
        assert place.is_relative_to(ROOT), target
        if link.fragment and place.suffix == ".md":
            assert link.fragment in anchors(place), target


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_references_to_the_code_name_something(page: Path) -> None:
    for name in re.findall(r"\]\[(adtr[\w.]*)\]|\[`(adtr[\w.]*)`\]\[\]", page.read_text("utf-8")):
        assert exists("".join(name)), name


def exists(name: str) -> bool:
    """Whether a module, or something in one, has that name."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            thing: Any = import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = getattr(thing, "__annotations__", {})
            if not hasattr(thing, part):
                return part in fields
            thing = getattr(thing, part)
        return True
    return False


def test_every_page_of_the_site_is_in_the_navigation_once() -> None:
    def files(entry: object) -> list[str]:
        if isinstance(entry, dict):
            return [file for value in entry.values() for file in files(value)]
        return [file for item in entry for file in files(item)] if isinstance(entry, list) else [str(entry)]

    shown = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"])
    assert sorted(shown) == [page.relative_to(DOCS).as_posix() for page in sorted(DOCS.rglob("*.md"))]


def test_every_picture_is_shown_somewhere() -> None:
    shown = {
        str(token.attrs["src"]).rsplit("/", 1)[-1] for page in PAGES for token in tokens(page) if token.tag == "img"
    }
    assert {picture.name for picture in (DOCS / "images").iterdir()} == shown

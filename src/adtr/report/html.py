"""Self-contained web pages: no script, nothing fetched from elsewhere; for screens, light or dark, and for paper."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape


def printable(value: str) -> str:
    """Text in which controls, lone surrogates and marks that turn the order of letters are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)


def text(value: str) -> str:
    """Any text as HTML that shows it."""
    return escape(printable(value))


def facts(values: Mapping[str, str]) -> str:
    """Facts by their names, as cards."""
    cards = "".join(f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in values.items())
    return f"<dl>{cards}</dl>\n"


def document(
    *,
    title: str,
    lead: str,
    summary: Mapping[str, str],
    sections: Mapping[str, str],
    style: str = "",
    policy: str | None = None,
) -> str:
    """A whole page.

    Args:
        title: the heading, plain text.
        lead: one or two sentences below it, plain text.
        summary: facts by their names, plain text.
        sections: HTML by plain headings.
        style: CSS besides `STYLE`.
        policy: a Content-Security-Policy, where the page can be held to one.
    """
    links = "".join(f'<a href="#{_anchor(name)}">{text(name)}</a>' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{_anchor(name)}">\n<h2 id="{_anchor(name)}">{text(name)}</h2>\n'
        f"{content}</section>\n"
        for name, content in sections.items()
    )
    secured = f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">\n' if policy else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{secured}<title>{text(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>{STYLE}{style}</style>\n</head>\n<body>\n'
        f"<header>\n<h1>{text(title)}</h1>\n<p>{text(lead)}</p>\n"
        f'{facts(summary)}<nav aria-label="Sections">{links}</nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def table(head: str, rows: str, *, label: str, caption: str = "") -> str:
    """A table that scrolls sideways where it is too wide for the screen; `head` and `rows` are HTML."""
    below = f"<caption>{text(caption)}</caption>\n" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(label)}">\n<table>\n{below}'
        f"<thead>\n{head}</thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


_LIGHT = """--paper: #fbfaf8; --card: #fff; --ink: #1d1f23; --soft: #5c616b; --line: #e1dfda; --accent: #a8380e;
  --good: #17633a; --bad: #9a2a12;"""

STYLE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --paper: #15171a; --card: #1d2024; --ink: #e9e7e3; --soft: #a2a8b2; --line: #32363c; --accent: #f0915f;
    --good: #6fce9a; --bad: #f39a7d; }}
}}
@media print {{ :root {{ {_LIGHT} --paper: #fff; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }}
h1 {{ margin: 0; font-size: clamp(1.7rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em;
  overflow-wrap: anywhere; }}
h2 {{ margin: 3rem 0 .75rem; font-size: 1.4rem; letter-spacing: -.01em; }}
h3 {{ margin: 2rem 0 .6rem; font-size: 1.05rem; overflow-wrap: anywhere; }}
h3::first-letter {{ text-transform: uppercase; }}
header > p {{ max-width: 46rem; margin: .8rem 0 1.6rem; color: var(--soft); font-size: 1.1rem;
  overflow-wrap: anywhere; }}
dl {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); gap: .75rem; margin: 0; }}
dl div, figure {{ background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }}
dl div {{ padding: .8rem 1rem; }}
dt, caption, figcaption {{ color: var(--soft); font-size: .9rem; }}
dd {{ margin: .1rem 0 0; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
nav {{ display: flex; flex-wrap: wrap; gap: .25rem 1.4rem; margin-top: 1.4rem; }}
nav a {{ color: var(--accent); }}
a:focus-visible, .scroll:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px; }}
.scroll {{ overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }}
table {{ width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }}
caption {{ caption-side: bottom; padding: .6rem 1rem; text-align: left; }}
th, td {{ padding: .5rem 1rem; text-align: right; white-space: nowrap; font-weight: 400; }}
thead th {{ color: var(--soft); font-size: .9rem; }}
th[scope=row] {{ text-align: left; }}
tbody tr {{ border-top: 1px solid var(--line); }}
img {{ display: block; width: 100%; height: auto; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }}
figure {{ margin: 0; overflow: hidden; }}
figcaption {{ padding: .55rem .9rem .65rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }}
@media print {{
  nav {{ display: none; }}
  figure, tr, dl div {{ break-inside: avoid; }}
  h2, h3 {{ break-after: avoid; }}
}}
"""

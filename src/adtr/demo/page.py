"""The demo's result as one static web page, without scripts or anything fetched from elsewhere."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from adtr.files import replace_file


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A row of the table: the same metrics of the detector and of the baseline, higher being better.

    Attributes:
        name: what was measured on, such as "all defects" or a kind of defect.
        detector: value by the metric's name; NaN is shown as "n/a".
        baseline: the same metrics of the baseline.
    """

    name: str
    detector: Mapping[str, float]
    baseline: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture of one test image's result.

    Attributes:
        file: its path relative to the page's folder, with forward slashes.
        kind: the group that it is shown in, such as a kind of defect.
        caption: a line of text below it, also its alternative text.
        quality: how well the image was judged; the highest of a kind is marked best, the lowest hardest.
    """

    file: str
    kind: str
    caption: str
    quality: float | None = None


def write_index(
    folder: Path,
    *,
    title: str,
    lead: str,
    summary: Mapping[str, str],
    metrics: Sequence[MetricRow],
    samples: Sequence[str],
    panels: Sequence[Panel],
    commands: Sequence[tuple[str, str]],
    baseline: str = "mean image",
) -> Path:
    """Write `index.html`, replacing one that is there in a single step.

    Args:
        folder: an existing folder that holds the pictures.
        title: the page's heading.
        lead: one or two sentences below it.
        summary: facts of the run by their names, such as {"Training": "80 images in 41 s"}.
        metrics: rows of the table; the first row names the columns and is set off as the overall result.
        samples: pictures of good training images, relative to the folder.
        panels: pictures of results; kinds appear in the order of their first panel.
        commands: what to try next: pairs of a purpose and a command line.
        baseline: the baseline's name in the table.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if a picture is not there, or lies outside the folder.
        AdtrError: if the page cannot be written.
    """
    inside = folder.resolve()
    for file in [*samples, *(panel.file for panel in panels)]:
        picture = (folder / file).resolve()
        if not (picture.is_relative_to(inside) and picture.is_file()):
            raise FileNotFoundError(f"the page refers to {file}, which is not in {folder}")

    sections = {
        "Metrics": _metrics(metrics, baseline),
        "Good samples": _samples(samples),
        "Results": _panels(panels),
        "What next": _commands(commands),
    }
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(
        f'<section aria-labelledby="{_anchor(name)}">\n<h2 id="{_anchor(name)}">{name}</h2>\n{content}</section>\n'
        for name, content in sections.items()
    )
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<style>{_STYLE}</style>\n</head>\n<body>\n'
        f"<header>\n<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n"
        f'<dl>{_summary(summary)}</dl>\n<nav aria-label="Sections">{links}</nav>\n</header>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )
    path = folder / "index.html"
    replace_file(path, page)
    return path


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


def _summary(summary: Mapping[str, str]) -> str:
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in summary.items())


def _metrics(rows: Sequence[MetricRow], baseline: str) -> str:
    if not rows:
        return "<p>Nothing was measured.</p>\n"
    columns = list(rows[0].detector)
    groups = "".join(f'<th scope="colgroup" colspan="2">{escape(column)}</th>' for column in columns)
    names = f'<th scope="col">detector</th><th scope="col">{escape(baseline)}</th>' * len(columns)
    lines = []
    for row in rows:
        cells = []
        for column in columns:
            ours, theirs = row.detector.get(column, math.nan), row.baseline.get(column, math.nan)
            cells += [_cell(ours, wins=ours > theirs), _cell(theirs, wins=theirs > ours)]
        lines.append(f'<tr><th scope="row">{escape(row.name)}</th>{"".join(cells)}</tr>\n')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table of metrics">\n<table>\n'
        f"<caption>The better of each pair is in bold. 1 is perfect.</caption>\n"
        f'<thead>\n<tr><td rowspan="2"></td>{groups}</tr>\n<tr>{names}</tr>\n</thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table>\n</div>\n"
    )


def _cell(value: float, *, wins: bool) -> str:
    text = "n/a" if math.isnan(value) else f"{value:.3f}"
    return f"<td><strong>{text}</strong></td>" if wins else f"<td>{text}</td>"


def _samples(samples: Sequence[str]) -> str:
    pictures = "".join(
        f"<li>{_picture(file, f'good training image {i}')}</li>\n" for i, file in enumerate(samples, start=1)
    )
    return f'<p>All that the detector has learned from looks like this.</p>\n<ul class="samples">\n{pictures}</ul>\n'


def _panels(panels: Sequence[Panel]) -> str:
    parts = []
    for kind in dict.fromkeys(panel.kind for panel in panels):
        group = [panel for panel in panels if panel.kind == kind]
        figures = "".join(_figure(panel, _mark(panel, group)) for panel in group)
        parts.append(f'<h3>{escape(kind)}</h3>\n<div class="panels">\n{figures}</div>\n')
    return "".join(parts)


def _mark(panel: Panel, group: Iterable[Panel]) -> str:
    """'best', 'hardest', or nothing where the group has no such order."""
    known = [other for other in group if other.quality is not None]
    best, hardest = (choose(known, key=lambda p: p.quality or 0.0, default=None) for choose in (max, min))
    if best is None or hardest is None or best.quality == hardest.quality:
        return ""
    return "best" if panel is best else "hardest" if panel is hardest else ""


def _figure(panel: Panel, mark: str) -> str:
    badge = f'<span class="mark {mark}">{mark}</span> ' if mark else ""
    picture = _picture(panel.file, f"{panel.kind}: {panel.caption}")
    return f"<figure>{picture}<figcaption>{badge}{escape(panel.caption)}</figcaption></figure>\n"


def _picture(file: str, text: str) -> str:
    """An image that opens in full size."""
    address = escape(quote(file))
    return f'<a href="{address}"><img src="{address}" alt="{escape(text)}" loading="lazy"></a>'


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    items = "".join(
        f"<li><p>{escape(purpose)}</p><pre><code>{escape(line)}</code></pre></li>\n" for purpose, line in commands
    )
    return f'<ol class="next">\n{items}</ol>\n'


_STYLE = """
:root { --paper: #fbfaf8; --card: #fff; --ink: #1d1f23; --soft: #5c616b; --line: #e1dfda; --accent: #a8380e;
  --good: #17633a; --bad: #9a2a12; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15171a; --card: #1d2024; --ink: #e9e7e3; --soft: #a2a8b2; --line: #32363c; --accent: #f0915f;
    --good: #6fce9a; --bad: #f39a7d; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0; font-size: clamp(1.7rem, 4.5vw, 2.6rem); line-height: 1.15; letter-spacing: -.02em; }
h2 { margin: 3rem 0 .75rem; font-size: 1.4rem; letter-spacing: -.01em; }
h3 { margin: 2rem 0 .6rem; font-size: 1.05rem; }
h3::first-letter { text-transform: uppercase; }
header > p { max-width: 46rem; margin: .8rem 0 1.6rem; color: var(--soft); font-size: 1.1rem; }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 12rem), 1fr)); gap: .75rem; margin: 0; }
dl div, figure { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
dl div { padding: .8rem 1rem; }
dt, caption, figcaption { color: var(--soft); font-size: .9rem; }
dd { margin: .1rem 0 0; font-weight: 600; font-variant-numeric: tabular-nums; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1.4rem; margin-top: 1.4rem; }
nav a { color: var(--accent); }
a:focus-visible, .scroll:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line); border-radius: .6rem; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; padding: .6rem 1rem; text-align: left; }
th, td { padding: .5rem 1rem; text-align: right; white-space: nowrap; font-weight: 400; }
thead th { color: var(--soft); font-size: .9rem; }
th[scope=colgroup] { padding-bottom: 0; text-align: center; color: var(--ink); font-weight: 600; }
th[scope=row] { text-align: left; }
tbody tr { border-top: 1px solid var(--line); }
tbody tr:first-child { border-top-width: 2px; font-size: 1.1rem; }
strong { color: var(--good); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 8rem), 1fr)); gap: .5rem; margin: 0;
  padding: 0; list-style: none; }
.samples img { border-radius: .4rem; }
img { display: block; width: 100%; height: auto; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; overflow: hidden; }
figcaption { padding: .55rem .9rem .65rem; font-variant-numeric: tabular-nums; }
.mark { padding: .05rem .5rem .1rem; border: 1px solid; border-radius: 1rem; font-size: .8rem; }
.best { color: var(--good); }
.hardest { color: var(--bad); }
.next { padding-left: 1.3rem; }
.next p { margin: 0 0 .3rem; }
pre { margin: 0 0 1.1rem; padding: .8rem 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; font-size: .92rem; }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""

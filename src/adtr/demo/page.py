"""The demo's result as one static web page, without scripts or anything fetched from elsewhere."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from adtr.files import replace_file
from adtr.report.html import document, table


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
    page = document(title=title, lead=lead, summary=summary, sections=sections, style=_STYLE)
    path = folder / "index.html"
    replace_file(path, page)
    return path


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
    return table(
        f'<tr><td rowspan="2"></td>{groups}</tr>\n<tr>{names}</tr>\n',
        "".join(lines),
        label="Table of metrics",
        caption="The better of each pair is in bold. 1 is perfect.",
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
th[scope=colgroup] { padding-bottom: 0; text-align: center; color: var(--ink); font-weight: 600; }
tbody tr:first-child { border-top-width: 2px; font-size: 1.1rem; }
strong { color: var(--good); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(45%, 8rem), 1fr)); gap: .5rem; margin: 0;
  padding: 0; list-style: none; }
.samples img { border-radius: .4rem; }
.mark { padding: .05rem .5rem .1rem; border: 1px solid; border-radius: 1rem; font-size: .8rem; }
.best { color: var(--good); }
.hardest { color: var(--bad); }
.next { padding-left: 1.3rem; }
.next p { margin: 0 0 .3rem; }
pre { margin: 0 0 1.1rem; padding: .8rem 1rem; overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; font-size: .92rem; }
"""

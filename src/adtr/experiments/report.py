"""`report.md` and `report.html`, the latter a single file with the figures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adtr.experiments.plans import Plan
from adtr.experiments.plots import REGIONS, plot_curves, plot_table
from adtr.experiments.published import SOURCE, published_tables
from adtr.experiments.records import Record
from adtr.experiments.summary import Cells, Results, beside_published, everything_measured
from adtr.files import replace_file

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;font-size:13px;margin:1rem 0}div{overflow-x:auto}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}img{max-width:100%}tr.measured td{background:#fff6e0}"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """A heading, a paragraph, a table or a figure."""

    heading: str = ""
    text: str = ""
    table: Cells | None = None
    figure: Path | None = None
    """A PNG file; its caption is the text."""


def write_report(plan: Plan, records: Sequence[Record], output: Path, not_run: Mapping[str, str]) -> None:
    """Write the report and its figures beside the results.

    Args:
        plan: what was run.
        records: the runs, at least one.
        output: receives `report.md`, `report.html` and `figures/`.
        not_run: why some rows were not run.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    blocks = list(_blocks(plan, Results(records=records), output, not_run))
    title = f"{plan.name}: {plan.help}"
    replace_file(output / "report.md", _markdown(title, blocks, output))
    replace_file(output / "report.html", _html(title, blocks))


def _blocks(plan: Plan, results: Results, output: Path, not_run: Mapping[str, str]) -> list[Block]:
    blocks = [Block(text=f"Numbers of the paper: {SOURCE}. Percent; mean and half the range over the seeds.")]
    for name in plan.tables:
        table = published_tables()[name]
        blocks.append(Block(heading=table.title, table=beside_published(plan, table, results)))
        if table.columns:
            blocks.append(Block(text="A mean in the difference's row is over the same categories as the measured one."))
        else:
            missing = 15 - len(results.categories)
            text = f"The paper's numbers are means over all 15 categories; {missing} of them were not run here."
            blocks += [Block(text=text)] if missing > 0 else []
        notes = [f"{row.method}: {row.note}" for row in table.rows if row.note]
        blocks += [Block(text=f"In the paper's numbers: {'; '.join(notes)}.")] if notes else []
        figure = plot_table(plan, table, results, output / "figures" / name)
        compared = "numbers on the same categories" if table.columns else "mean of 15 categories"
        blocks.append(Block(figure=figure, text=f"{table.title}: measured, and the paper's {compared}."))
    if any("curve" in record for record in results.records):
        figure = plot_curves(results, output / "figures" / plan.name)
        blocks.append(Block(heading="How far each reconstructor learns the identity", figure=figure, text=CURVES))
        blocks += [Block(text=identity_paragraph(results)), Block(table=identity_table(results))]
    blocks += [Block(text=f"Not run: {row} ({reason}).") for row, reason in not_run.items()]
    blocks.append(Block(heading="All that was measured", table=everything_measured(results)))
    if everything := [r for r in results.records if r.get("image_auroc_all") is not None]:
        cells = [["class", "row", "seed", "1,000 against as many others", "against all others"]]
        for r in everything:
            both = (r["metrics"]["image_auroc"], r["image_auroc_all"])
            cells.append([r["category"], r["row"], str(r["seed"]), *(f"{100 * value:.1f}" for value in both)])
        blocks.append(Block(heading="Both test protocols (image AUROC)", table=cells))
    blocks.append(Block(heading="How it was run", table=_configuration(results)))
    return blocks


CURVES = (
    "Share of the features' variation that is reproduced (1: a copy) while the reconstructor trains on good images: in "
    "good images, in marked anomalous regions, and in good images whose tokens have changed places; and how well the "
    "differences tell anomalous positions."
)


def _last(results: Results, row: str) -> dict[str, float]:
    """The means of a reconstructor's last points."""
    points = [r["curve"][-1] for r in results.records if r["row"] == row]
    names = (*REGIONS, "pixel_auroc")
    values = {name: [p[name] for p in points if p[name] is not None] for name in names}
    return {name: sum(found) / len(found) for name, found in values.items() if found}


def identity_table(results: Results) -> Cells:
    """The last points of the curves."""
    names = ("normal", "anomalous", "normal - anomalous", "shuffled", "normal - shuffled", "AUROC of positions")
    cells = [["reconstructor", *names]]
    for row in results.rows:
        last = _last(results, row)
        normal, anomalous, shuffled = (last[region] for region in REGIONS)
        numbers = (normal, anomalous, normal - anomalous, shuffled, normal - shuffled, last["pixel_auroc"])
        cells.append([row, *(f"{value:.3f}" for value in numbers)])
    return cells


def identity_paragraph(results: Results) -> str:
    """What the curves show, from their numbers alone."""
    last = {row: _last(results, row) for row in results.rows}
    lost = {row: values["normal"] - values["shuffled"] for row, values in last.items()}
    copier, keeper = min(lost, key=lost.__getitem__), max(lost, key=lost.__getitem__)
    widest = max(last, key=lambda row: last[row]["normal"] - last[row]["anomalous"])
    best = max(last, key=lambda row: last[row]["pixel_auroc"])
    sentences = [
        f"At the last step {row} reproduces {values['normal']:.0%} of the variation in good images, "
        f"{values['anomalous']:.0%} in anomalous regions and {values['shuffled']:.0%} in shuffled images."
        for row, values in last.items()
    ]
    if len(last) > 1:
        sentences.append(
            f"A copy loses nothing when tokens change places: nearest is {copier}, which loses {lost[copier]:.2f}, "
            f"farthest {keeper}, which loses {lost[keeper]:.2f}. The widest gap between good and anomalous regions is "
            f"that of {widest}; {best} tells anomalous positions best (AUROC {last[best]['pixel_auroc']:.3f})."
        )
    if "Attn+Query" in last and len(last) > 1:
        verdict = "agrees with" if keeper == "Attn+Query" else "does not bear out"
        sentences.append(
            f"This {verdict} Section 3.2: that attention with a learned query is the farthest from a copy."
        )
    return " ".join(sentences)


def _configuration(results: Results) -> Cells:
    """What all runs have in common, and what differs between them."""
    flat = [
        {
            **{f"config: {name}": value for name, value in record["config"].items()},
            **{name: record.get(name) for name in ("device", "precision", "processor", "cores", "python", "steps")},
            **record["versions"],
            "parameters": record.get("parameters"),
            "backbone weights": (record.get("backbone") or {}).get("source"),
            "training images": f"{record['category']} {record['train']}",
        }
        for record in results.records
    ]
    cells = [["setting", "value"]]
    for name in flat[0]:
        values = list(dict.fromkeys(str(record.get(name)) for record in flat if record.get(name) is not None))
        cells.append([name, ", ".join(values) or "-"])
    return cells


def _markdown(title: str, blocks: Sequence[Block], output: Path) -> str:
    parts = [f"# {title}"]
    for block in blocks:
        parts += [f"## {block.heading}"] if block.heading else []
        if block.table:
            lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in block.table]
            parts.append("\n".join([lines[0], "|" + "---|" * len(block.table[0]), *lines[1:]]))
        if block.figure:
            parts.append(f"![{block.heading or title}]({block.figure.relative_to(output).as_posix()})")
        parts += [block.text] if block.text else []
    return "\n\n".join(parts) + "\n"


def _html(title: str, blocks: Sequence[Block]) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for block in blocks:
        parts += [f"<h2>{html.escape(block.heading)}</h2>"] if block.heading else []
        if block.table:
            head, *rows = block.table
            lines = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
            for row in rows:
                kind = ' class="measured"' if "measured" in row[0] else ""
                lines.append(f"<tr{kind}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
            parts.append(f"<div><table>{''.join(lines)}</table></div>")
        if block.figure:
            data = base64.b64encode(block.figure.read_bytes()).decode()
            parts.append(f'<img alt="{html.escape(block.text)}" src="data:image/png;base64,{data}">')
        parts += [f"<p>{html.escape(block.text)}</p>"] if block.text else []
    body = "\n".join(parts)
    return f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title><style>{STYLE}</style>\n{body}\n'

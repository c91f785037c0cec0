"""Figures of the reports, each as PNG and PDF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adtr.errors import ConfigError
from adtr.experiments.plans import Plan
from adtr.experiments.published import PublishedTable
from adtr.experiments.summary import Results
from adtr.files import replace_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESOLUTION = 150
REGIONS = {"normal": "-", "anomalous": "--", "shuffled": ":"}
"""What the curves of a traced run are of, and the style of their lines."""


def new_figure(**options: Any) -> Figure:  # noqa: ANN401 - matplotlib's options
    """An empty figure, drawn without a display.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the figures need matplotlib: pip install 'adtr[experiments]'") from error
    return Figure(**options)


def save_figure(figure: Figure, stem: Path) -> Path:
    """Write `stem.png` and `stem.pdf`; returns the former."""
    import io

    for kind in ("pdf", "png"):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=RESOLUTION, bbox_inches="tight")
        replace_file(stem.with_name(f"{stem.name}.{kind}"), buffer.getvalue())
    return stem.with_name(f"{stem.name}.png")


def plot_table(plan: Plan, table: PublishedTable, results: Results, stem: Path) -> Path:
    """Bars of each measured row, with the seeds' spread, and the paper's numbers as lines across."""
    names = [row.name for row in plan.rows if results.mean(row.name, table.metric) is not None]
    columns = [c for c in results.categories if any(results.cell(name, c, table.metric) for name in names)]
    figure = new_figure(figsize=(max(5, 1.2 + 0.35 * len(names) * (len(columns) + 1)), 3.4))
    axes = figure.subplots()
    width, lowest = 0.8 / max(1, len(names)), 100.0
    for k, name in enumerate(names):
        published = table.row(name)
        for place, column in enumerate([*columns, None]):
            cell = results.mean(name, table.metric) if column is None else results.cell(name, column, table.metric)
            if cell is None:
                continue
            x = place + (k - (len(names) - 1) / 2) * width
            label = name if place == 0 else None
            axes.bar(x, cell.mean, width * 0.92, yerr=cell.half_range, color=f"C{k}", label=label, capsize=2)
            lowest = min(lowest, cell.mean - cell.half_range)
            of_mean = published.mean_over(table, set(columns)) if published is not None else None
            paper = of_mean if column is None else table.value(name, column)
            if paper is not None:
                axes.plot([x - width / 2, x + width / 2], [paper, paper], color="black", linewidth=1.5)
                lowest = min(lowest, paper)
    axes.set_xticks(range(len(columns) + 1), [*(c.replace("_", " ") for c in columns), "mean"], rotation=30, ha="right")
    axes.set_ylim(max(0, lowest - 3), 100.5)
    axes.set_ylabel(f"{table.metric.replace('_', ' ')}, %")
    axes.set_title("bars: measured; black lines: the paper's", fontsize=9)
    if names:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return save_figure(figure, stem)


def plot_curves(results: Results, stem: Path) -> Path:
    """What each reconstructor reproduces over its training, and how well it tells anomalous positions."""
    rows = results.rows
    figure = new_figure(figsize=(3 * (len(rows) + 1), 3), layout="constrained")
    *panels, last = figure.subplots(1, len(rows) + 1)
    for k, (row, axes) in enumerate(zip(rows, panels, strict=True)):
        for record in (r for r in results.records if r["row"] == row):
            points = record["curve"]
            steps = [point["step"] + 1 for point in points]
            first = record is next(r for r in results.records if r["row"] == row)
            for region, style in REGIONS.items():
                values = [point[region] for point in points]
                axes.plot(steps, values, style, color=f"C{k}", alpha=0.9, label=region if first else None)
            last.plot(steps, [p["pixel_auroc"] for p in points], color=f"C{k}", label=row if first else None)
        axes.set(title=row, xscale="log", ylim=(-0.5, 1.02), xlabel="step")
        axes.axhline(1, color="gray", linewidth=0.5)
        axes.legend(fontsize=8, loc="upper left")
    panels[0].set_ylabel("share reproduced")
    last.set(title="anomalous positions", xscale="log", xlabel="step", ylabel="AUROC")
    last.legend(fontsize=8)
    return save_figure(figure, stem)

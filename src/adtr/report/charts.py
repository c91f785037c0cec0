"""A report's charts as inline SVG, whose colours are those of the page: light, dark and on paper."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from adtr.errors import ConfigError
from adtr.metrics import GOOD
from adtr.report.gather import Findings
from adtr.report.html import printable, text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib writes these into the SVG, where the page's variables take their place.
COLORS = {name: f"#0{i}0{i}0{i}" for i, name in enumerate(("ink", "soft", "line", "accent", "good", "bad"), start=1)}
INK, SOFT, LINE, ACCENT, GOOD_COLOR, BAD_COLOR = COLORS.values()

SETTINGS: dict[Any, Any] = {  # matplotlib's type names every key that it knows
    "svg.fonttype": "none",  # letters stay letters, in the page's font
    "svg.hashsalt": "adtr",  # the same numbers give the same file
    "text.parse_math": False,  # a dollar in the name of a defect is a dollar
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
}
WIDTH, HEIGHT = 5.6, 3.7  # inches of 72 px
BINS = 40
NAME_LENGTH = 24
"""Letters of a type's name beside the axis."""


def require_matplotlib() -> None:
    """Fail before the work where no chart can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl  # noqa: F401
    except ImportError as error:
        raise ConfigError("reports need matplotlib: pip install 'adtr[report]'") from error


def trade_off_chart(findings: Findings) -> str | None:
    """Share of missed defects against the promised false-alarm rate; None without defects."""
    curve = findings.trade_off
    if not findings.decisions.missed.total:
        return None
    rates = np.array([point.promised_rate for point in curve])
    shares = np.array([point.missed.rate for point in curve])
    low, high = np.array([point.missed.interval for point in curve]).T

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.fill_between(rates, low, high, step="post", color=ACCENT, alpha=0.16, linewidth=0, label="95 % interval")
        axes.step(rates, shares, where="post", color=ACCENT, linewidth=1.8, label="missed")
        now = findings.decisions
        axes.plot(
            [now.promised_rate],
            [now.missed.count / now.missed.total],
            "o",
            color=INK,
            markersize=7,
            label="this threshold",
        )
        axes.set_xscale("log")
        _percent_axis(axes.xaxis, log=True)
        _percent_axis(axes.yaxis)
        axes.set_ylim(0, min(1, max(0.1, 1.1 * high.max())))
        axes.set(xlabel="promised false-alarm rate", ylabel="missed defects")
        axes.legend(loc="upper right")

    return _svg(draw, "Missed defects against the promised false-alarm rate")


def score_chart(findings: Findings) -> str | None:
    """Histograms of the scores, a row for the held-out good images and for each type; None without images."""
    if not findings.images:
        return None
    rows: dict[str, list[float]] = {"held-out good": list(findings.calibration.image_scores)}
    types = {image.sample.defect_type for image in findings.images}
    for name in sorted(types, key=lambda name: (name != GOOD, name)):
        rows["test good" if name == GOOD else name] = [
            image.score for image in findings.images if image.sample.defect_type == name
        ]
    everything = np.concatenate(list(rows.values()))
    lowest, highest = everything.min(), max(everything.max(), findings.thresholds.image)
    log = lowest > 0 and highest > 10 * lowest
    edges = np.geomspace(lowest, highest, BINS + 1) if log else np.linspace(min(lowest, 0), highest or 1, BINS + 1)

    def draw(figure: Figure) -> None:
        several = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        good_rows = 2 if GOOD in types else 1
        for i, (axes, (name, scores)) in enumerate(zip(several, rows.items(), strict=True)):
            color = GOOD_COLOR if i < good_rows else BAD_COLOR
            axes.hist(scores, edges, color=color, alpha=0.3 if i == 0 else 0.75)
            axes.axvline(findings.thresholds.image, color=INK, linewidth=1.3)
            if findings.thresholds.unsure is not None:
                axes.axvline(findings.thresholds.unsure, color=INK, linewidth=1, linestyle=(0, (4, 3)))
            short = name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
            axes.set_yticks([0], [f"{printable(short)} ({len(scores)})"], color=INK, va="bottom")
            axes.grid(visible=False, axis="y")
            axes.spines["left"].set_visible(False)
        several[-1].set_xlabel("image score" + (", log scale" if log else ""))
        if log:
            several[-1].set_xscale("log")
            _plain_log_axis(several[-1].xaxis)
        several[0].annotate(
            "threshold",
            (findings.thresholds.image, 1),
            (0, 3),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=SOFT,
        )

    return _svg(draw, "Histograms of the image scores by type", height=max(HEIGHT, 0.5 * len(rows) + 0.8))


def detection_chart(findings: Findings) -> str | None:
    """ROC and precision-recall curves of the image scores; None without good or without anomalous images."""
    good, anomalous = findings.good, findings.anomalous
    if not good or not anomalous:
        return None
    from sklearn.metrics import precision_recall_curve, roc_curve

    labels = np.repeat([0, 1], [len(good), len(anomalous)])
    scores = np.array([image.score for image in [*good, *anomalous]])
    false_alarms, found, _ = roc_curve(labels, scores)
    precision, recall, _ = precision_recall_curve(labels, scores)
    decisions, metrics = findings.decisions, findings.metrics
    alarmed, missed = decisions.false_alarms, decisions.missed
    hits = missed.total - missed.count

    def draw(figure: Figure) -> None:
        roc, pr = figure.subplots(1, 2)
        roc.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        roc.plot(false_alarms, found, color=ACCENT, linewidth=1.8)
        roc.plot([alarmed.rate], [hits / missed.total], "o", color=INK, markersize=7)
        roc.set(xlabel="false alarms", ylabel="defects found", title=f"ROC, AUROC {metrics.image_auroc:.4f}")
        pr.axhline(missed.total / (missed.total + alarmed.total), color=SOFT, linewidth=1, linestyle=(0, (2, 3)))
        pr.step(recall, precision, where="post", color=ACCENT, linewidth=1.8)
        if hits + alarmed.count:
            pr.plot([hits / missed.total], [hits / (hits + alarmed.count)], "o", color=INK, markersize=7)
        pr.set(xlabel="defects found", ylabel="of alarms, true", title=f"Precision, AP {metrics.image_ap:.4f}")
        for axes in (roc, pr):
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            axes.set_box_aspect(1)
            axes.title.set_size(10.5)
            _percent_axis(axes.xaxis)
            _percent_axis(axes.yaxis)

    return _svg(draw, "ROC and precision-recall curves of the image scores", height=3.1)


def calibration_chart(findings: Findings) -> str | None:
    """Observed share of false alarms against each promised rate; None without good test images."""
    total = findings.decisions.false_alarms.total
    if not total:
        return None
    from adtr.decisions import plausible_alarms

    curve = findings.trade_off
    rates = np.array([point.promised_rate for point in curve])
    observed = np.array([point.false_alarms.rate for point in curve])
    low, high = np.array([plausible_alarms(rate, findings.calibration.images, total) for rate in rates]).T / total

    def draw(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.fill_between(rates, low, high, color=GOOD_COLOR, alpha=0.16, linewidth=0, label="expected by chance")
        axes.plot([0, rates[-1]], [0, rates[-1]], color=GOOD_COLOR, linewidth=1, label="promised")
        axes.plot(rates, observed, color=ACCENT, linewidth=1.8, marker=".", markersize=5, label="observed")
        now = findings.decisions
        axes.plot(
            [now.promised_rate], [now.false_alarms.count / total], "o", color=INK, markersize=7, label="this threshold"
        )
        _percent_axis(axes.xaxis)
        _percent_axis(axes.yaxis)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=-0.01)
        axes.set(xlabel="promised false-alarm rate", ylabel="false alarms observed")
        axes.legend(loc="upper left")

    return _svg(draw, "Observed against promised false-alarm rates")


def _percent_axis(axis: Any, *, log: bool = False) -> None:  # noqa: ANN401 - either axis
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    if log:
        _log_ticks(axis)
        axis.set_minor_formatter(NullFormatter())


def _plain_log_axis(axis: Any) -> None:  # noqa: ANN401 - either axis
    from matplotlib.ticker import FuncFormatter, NullFormatter

    _log_ticks(axis)
    axis.set_major_formatter(FuncFormatter(lambda score, _: f"{score:g}"))
    axis.set_minor_formatter(NullFormatter())


def _log_ticks(axis: Any) -> None:  # noqa: ANN401 - either axis
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))


def _svg(draw: Callable[[Figure], None], label: str, *, height: float = HEIGHT) -> str:
    """The SVG element of a drawing, without what only a file of its own needs."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has the letters that matplotlib lacks
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # would hold for the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # would be there once for each chart
    svg = re.sub(r"font-family: [^;\"]*;?", "", svg)
    for name, color in COLORS.items():
        svg = svg.replace(color, f"var(--{name})")
    return re.sub(r' width="[^"]*" height="[^"]*"', f' role="img" aria-label="{text(label)}"', svg, count=1)

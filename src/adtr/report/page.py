"""The report as one web page: what was found, for whoever answers for the quality."""

from __future__ import annotations

import platform
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import adtr
from adtr.decisions import Proportion
from adtr.metrics import GOOD, Scores
from adtr.report.charts import calibration_chart, detection_chart, score_chart, trade_off_chart
from adtr.report.gather import Findings, Judged, Shown
from adtr.report.html import document, facts, table, text
from adtr.report.verdict import percent, summary, unknowns

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content-Security-Policy: even if a name slipped through as HTML, it could run and fetch nothing."""
COLUMNS = {"image_auroc": "image AUROC", "image_ap": "image AP", "pixel_auroc": "pixel AUROC", "aupro": "AUPRO"}


def render(findings: Findings, *, model: str, files: Mapping[str, str]) -> str:
    """The page.

    Args:
        findings: of `gather`.
        model: the model's name.
        files: SHA-256 of the model's files by their names; may be empty.
    """
    data = findings.root.resolve().name
    sections = {
        "Verdict": _verdict(findings),
        "Defect types": _types(findings),
        "Charts": _charts(findings),
        "Mistakes": _mistakes(findings),
        "Typical images": _typical(findings),
        "Data": _data(findings),
        "Configuration": _configuration(findings, model, files),
    }
    return document(
        title=f"{model} on {data}",
        lead=f"Visual inspection, tested on {findings.metrics.images} images that the model did not learn from. "
        f"Written by adtr {adtr.__version__} on {datetime.now(timezone.utc):%Y-%m-%d at %H:%M} UTC.",
        summary=_summary(findings),
        sections=sections,
        style=_STYLE,
        policy=POLICY,
    )


def _summary(findings: Findings) -> dict[str, str]:
    alarms, missed = findings.decisions.false_alarms, findings.decisions.missed
    auroc = findings.metrics.image_auroc
    promise = "expected" if findings.thresholds.folds else "promised"
    return {
        f"false alarms {promise}": f"at most {percent(findings.thresholds.promised_rate)}",
        "false alarms observed": _observed(alarms),
        "defects missed": _observed(missed),
        "image AUROC": "not known" if auroc is None else f"{auroc:.4f}",
    }


def _observed(proportion: Proportion) -> str:
    if proportion.rate is None:
        return "not known"
    return f"{percent(proportion.rate)} ({proportion.count} of {proportion.total})"


def _verdict(findings: Findings) -> str:
    items = "".join(f"<li>{text(sentence)}</li>\n" for sentence in unknowns(findings))
    return f'<p class="verdict">{text(summary(findings))}</p>\n<h3>What is not known</h3>\n<ul>\n{items}</ul>\n'


def _types(findings: Findings) -> str:
    decisions, metrics = findings.decisions, findings.metrics
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("", "wrong", "share", "95 % interval", "", *COLUMNS.values())
    )
    rows = [_row("good: false alarms", decisions.false_alarms, None)] if findings.good else []
    rows += [
        _row(f"{name}: missed", missed, metrics.per_type[name]) for name, missed in decisions.missed_per_type.items()
    ]
    if decisions.missed.total:
        rows.append(_row("all defects: missed", decisions.missed, metrics, style="all"))
    caption = (
        "Intervals are Clopper and Pearson's, exact. AUROC, average precision (AP) and AUPRO need no threshold; 1 is "
        "perfect. Each type is set against all the good images."
    )
    return table(f"<tr>{head}</tr>\n", "".join(rows), label="Defect types", caption=caption)


def _row(name: str, wrong: Proportion, scores: Scores | None, *, style: str = "") -> str:
    low, high = wrong.interval
    rate = wrong.rate or 0.0
    bar = f'<i style="left:{low:.2%};width:{high - low:.2%}"></i><b style="left:{rate:.2%}"></b>'
    values = [None if scores is None else getattr(scores, column) for column in COLUMNS]
    cells = [
        f"{wrong.count} of {wrong.total}",
        percent(rate),
        f"{percent(low)} to {percent(high)}",
        f'<span class="range">{bar}</span>',
        *("" if scores is None else "n/a" if value is None else f"{value:.4f}" for value in values),
    ]
    row = "".join(f"<td>{cell}</td>" for cell in cells)
    return f'<tr class="{style}"><th scope="row">{text(name)}</th>{row}</tr>\n'


def _charts(findings: Findings) -> str:
    thresholds = findings.thresholds
    folds = ", about (the folds prove nothing)" if thresholds.folds else ""
    charts = {
        "How many defects are missed when fewer or more false alarms are allowed. "
        "Another rate needs no training: --false-alarm-rate.": trade_off_chart(findings),
        "Scores of good and anomalous images, with their numbers. What lies right of the line is called anomalous"
        + ("; right of the dashed line, unsure." if thresholds.unsure is not None else "."): score_chart(findings),
        "What the scores could do at any threshold; the dot is this one. Dotted: guessing.": detection_chart(findings),
        "Promised against observed false alarms. A curve within the band is what chance leaves of a promise that is "
        f"kept, 95 times in 100 at each rate{folds}.": calibration_chart(findings),
    }
    figures = "".join(
        f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>\n" for caption, svg in charts.items() if svg
    )
    left_out = []
    if not findings.anomalous:
        left_out.append("no trade-off without images of defects")
    if not findings.good:
        left_out.append("no calibration curve without good test images")
    if not findings.good or not findings.anomalous:
        left_out.append("no ROC without both")
    remark = f"<p>There is {text(', and '.join(left_out))}.</p>\n" if left_out else ""
    return f'<div class="panels">\n{figures}</div>\n{remark}'


def _mistakes(findings: Findings) -> str:
    alarms, missed = findings.decisions.false_alarms, findings.decisions.missed
    return (
        "<p>The p-value tells how often a good image scores at least as high; the severity, how many deviations the "
        "score lies above that of a typical good image.</p>\n<h3>False alarms</h3>\n"
        + _worst(findings, findings.false_alarms, alarms, "good images", "the highest score first")
        + "<h3>Missed defects</h3>\n"
        + _worst(findings, findings.misses, missed, "images with a defect", "the lowest score first")
    )


def _worst(findings: Findings, shown: Sequence[Shown], wrong: Proportion, what: str, order: str) -> str:
    if not wrong.total:
        return f"<p>No {what} were tested.</p>\n"
    if not wrong.count:
        return f"<p>None of {wrong.total} {what}.</p>\n"
    part = f"{wrong.count} of {wrong.total} {what}"
    if len(shown) < wrong.count:
        number = len(shown) or "none"
        part += f", of which {number} {'are' if len(shown) > 1 else 'is'} shown"
    return f"<p>{part}{f', {order}' if len(shown) > 1 else ''}.</p>\n{_figures(findings, shown)}"


def _typical(findings: Findings) -> str:
    groups = "".join(
        f"<h3>{text(name)}</h3>\n{_figures(findings, shown)}" for name, shown in findings.typical.items() if shown
    )
    if not groups:
        return "<p>No image is shown.</p>\n"
    return f"<p>Of each type those whose scores are nearest the type's median.</p>\n{groups}"


def _figures(findings: Findings, shown: Sequence[Shown]) -> str:
    return f'<div class="panels">\n{"".join(_figure(findings, each) for each in shown)}</div>\n' if shown else ""


def _figure(findings: Findings, shown: Shown) -> str:
    judged = shown.judged
    name = findings.name(judged.sample.path)
    pictures = "".join(
        f'<span><img src="data:image/jpeg;base64,{b64encode(data).decode()}" alt="{text(f"{name}: {what}")}">'
        f"{text(what)}</span>"
        for what, data in shown.pictures.items()
    )
    return (
        f'<figure><div class="tiles">{pictures}</div><figcaption><strong>{text(name)}</strong><br>'
        f"{text(_numbers(judged))}</figcaption></figure>\n"
    )


def _numbers(judged: Judged) -> str:
    return f"{judged.verdict}; score {judged.score:.4g}, p-value {judged.p_value:.3g}, severity {judged.severity:.1f}"


def _data(findings: Findings) -> str:
    tested = Counter(image.sample.defect_type for image in findings.images)
    marked = Counter(image.sample.defect_type for image in findings.images if image.sample.mask is not None)
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{count}</td><td>{"" if name == GOOD else marked[name]}</td></tr>\n'
        for name, count in sorted(tested.items(), key=lambda item: (item[0] != GOOD, item[0]))
    )
    head = '<tr><th scope="col"></th><th scope="col">tested</th><th scope="col">with a mask</th></tr>\n'
    learned = findings.metadata["data"]
    folds = findings.calibration.folds
    parts = {
        "data set": findings.root.resolve().name,
        "learned from": f"{learned['images'] - learned['held_out']} good images of {learned['folder'] or 'memory'}",
        "thresholds from": f"{findings.calibration.images} good images" + (f" in {folds} folds" if folds else " more"),
        "left out": f"{findings.left_out} test images that the model learned from",
        "unreadable": f"{len(findings.skipped)} images",
    }
    skipped = "".join(
        f"<li><strong>{text(findings.name(Path(image.path)) if image.path else 'in memory')}</strong>: "
        f"{text(image.reason)}</li>\n"
        for image in findings.skipped
    )
    if skipped:
        skipped = f"<h3>Images that could not be read</h3>\n<ul>\n{skipped}</ul>\n"
    return f"{facts(parts)}<h3>Test images</h3>\n{table(head, rows, label='Test images')}{skipped}"


def _configuration(findings: Findings, model: str, files: Mapping[str, str]) -> str:
    metadata, thresholds = findings.metadata, findings.thresholds
    about = {
        "model": model,
        "made": f"{metadata['created'][:10]} by adtr {metadata['adtr']}",
        "preset": findings.config.preset,
        "image threshold": f"{thresholds.image:.6g}",
        "pixel threshold": f"{thresholds.pixel:.6g}",
    }
    if improvements := metadata.get("improvements"):
        about["improved with"] = ", ".join(dict.fromkeys(source for past in improvements for source in past["sources"]))
    versions = {**metadata["versions"], "python": metadata["python"]}
    groups: dict[str, dict[str, Any]] = {
        name: values for name, values in findings.config.to_dict().items() if isinstance(values, dict)
    }
    groups["versions at the fit"] = versions
    groups["versions of this report"] = {"adtr": adtr.__version__, "python": platform.python_version()}
    if files:
        groups["SHA-256 of the model's files"] = dict(files)
    lists = "".join(
        f'<div><h3>{text(name)}</h3>\n<table class="plain">\n{_pairs(values)}</table></div>\n'
        for name, values in groups.items()
    )
    return f'{facts(about)}<div class="groups">\n{lists}</div>\n'


def _pairs(values: Mapping[str, Any]) -> str:
    return "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{text(_value(value))}</td></tr>\n' for name, value in values.items()
    )


def _value(value: object) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


_STYLE = """
.verdict { max-width: 52rem; margin: 0; font-size: 1.2rem; }
main p, li { max-width: 52rem; overflow-wrap: anywhere; }
tr.all { font-weight: 600; border-top-width: 2px; }
tr.all th, tr.all td { font-weight: 600; }
tbody th { min-width: 11rem; max-width: 20rem; overflow-wrap: anywhere; white-space: normal; }
.range { position: relative; display: inline-block; width: 8rem; height: .9rem; vertical-align: middle;
  border-inline: 1px solid var(--line); print-color-adjust: exact; }
.range i { position: absolute; top: .3rem; height: .3rem; min-width: 1px; border-radius: .15rem;
  background: var(--accent); opacity: .35; }
.range b { position: absolute; top: .1rem; width: .7rem; height: .7rem; margin-left: -.35rem; border-radius: 50%;
  background: var(--accent); }
svg { display: block; width: 100%; height: auto; padding: .8rem .8rem 0; }
svg * { stroke-linejoin: round; stroke-linecap: butt; font-family: system-ui, -apple-system, "Segoe UI", sans-serif; }
.tiles { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: 2px; }
.tiles span { color: var(--soft); font-size: .75rem; text-align: center; }
figcaption strong { color: var(--ink); font-weight: 600; }
.panels { align-items: start; }
.tiles img { max-height: 15rem; object-fit: contain; }
.groups { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); gap: 0 2rem; }
.groups h3 { margin-bottom: .2rem; }
table.plain { font-size: .88rem; }
.plain th, .plain td { padding: .2rem 0; overflow-wrap: anywhere; white-space: normal; vertical-align: top; }
.plain th { min-width: 0; padding-right: 1rem; color: var(--soft); }
@media (max-width: 40rem) { .tiles { grid-auto-flow: row; grid-template-columns: 1fr 1fr; } }
@media print {
  :root { font-size: 13px; }
  body { padding: 0; }
  main .panels, .groups { grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
  th, td { padding-inline: .4rem; }
  main p { break-after: avoid; }
}
@page { margin: 1.5cm; }
"""

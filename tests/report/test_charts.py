"""Charts: well-formed, of the page's colours, and true to the numbers."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from darkness import SCORES, Darkness, write_parts

from adtr.errors import ConfigError
from adtr.report.charts import (
    calibration_chart,
    detection_chart,
    require_matplotlib,
    score_chart,
    trade_off_chart,
)
from adtr.report.gather import Findings, gather

CHARTS = [trade_off_chart, score_chart, detection_chart, calibration_chart]


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Findings:
    return gather(Darkness(unsure_rate=0.1), write_parts(tmp_path_factory.mktemp("data") / "parts", SCORES), panels=0)


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter() if element.tag.endswith("text")]


@pytest.mark.parametrize("chart", CHARTS)
def test_a_chart_is_an_element_of_the_page(chart, findings: Findings) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    svg = chart(findings)
    root = ET.fromstring(svg)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"]
    assert "width" not in root.attrib
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#000000"}  # all colours are the page's
    assert not re.search(r"(?:stroke|fill): #000000", svg)
    assert "var(--" in svg
    assert not re.search(r"<style|<script|<metadata|font-family", svg)
    addresses = re.findall(r'(?:href|src)="([^"]*)"', svg) + re.findall(r"url\(([^)]*)\)", svg)
    assert all(address.startswith("#") for address in addresses)
    assert chart(findings) == svg


def test_charts_tell_the_metrics_and_the_numbers_of_images(findings: Findings) -> None:
    titles = texts(detection_chart(findings) or "")
    assert f"ROC, AUROC {findings.metrics.image_auroc:.4f}" in titles
    assert f"Precision, AP {findings.metrics.image_ap:.4f}" in titles
    rows = texts(score_chart(findings) or "")
    assert {"held-out good (39)", "test good (9)", "crack (5)", "dent (4)"} <= set(rows)


def test_any_name_of_a_defect_can_be_drawn(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    scores = {"good": [10.0], "$x^2$": [50.0], "日本 <b>&": [40.0], "gr\udcfcn\u202e": [30.0], "n" * 80: [30.0]}
    findings = gather(Darkness(), write_parts(tmp_path / "parts", scores), panels=0)
    rows = texts(score_chart(findings) or "")
    assert {"$x^2$ (1)", "日本 <b>& (1)", r"gr\udcfcn\u202e (1)", f"{'n' * 23}… (1)"} <= set(rows)
    assert not recwarn.list


@pytest.mark.parametrize(("kind", "drawn"), [("good", [score_chart, calibration_chart]), ("dent", CHARTS[:2])])
def test_what_cannot_be_drawn_is_left_out(kind: str, drawn: list, tmp_path: Path) -> None:  # type: ignore[type-arg]
    findings = gather(Darkness(), write_parts(tmp_path / "parts", {kind: [7.0, 80.0]}), panels=0)
    assert [chart for chart in CHARTS if chart(findings)] == drawn


def test_the_extra_is_named_where_matplotlib_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'adtr\[report\]'"):
        require_matplotlib()

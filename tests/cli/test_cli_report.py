"""`adtr report`: one file for people."""

import json
import re
import shutil
from pathlib import Path

import pytest

from adtr.cli import main


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def test_the_report_has_the_numbers_of_evaluate(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, numbers = tmp_path / "new/report.html", tmp_path / "numbers.json"
    assert adtr("report", model, dataset, "-o", output) == 0
    out, err = capsys.readouterr()
    assert err == f"wrote {output}\n"
    assert out.startswith("Of 8 good images the model called ")
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]

    assert adtr("evaluate", model, dataset, "-o", numbers) == 0
    told = json.loads(numbers.read_text())
    page = output.read_text("utf-8")
    cells = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr class=.*?</tr>", page)]
    wrong = [told["false_alarms"], told["missed_per_type"]["dark"], told["missed"]]
    assert [row[:3] for row in cells] == [
        [f"{w['count']} of {w['total']}", f"{w['rate']:.1%}", f"{w['low']:.1%} to {w['high']:.1%}"] for w in wrong
    ]
    values = [f"{told[name]:.4f}" for name in ("image_auroc", "image_ap", "pixel_auroc", "aupro")]
    assert [row[4:] for row in cells] == [[""] * 4, values, values]


def test_the_rate_and_the_number_of_panels_are_the_users(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "report.html"
    assert adtr("report", model, dataset, "-o", output, "--false-alarm-rate", "0.4", "--panels", "0", "-q") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "It promises at most 36.4%." in out
    assert "base64" not in output.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "report.pdf"], "--output must end in .html, not 'report.pdf'"),
        (["--false-alarm-rate", "0.9"], "false_alarm_rate"),
        (["--panels", "-1"], "--panels"),
    ],
)
def test_mistakes_are_named_before_the_work(
    arguments: list[str],
    message: str,
    model: Path,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert adtr("report", model, dataset, *arguments) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_stops_the_work_or_is_named(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    (data / "test/good/002.png").write_bytes(b"")
    output = tmp_path / "report.html"
    assert adtr("report", model, data, "-o", output) == 2
    assert not output.exists()
    assert adtr("report", model, data, "-o", output, "--on-error", "skip") == 0
    assert "skipped 1 unreadable image(s)" in capsys.readouterr().err
    assert "test/good/002.png</strong>: " in output.read_text()

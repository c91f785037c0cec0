"""`adtr evaluate`: a table, JSON and panels."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.cli import main
from adtr.detector import AnomalyDetector

METRICS = ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro", "images", "anomalous"]
DECISIONS = ["threshold", "promised_rate", "false_alarms", "missed", "missed_per_type", "trade_off"]
RUN = ["skipped", *DECISIONS, "seconds", "model", "data"]


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


@pytest.fixture
def data(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be changed."""
    return Path(shutil.copytree(dataset, tmp_path / "data"))


def test_numbers_panels_and_counts(
    model: Path, detector: AnomalyDetector, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, panels = tmp_path / "new/report.json", tmp_path / "panels"
    assert adtr("evaluate", model, dataset, "-o", output, "--panels", panels) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(output.read_text())
    assert list(report) == [*METRICS, "per_type", *RUN]
    assert list(report["per_type"]) == ["dark"]
    assert list(report["per_type"]["dark"]) == METRICS
    assert (report["images"], report["anomalous"], report["skipped"]) == (16, 8, 0)

    expected = detector.evaluate(dataset).to_dict()
    for name in METRICS:
        assert report[name] == pytest.approx(expected[name], rel=1e-3)
        assert report["per_type"]["dark"][name] == report[name]  # the only type

    verdicts = {
        kind: [prediction.is_anomalous for prediction in detector.predict(dataset / "test" / kind)]
        for kind in ("good", "dark")
    }
    alarms, missed = report["false_alarms"], report["missed"]
    assert (alarms["count"], alarms["total"]) == (sum(verdicts["good"]), 8)
    assert (missed["count"], missed["total"]) == (8 - sum(verdicts["dark"]), 8)
    assert report["missed_per_type"] == {"dark": missed}
    assert missed["low"] <= missed["rate"] <= missed["high"]
    assert report["trade_off"][0] == {name: report[name] for name in DECISIONS[:-1]}  # the model asks for 1 %
    assert report["trade_off"][-1]["promised_rate"] == pytest.approx(5 / 11)
    assert report["threshold"] == detector.thresholds_.image
    told = out.splitlines()[-3:]
    assert told[0] == f"at the threshold {report['threshold']:.4g} (promised rate 9.1%):"
    assert told[1].startswith(f"false alarms   {alarms['count']} of 8 ({alarms['rate']:.1%}; 95 % interval ")
    assert told[2].startswith(f"missed defects {missed['count']} of 8 ({missed['rate']:.1%}; 95 % interval ")
    dark, everything = (line.split() for line in out.splitlines()[2:4])
    assert dark == ["dark", "16", *(f"{report[name]:.4f}" for name in METRICS[:6])]
    assert everything == ["all", *dark[1:]]

    pictures = sorted(path.relative_to(panels).as_posix() for path in panels.rglob("*.*"))
    assert pictures == [f"{kind}/{i:03}.jpg" for kind in ("dark", "good") for i in range(8)]
    for picture in pictures:
        with Image.open(panels / picture) as image:
            assert image.width > 3 * image.height > 0


def test_without_masks_only_images_are_judged(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(data / "ground_truth")
    output = tmp_path / "report.json"
    assert adtr("evaluate", model, data, "-o", output, "--panels", tmp_path / "panels") == 0
    report = json.loads(output.read_text())
    assert report["pixel_auroc"] is report["pixel_ap"] is report["aupro"] is None
    assert report["image_auroc"] > 0.5
    assert capsys.readouterr().out.splitlines()[2].split()[-3:] == ["-", "-", "-"]
    assert len(list((tmp_path / "panels").rglob("*.jpg"))) == 16


def test_a_mask_of_another_size_is_named_with_both_sizes(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask = data / "ground_truth/dark/003_mask.png"
    Image.fromarray(np.zeros((48, 96), np.uint8)).save(mask)
    assert adtr("evaluate", model, data, "-o", tmp_path / "report.json") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert str(mask) in err
    assert "48 x 96" in err
    assert "96 x 96" in err
    assert not (tmp_path / "report.json").exists()


def test_images_that_were_learned_from_do_not_count(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "flat"
    shutil.copytree(dataset / "train/good", data / "good")
    shutil.copytree(dataset / "test/dark", data / "dark [b] and a name much longer than a terminal line can ever hold")
    for i in range(3):
        shutil.copy(dataset / f"test/good/{i:03}.png", data / f"good/new-{i}.png")
    output = tmp_path / "report.json"
    assert adtr("evaluate", model, data, "-o", output) == 0
    report = json.loads(output.read_text())
    assert report["images"] - report["anomalous"] == 3
    out = capsys.readouterr().out
    assert "false alarms   0 of 3" in out
    # The long name is folded, not cut, and its brackets are no markup.
    first_column = "".join(re.split(r"\s{2,}", line)[0] for line in out.splitlines())
    assert "dark[b]andanamemuchlongerthanaterminallinecaneverhold" in first_column.replace(" ", "")

    for image in data.glob("good/new-*"):
        image.unlink()
    assert adtr("evaluate", model, data, "-o", output) == 0
    assert json.loads(output.read_text())["image_auroc"] is None
    assert adtr("evaluate", model, data / "good") == 2
    assert "no test images" in capsys.readouterr().err


def test_images_with_one_stem_have_a_panel_each_and_none_takes_an_image_s_place(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(data / "test/good/000.png").save(data / "test/good/000.jpg")
    before = (data / "test/good/000.jpg").read_bytes()
    assert adtr("evaluate", model, data, "--panels", data / "test") == 2
    assert f"{data / 'test/good/000.jpg'} would be overwritten" in capsys.readouterr().err
    assert (data / "test/good/000.jpg").read_bytes() == before
    assert adtr("evaluate", model, data, "--panels", tmp_path / "panels") == 0
    assert len(list((tmp_path / "panels/good").iterdir())) == 9


def test_an_unreadable_image_stops_the_work_or_is_skipped(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "test/good/002.png").write_bytes(b"")
    output = tmp_path / "report.json"
    assert adtr("evaluate", model, data, "-o", output) == 2
    assert not output.exists()
    assert f"cannot read image {data / 'test/good/002.png'}" in capsys.readouterr().err
    assert adtr("evaluate", model, data, "-o", output, "--on-error", "skip", "--quiet") == 0
    assert "skipped 1 unreadable image(s)" in capsys.readouterr().err
    report = json.loads(output.read_text())
    assert (report["images"], report["skipped"]) == (15, 1)

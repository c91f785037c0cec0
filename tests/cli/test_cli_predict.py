"""`adtr predict`: scores on stdout or in a file, anomaly maps, overlays."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adtr.cli import main
from adtr.cli.predict import FIELDS
from adtr.detector import AnomalyDetector
from conftest import good_image


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def images(dataset: Path, tmp_path: Path) -> Path:
    """A folder of four images, two of which have the same name."""
    for source, name in {
        "test/good/000.png": "a.png",
        "test/good/001.png": "deep/er/b.PNG",
        "test/dark/000.png": "deep/b.bmp",
        "test/dark/001.png": "deep/b.png",
    }.items():
        target = tmp_path / "images" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(dataset / source).save(target)
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/.hidden.png").write_text("no image")
    return tmp_path / "images"


def test_a_line_of_json_for_each_image_below_the_folders_and_nothing_else_on_stdout(
    model: Path, detector: AnomalyDetector, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [images / "deep", images / "a.png"]
    assert adtr("predict", model, *given) == 0
    out, err = capsys.readouterr()
    shown = rows(out)
    expected = [images / "deep/b.bmp", images / "deep/b.png", images / "deep/er/b.PNG", images / "a.png"]
    assert [row["path"] for row in shown] == [str(path) for path in expected]
    for row, prediction in zip(shown, detector.predict(expected), strict=True):
        assert list(row) == list(FIELDS)
        assert row["score"] == pytest.approx(prediction.score, rel=1e-5)
        assert row["threshold"] == prediction.thresholds.image
        assert row["p_value"] == prediction.p_value
        assert row["severity"] == pytest.approx(prediction.severity, rel=1e-3)
        assert row["verdict"] == prediction.verdict
        assert [region["box"] for region in row["regions"]] == [list(region.box) for region in prediction.regions]
        assert row["is_anomalous"] is (row["score"] > row["threshold"])
    assert [row["is_anomalous"] for row in shown[:2]] == [True, True]
    assert err == f"{sum(row['is_anomalous'] for row in shown)} of 4 images are anomalous\n"


def test_other_rates_change_the_verdicts_and_nothing_else(
    model: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adtr("predict", model, dataset / "test", "-q")
    before = rows(capsys.readouterr().out)
    assert adtr("predict", model, dataset / "test", "--false-alarm-rate", 0.2, "--unsure-rate", 0.5) == 0
    out, err = capsys.readouterr()
    after = rows(out)
    assert [row["p_value"] for row in after] == [row["p_value"] for row in before]
    for row in after:
        expected = "anomalous" if row["p_value"] <= 0.2 else "unsure" if row["p_value"] <= 0.5 else "good"
        assert row["verdict"] == expected
    unsure = sum(row["verdict"] == "unsure" for row in after)
    assert unsure > 0
    first, last = err.splitlines()
    assert "promises a false-alarm rate of at most 18.2%" in first
    assert last.endswith(f"of 16 images are anomalous, {unsure} unsure")


@pytest.mark.parametrize("rates", [["--false-alarm-rate", "0.7"], ["--unsure-rate", "0.001"], ["--unsure-rate", "2"]])
def test_impossible_rates_are_one_line(
    rates: list[str], model: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adtr("predict", model, images, *rates) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "_rate" in err


def test_regions_as_coco(model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = tmp_path / "new/regions.json"
    assert adtr("predict", model, dataset / "test", "--coco", coco) == 0
    shown = rows(capsys.readouterr().out)
    document = json.loads(coco.read_text())
    assert [image["file_name"] for image in document["images"]] == [
        Path(row["path"]).relative_to(dataset / "test").as_posix() for row in shown
    ]
    boxes = [annotation["bbox"] for annotation in document["annotations"]]
    assert boxes == [region["box"] for row in shown for region in row["regions"]]
    assert boxes


def test_quiet_leaves_the_results_alone(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("predict", model, images, "-q") == 0
    out, err = capsys.readouterr()
    assert len(rows(out)) == 4
    assert err == ""


def test_the_batch_size_changes_nothing(model: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adtr("predict", model, images)
    together = rows(capsys.readouterr().out)
    adtr("predict", model, images, "--batch-size", 1)
    for one, other in zip(together, rows(capsys.readouterr().out), strict=True):
        assert one["score"] == pytest.approx(other["score"], rel=1e-4)


@pytest.mark.parametrize("name", ["scores.jsonl", "scores.csv"])
def test_results_go_to_a_file_that_appears_when_it_is_complete(
    name: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, maps = tmp_path / "new" / name, tmp_path / "maps"
    assert adtr("predict", model, images, "-o", output, "--maps", maps) == 0
    assert capsys.readouterr().out == ""
    assert [path.name for path in output.parent.iterdir()] == [name]
    if name.endswith("csv"):
        with output.open(newline="") as file:
            table = list(csv.DictReader(file))
        assert list(table[0]) == [*FIELDS, "map"]
        assert all(row["regions"].isdigit() for row in table)
    else:
        table = rows(output.read_text())
    adtr("predict", model, images)
    shown = rows(capsys.readouterr().out)
    assert [row["path"] for row in table] == [row["path"] for row in shown]
    assert [float(row["score"]) for row in table] == pytest.approx([row["score"] for row in shown], rel=1e-5)
    assert [str(row["is_anomalous"]) for row in table] == [str(row["is_anomalous"]) for row in shown]
    assert all(Path(row["map"]).is_file() for row in table)


def test_maps_are_the_anomaly_maps_in_float32_at_the_images_size(
    model: Path, detector: AnomalyDetector, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, maps = tmp_path / "images", tmp_path / "maps"
    folder.mkdir()
    image = good_image(np.random.default_rng(3))
    Image.fromarray(image).resize((130, 41)).save(folder / "wide.png")
    Image.fromarray(image[..., 0].astype(np.uint16) * 257).save(folder / "deep.png")
    Image.fromarray(np.dstack([image, np.full(image.shape[:2], 128, np.uint8)])).save(folder / "clear.png")
    Image.fromarray(image[..., 0]).save(folder / "gray.jpg")
    Image.fromarray(image[:1, :1]).save(folder / "dot.png")
    assert adtr("predict", model, folder, "--maps", maps, "--overlays", tmp_path / "overlays") == 0
    shown = {Path(row["path"]).name: row for row in rows(capsys.readouterr().out)}
    assert set(shown) == {"wide.png", "deep.png", "clear.png", "gray.jpg", "dot.png"}
    for name, row in shown.items():
        prediction = detector.predict(folder / name)[0]
        with Image.open(row["map"]) as stored, Image.open(folder / name) as source:
            assert stored.mode == "F"
            assert stored.size == source.size
            np.testing.assert_allclose(np.asarray(stored), prediction.anomaly_map, rtol=1e-4)
        with Image.open(row["overlay"]) as overlay:
            assert (overlay.mode, overlay.size) == ("RGB", prediction.size[::-1])


def test_outputs_follow_the_folders_and_never_take_each_other_s_place(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maps, overlays = tmp_path / "maps", tmp_path / "overlays"
    assert adtr("predict", model, images, images / "a.png", "--maps", maps, "--overlays", overlays) == 0
    shown = rows(capsys.readouterr().out)
    names = ["a", "deep/b", "deep/b-2", "deep/er/b", "a-2"]
    assert [row["map"] for row in shown] == [str(maps / f"{name}.tiff") for name in names]
    assert [row["overlay"] for row in shown] == [str(overlays / f"{name}.jpg") for name in names]
    first, *others, again = [np.asarray(Image.open(row["map"])) for row in shown]  # a.png was given twice
    np.testing.assert_allclose(again, first, rtol=1e-4)
    assert not any(other.shape == first.shape and np.allclose(other, first, rtol=1e-4) for other in others)
    assert sum(path.is_file() for path in overlays.rglob("*")) == 5


def test_no_output_takes_the_place_of_an_image(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.open(images / "a.png").save(images / "deep/photo.jpg")
    before = {path: path.read_bytes() for path in images.rglob("*") if path.is_file()}
    assert adtr("predict", model, images, "--overlays", images, "--maps", tmp_path / "maps") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{images / 'deep/photo.jpg'} would be overwritten" in err
    assert {path: path.read_bytes() for path in images.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize("name", ["näme with späces.png", "日本.png", "per%cent#[b].png", "two  spaces.png"])
def test_any_name_goes_in_and_out(
    name: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = images / name
    shutil.copy(images / "a.png", image)
    assert adtr("predict", model, image, "--overlays", tmp_path / "overlays") == 0
    row = rows(capsys.readouterr().out)[0]
    assert row["path"] == str(image)
    assert Path(row["overlay"]).name == f"{image.stem}.jpg"
    assert Path(row["overlay"]).is_file()
    image.write_text("no image")
    assert adtr("predict", model, image) == 2
    assert f"cannot read image {image}: " in capsys.readouterr().err


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_name_that_is_not_unicode_is_no_obstacle(
    suffix: str, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = os.fsdecode(os.fsencode(images) + b"/gr\xfcn.png")
    shutil.copy(images / "a.png", image)
    output = tmp_path / f"scores.{suffix}"
    assert adtr("predict", model, image, "-o", output, "--maps", tmp_path / "maps") == 0
    assert adtr("predict", model, image) == 0
    assert rows(capsys.readouterr().out)[0]["path"] == image
    if suffix == "jsonl":
        assert rows(output.read_text("utf-8"))[0]["path"] == image
    assert b"gr\\udcfcn.png" in output.read_bytes()


def test_an_unreadable_image_stops_the_work_or_is_skipped_by_name(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torn = images / "deep/c.jpg"
    Image.open(images / "a.png").save(torn)
    torn.write_bytes(torn.read_bytes()[:400])
    output = tmp_path / "scores.csv"
    assert adtr("predict", model, images, "--batch-size", 1, "-o", output) == 2
    assert capsys.readouterr().err.startswith(f"adtr: error: cannot read image {torn}: ")
    assert not output.exists()
    assert len((tmp_path / "scores.csv.partial").read_text().splitlines()) == 1 + 3  # what was done before it

    assert adtr("predict", model, images, "--on-error", "skip", "-q", "-o", output) == 0
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "adtr: skipped 1 unreadable image(s):"
    assert err[1].startswith(f"  {torn}: ")
    assert len(err) == 2
    assert len(output.read_text().splitlines()) == 1 + 4
    assert not (tmp_path / "scores.csv.partial").exists()


def test_a_file_in_which_nothing_was_written_does_not_stay(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "a.png").write_text("no image")
    assert adtr("predict", model, images / "a.png", "-o", tmp_path / "scores.csv") == 2
    assert adtr("predict", model, images, "-o", tmp_path / "scores.csv", "--device", "warp") == 2
    assert "unknown device 'warp'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]

"""Files that show predictions: maps, overlays, panels, and how they are named."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.calibration import Thresholds
from adtr.data.folder import Sample
from adtr.errors import AdtrError
from adtr.evaluation import Evaluated
from adtr.learning.audit import Audit, AuditedImage
from adtr.prediction import Prediction
from adtr.report.sinks import output_paths, save_contact_sheet, save_map, save_overlay, save_panel


def prediction(size: tuple[int, int] = (40, 64), *, score: float = 30.0) -> Prediction:
    """Good on the left, anomalous on the right."""
    score_map = np.array([[1.0, 1.0, 1.0, 30.0]] * 4, np.float32)
    thresholds = Thresholds(image=10.0, pixel=20.0, images=9, false_alarm_rate=0.1, promised_rate=0.1)
    return Prediction(score=score, p_value=0.5, severity=0.0, thresholds=thresholds, size=size, score_map=score_map)


def gray(size: tuple[int, int] = (40, 64)) -> Image.Image:
    return Image.new("RGB", size[::-1], (128, 128, 128))


@pytest.mark.parametrize("size", [(40, 64), (1, 1), (1, 700), (3, 2)])
def test_a_map_is_stored_to_the_last_bit(size: tuple[int, int], tmp_path: Path) -> None:
    path = save_map(prediction(size), tmp_path / "new" / "map.tiff")
    assert path == tmp_path / "new" / "map.tiff"
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("TIFF", "F", size[::-1])
        np.testing.assert_array_equal(np.asarray(image), prediction(size).anomaly_map)


def test_an_overlay_warms_and_outlines_what_is_anomalous_alone(tmp_path: Path) -> None:
    size = (400, 640)
    path = save_overlay(prediction(size), gray(size), tmp_path / "overlay.jpg")
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (640, 400))
        row = np.asarray(image)[200].astype(int)
    left, right = row[:200], row[580:620]
    assert abs(left - 128).max() < 8
    assert (right[:, 0] - right[:, 2]).mean() > 30  # redder than blue
    green = np.flatnonzero(row[:600, 1] - row[:600, 0] > 100)  # the outline, where the map crosses the threshold
    crossing = int(np.flatnonzero(prediction(size).mask[200])[0])
    assert green[0] <= crossing <= green[-1] + 1
    assert green[-1] - green[0] < 12


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (700, 1), (3, 2)])
def test_any_size_can_be_shown(size: tuple[int, int], tmp_path: Path) -> None:
    with Image.open(save_overlay(prediction(size), gray(size), tmp_path / "overlay.jpg")) as image:
        assert image.size == size[::-1]
    item = Evaluated(sample=Sample(path=Path("a.png")), prediction=prediction(size), image=gray(size))
    with Image.open(save_panel(item, tmp_path / "panel.jpg")) as image:
        assert image.width < 5000


@pytest.mark.parametrize("name", ["a.png", "日本 [b].png", "gr\udcfcn.png"])
def test_a_panel_shows_image_truth_and_map(name: str, tmp_path: Path) -> None:
    mask = np.zeros((40, 64), np.uint8)
    mask[:, 56:] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    panels = []
    for mask_path in (tmp_path / "mask.png", None):
        sample = Sample(path=Path(name), defect_type="dent", mask=mask_path)
        item = Evaluated(sample=sample, prediction=prediction(), image=gray())
        with Image.open(save_panel(item, tmp_path / "panels/panel.jpg")) as image:
            assert image.format == "JPEG"
            panels.append(np.asarray(image.convert("L")).astype(int))
    marked, unmarked = panels
    assert marked.shape == unmarked.shape
    quarter = marked.shape[1] // 4
    differs = (abs(marked - unmarked) > 20).any(axis=0)
    assert differs[quarter + 20 : 2 * quarter - 20].mean() > 0.8  # the truth is the second of the four pictures
    assert not differs[:quarter].any()
    assert not differs[2 * quarter + 20 :].any()


def test_a_panel_s_title_tells_the_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    titles = []

    def panel(image: Image.Image, *_: object, title: str, **__: object) -> Image.Image:
        titles.append(title)
        return image

    monkeypatch.setattr("adtr.report.sinks.panel", panel)
    for score in (30.0, 10.0):
        item = Evaluated(sample=Sample(path=Path("x/a.png")), prediction=prediction(score=score), image=gray())
        save_panel(item, tmp_path / "panel.jpg")
    assert titles == ["good/a.png   30 > 10   anomalous", "good/a.png   10 <= 10   good"]


def test_names_are_numbered_where_two_would_be_the_same() -> None:
    names = [Path(name) for name in ("a.png", "d/a.png", "a.jpg", "a-2.bmp", "a.b.png", "a")]
    paths = output_paths([Path("in") / name for name in names], names, Path("out"), ".tiff")
    expected = ["a.tiff", "d/a.tiff", "a-2.tiff", "a-2-2.tiff", "a.b.tiff", "a-3.tiff"]
    assert [path.relative_to("out").as_posix() for path in paths] == expected


def test_no_output_takes_the_place_of_an_image(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    images = [tmp_path / "a.png", tmp_path / "b.jpg"]
    names = [Path(image.name) for image in images]
    with pytest.raises(AdtrError, match=r"b\.jpg would be overwritten"):
        output_paths(images, names, tmp_path / "link", ".jpg")
    assert output_paths(images, names, tmp_path, ".tiff") == [tmp_path / "a.tiff", tmp_path / "b.tiff"]


def test_a_contact_sheet_shows_the_first_of_an_audit(tmp_path: Path) -> None:
    hot = np.zeros((4, 4), np.float32)
    hot[0, 0] = 40
    images = []
    for rank in range(1, 10):
        gray((40, 64)).save(tmp_path / f"{rank}.png")
        images.append(
            AuditedImage(source=tmp_path / f"{rank}.png", rank=rank, score=20 - rank, severity=1.0, score_map=hot)
        )
    audit = Audit(images=images, copies=[], typical_maximum=20.0, skipped=[], seconds=0.0)
    widths = []
    for top in (1, 4, 100):
        path = save_contact_sheet(audit, tmp_path / "new/contact.jpg", top)
        with Image.open(path) as sheet:
            assert sheet.format == "JPEG"
            widths.append(sheet.size)
    (one, low), (four, _), (six, two_rows) = widths
    assert (four, six, two_rows) == (4 * one, 6 * one, 2 * low)

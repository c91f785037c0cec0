"""What a report tells: counts, order, memory."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from darkness import SCORES, Darkness, names, write_parts
from PIL import Image

from adtr.errors import DataError, ImageError
from adtr.evaluation import Evaluated
from adtr.metrics import GOOD
from adtr.report.gather import TYPICAL, gather


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "parts", SCORES, masks=["crack", "dent"])


def test_mistakes_come_worst_first_and_no_more_than_asked_for(parts: Path) -> None:
    findings = gather(Darkness(), parts)
    assert names(findings.false_alarms) == ["good/008", "good/007"]
    assert names(findings.misses) == ["crack/000", "dent/000", "dent/001"]
    assert (findings.decisions.false_alarms.count, findings.decisions.missed.count) == (2, 3)
    few = gather(Darkness(), parts, panels=1)
    assert names(few.false_alarms) == ["good/008"]
    assert names(few.misses) == ["crack/000"]
    assert few.decisions == findings.decisions
    none = gather(Darkness(), parts, panels=0)
    assert not any([none.false_alarms, none.misses, *none.typical.values()])


def test_typical_images_lie_nearest_the_median_of_their_type(parts: Path) -> None:
    typical = gather(Darkness(), parts).typical
    assert list(typical) == [GOOD, "crack", "dent"]
    for kind, shown in typical.items():
        middle = np.median(SCORES[kind])
        assert len(shown) == TYPICAL
        distances = sorted(abs(score - middle) for score in SCORES[kind])
        assert [abs(each.judged.score - middle) for each in shown] == distances[:TYPICAL]


def test_pictures_show_the_image_and_the_truth_where_there_is_one(parts: Path) -> None:
    shutil.rmtree(parts / "ground_truth/dent")
    findings = gather(Darkness(), parts)
    with_truth, without = ["image", "truth", "anomaly map", "marked"], ["image", "anomaly map", "marked"]
    assert [list(shown.pictures) for shown in findings.misses] == [with_truth, without, without]
    assert all(list(shown.pictures) == without for shown in findings.false_alarms)
    for name, data in findings.misses[0].pictures.items():
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.format == "JPEG"
            assert picture.width == picture.height * 3 // 2
            center = np.asarray(picture.convert("L"))[picture.height // 2, picture.width // 3]
        if name == "truth":
            assert center > 250
        if name == "image":
            assert center == pytest.approx(240, abs=4)


def test_no_image_is_kept(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gc
    import weakref

    seen: list[weakref.ref[object]] = []
    most = 0
    evaluate_each = Darkness.evaluate_each

    def watched(self: Darkness, *arguments: object, **options: object) -> object:
        nonlocal most
        for item in evaluate_each(self, *arguments, **options):  # type: ignore[arg-type]
            assert isinstance(item, Evaluated)
            seen.append(weakref.ref(item.prediction))
            yield item
            del item
            gc.collect()
            most = max(most, sum(prediction() is not None for prediction in seen))

    monkeypatch.setattr(Darkness, "evaluate_each", watched)
    gather(Darkness(), parts)
    assert len(seen) == 18
    assert most <= 2  # the one that is being judged, and the one before


def test_an_unreadable_image_stops_the_work_or_is_named(parts: Path) -> None:
    broken = parts / "test/good/003.png"
    broken.write_bytes(b"")
    with pytest.raises(ImageError):
        gather(Darkness(), parts)
    findings = gather(Darkness(), parts, on_error="skip")
    assert [image.path for image in findings.skipped] == [broken]
    assert (len(findings.images), findings.left_out) == (17, 0)
    assert findings.name(broken) == "test/good/003.png"


def test_images_that_were_learned_from_are_counted(parts: Path) -> None:
    from adtr.data.folder import content_hash

    detector = Darkness()
    detector.metadata_["data"]["image_hashes"] = [content_hash(parts / "test/good/000.png")]
    findings = gather(detector, parts)
    assert (len(findings.images), findings.left_out) == (17, 1)


@pytest.mark.parametrize("kinds", [["good"], ["crack", "dent"]])
def test_with_one_half_of_the_truth_the_rest_is_told(kinds: list[str], tmp_path: Path) -> None:
    findings = gather(Darkness(), write_parts(tmp_path / "parts", {kind: SCORES[kind] for kind in kinds}))
    assert findings.metrics.image_auroc is None
    assert list(findings.typical) == kinds
    assert bool(findings.good) == ("good" in kinds)
    assert bool(findings.anomalous) == ("crack" in kinds)


def test_no_test_images_at_all(tmp_path: Path) -> None:
    good = tmp_path / "parts/train/good"
    good.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(good / "a.png")
    with pytest.raises(DataError, match="no test images"):
        gather(Darkness(), tmp_path / "parts")


def test_the_numbers_are_those_of_evaluate(model: Path, dataset: Path, tmp_path: Path) -> None:
    from adtr.cli import main
    from adtr.detector import AnomalyDetector

    with pytest.raises(SystemExit):
        main(["evaluate", str(model), str(dataset), "-o", str(tmp_path / "numbers.json"), "--false-alarm-rate", "0.2"])
    told = json.loads((tmp_path / "numbers.json").read_text())
    detector = AnomalyDetector.load(model)
    detector.set_rates(0.2)
    findings = gather(detector, dataset)
    ours = {
        **findings.metrics.to_dict(),
        **findings.decisions.to_dict(),
        "trade_off": [point.to_dict() for point in findings.trade_off],
    }
    assert ours == {name: told[name] for name in ours}

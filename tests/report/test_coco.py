import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adtr.calibration import Thresholds
from adtr.data.anomalies import open_anomalies
from adtr.prediction import Prediction
from adtr.report.coco import CocoRegions, run_lengths


def prediction(seed: int) -> Prediction:
    grid = np.random.default_rng(seed).random((6, 6), np.float32)
    thresholds = Thresholds(image=0.5, pixel=0.6, images=9, false_alarm_rate=0.1, promised_rate=0.1)
    return Prediction(score=0.7, p_value=0.1, severity=2.0, thresholds=thresholds, size=(40, 60), score_map=grid)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 10**6), st.sampled_from([0.0, 0.5, 1.0]))
@settings(deadline=None)
def test_run_lengths_go_down_the_columns(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    counts = run_lengths(mask)
    marked = np.arange(len(counts)) % 2 == 1
    np.testing.assert_array_equal(np.repeat(marked, counts).reshape(width, height).T, mask)
    assert all(count > 0 for count in counts[1:])


def test_the_file_is_read_again_as_the_same_pixels(tmp_path: Path) -> None:
    regions, expected = CocoRegions(), {}
    for seed in range(3):
        name = Path("bent") / f"{seed}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (60, 40)).save(tmp_path / name)
        regions.add(name, prediction(seed))
        expected[tmp_path / name] = prediction(seed).mask
    (tmp_path / "regions.json").write_text(json.dumps(regions.to_dict()))
    samples = open_anomalies(tmp_path, annotations=tmp_path / "regions.json").samples
    assert {sample.path for sample in samples} == set(expected)
    for sample in samples:
        np.testing.assert_array_equal(sample.read_mask((40, 60)), expected[sample.path])


def test_each_region_is_one_annotation() -> None:
    regions, found = CocoRegions(), prediction(0)
    regions.add(Path("a.png"), found)
    regions.add(Path("b.png"), prediction(1))
    document = regions.to_dict()
    first = [annotation for annotation in document["annotations"] if annotation["image_id"] == 1]
    assert [tuple(annotation["bbox"]) for annotation in first] == [region.box for region in found.regions]
    assert [annotation["area"] for annotation in first] == [sum(a["segmentation"]["counts"][1::2]) for a in first]
    assert [annotation["id"] for annotation in document["annotations"]] == list(range(1, len(regions.annotations) + 1))
    assert document["images"][0] | {"score": 0.7, "verdict": "anomalous"} == document["images"][0]
    assert [annotation["score"] for annotation in first] == pytest.approx([region.peak for region in found.regions])

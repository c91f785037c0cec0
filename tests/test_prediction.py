import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from adtr.calibration import Thresholds
from adtr.prediction import Prediction, upsample

GRID = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)


def prediction(**values: object) -> Prediction:
    fields: dict[str, Any] = {"score": 3.0, "p_value": 0.1, "severity": 1.0, "size": (6, 8), "score_map": GRID}
    return Prediction(**{**fields, "thresholds": thresholds(), **values})


def thresholds(image: float = 2.0, pixel: float = 2.0, unsure: float | None = None) -> Thresholds:
    return Thresholds(image=image, pixel=pixel, images=19, false_alarm_rate=0.1, promised_rate=0.1, unsure=unsure)


@given(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 90)] * 2), st.integers(0, 1000))
@settings(deadline=None, max_examples=150)
def test_upsampling_is_torchs_bilinear(grid: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    values = np.random.default_rng(seed).random(grid, np.float32)
    got = upsample(values, size)
    expected = functional.interpolate(torch.from_numpy(values)[None, None], size, mode="bilinear", align_corners=False)
    assert got.shape == size
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected[0, 0].numpy(), atol=2e-5)


def test_upsampling_by_hand() -> None:
    np.testing.assert_allclose(upsample(np.array([[0.0, 4.0]], np.float32), (1, 4)), [[0, 1, 3, 4]])


def test_a_single_value_fills_the_image() -> None:
    assert (upsample(np.full((1, 1), 3.0, np.float32), (5, 7)) == 3).all()


def test_upsampling_never_leaves_the_maps_range() -> None:
    values = np.random.default_rng(0).random((16, 16), np.float32)
    big = upsample(values, (301, 257))
    assert big.max() <= values.max() * (1 + 1e-6)
    assert big.min() >= values.min() * (1 - 1e-6)


def test_the_anomaly_map_has_the_images_own_shape() -> None:
    result = prediction(size=(31, 57))
    assert result.anomaly_map.shape == (31, 57)
    assert result.anomaly_map.dtype == np.float32
    assert result.anomaly_map is result.anomaly_map  # made once
    np.testing.assert_array_equal(result.anomaly_map, upsample(GRID, (31, 57)))


def test_the_mask_follows_the_pixel_threshold_strictly() -> None:
    result = prediction(score_map=np.full((1, 1), 2.0, np.float32), thresholds=thresholds(-1.0, 2.0))
    assert result.mask.dtype == np.bool_
    assert result.mask.shape == (6, 8)
    assert not result.mask.any()
    mixed = prediction(thresholds=thresholds(pixel=1.5))
    np.testing.assert_array_equal(mixed.mask, mixed.anomaly_map > 1.5)
    assert mixed.mask.any()
    assert not mixed.mask.all()


def test_the_verdict_follows_the_image_threshold_strictly() -> None:
    assert prediction(score=2.5).is_anomalous is True
    assert prediction(score=2.0, thresholds=thresholds(pixel=0.0)).is_anomalous is False


def test_an_unsure_image_is_not_anomalous() -> None:
    between = thresholds(image=2.0, unsure=1.0)
    assert [prediction(score=score, thresholds=between).verdict for score in (1, 2, 3)] == [
        "good",
        "unsure",
        "anomalous",
    ]
    assert [prediction(score=score, thresholds=between).is_anomalous for score in (1, 2, 3)] == [False, False, True]


def test_regions_are_those_of_the_mask() -> None:
    grid = np.zeros((8, 8), np.float32)
    grid[1, 1], grid[5, 6] = 4.0, 9.0
    result = prediction(score_map=grid, size=(80, 160))
    assert len(result.regions) == 2
    assert result.regions[0].peak == result.anomaly_map.max()
    assert result.regions[0].peak > result.regions[1].peak > 2
    assert sum(region.area for region in result.regions) == result.mask.sum()
    assert ((result.region_labels > 0) == result.mask).all()
    assert prediction(thresholds=thresholds(pixel=99.0)).regions == []


def test_predictions_are_frozen_and_keep_their_maps_out_of_the_repr() -> None:
    result = prediction()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.score = 0.0  # type: ignore[misc]
    assert "score=3.0" in repr(result)
    assert "score_map" not in repr(result)


def test_predictions_can_be_compared_and_counted() -> None:
    first, second = prediction(), prediction()
    assert first in [second, first]
    assert len({first, second, first}) == 2

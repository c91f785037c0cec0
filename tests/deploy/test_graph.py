"""The resize inside the graph, against Pillow's."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adtr.data import images
from adtr.deploy.graph import DetectorGraph, Outputs, resize
from adtr.detector import AnomalyDetector
from conftest import defect_image

SIDES = st.integers(1, 90)


@settings(max_examples=60, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.booleans(), st.integers(0, 2**32 - 1))
def test_the_resize_is_pillows(source: tuple[int, int], target: tuple[int, int], square: bool, seed: int) -> None:
    if square:
        source, target = (min(source), max(source)), (target[0], target[0])
    pixels = np.random.default_rng(seed).integers(0, 256, (*source, 3), np.uint8)
    expected = images.resize(Image.fromarray(pixels), target)
    resized = resize(torch.from_numpy(pixels)[None], target)[0].permute(1, 2, 0).numpy()
    if square:
        np.testing.assert_array_equal(resized, expected)
    else:  # Pillow may resize the columns first, and so round in another order
        assert np.abs(resized - expected.astype(np.float32)).max() <= 1


def test_a_large_image_of_noise_is_resized_as_pillow_does() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (700, 1100, 3), np.uint8)
    expected = images.resize(Image.fromarray(pixels), (256, 256))
    resized = resize(torch.from_numpy(pixels)[None], (256, 256))[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(resized, expected)


def test_images_of_network_size_stay_as_they_are() -> None:
    pixels = torch.randint(0, 256, (2, 24, 40, 3), dtype=torch.uint8)
    assert torch.equal(resize(pixels, (24, 40)), pixels.permute(0, 3, 1, 2).float())


def test_the_graph_decides_as_the_detector_does(detector: AnomalyDetector) -> None:
    graph = DetectorGraph(detector.network_).eval()
    graph.set_thresholds(detector.thresholds_)
    rng = np.random.default_rng(1)
    for pixels in (defect_image(rng, 80)[0], defect_image(rng, 150)[0][:, 30:]):
        prediction = detector.predict(pixels)[0]
        with torch.no_grad():
            outputs = Outputs(*graph(torch.from_numpy(pixels.copy())[None]))
        assert float(outputs.score[0]) == pytest.approx(prediction.score, rel=1e-3)
        assert bool(outputs.is_anomalous[0]) == prediction.is_anomalous
        np.testing.assert_allclose(outputs.score_map[0], prediction.score_map, rtol=1e-3)
        np.testing.assert_allclose(outputs.anomaly_map[0], prediction.anomaly_map, rtol=1e-3)
        assert outputs.mask[0].shape == pixels.shape[:2]
        np.testing.assert_array_equal(outputs.mask[0], prediction.mask)

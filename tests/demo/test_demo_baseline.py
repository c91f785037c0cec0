from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.demo.baseline import MeanImageBaseline
from adtr.errors import DataError, ImageError


def images(count: int = 5, side: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def test_the_map_is_the_smoothed_distance_to_the_mean() -> None:
    *good, image = images()
    mean = sum(x.astype(float) for x in good) / len(good)
    distance = np.sqrt(((image - mean) ** 2).sum(axis=2))
    score_map = MeanImageBaseline().fit(good).score_map(image)
    assert score_map.dtype == np.float32
    assert score_map.shape == (64, 64)
    # 64 / 16 = 4 pixels: the box around (r, c) reaches from r - 2 to r + 1.
    for row, column in [(2, 2), (10, 31), (40, 7), (62, 62)]:
        box = distance[row - 2 : row + 2, column - 2 : column + 2]
        assert score_map[row, column] == pytest.approx(box.mean(), rel=1e-5)


def test_the_score_is_the_maximum_of_the_map() -> None:
    *good, image = images()
    baseline = MeanImageBaseline().fit(good)
    assert baseline.score(image) == baseline.score_map(image).max() > 0


def test_the_mean_itself_scores_zero() -> None:
    image = images(1)[0]
    assert MeanImageBaseline().fit([image, image]).score(image) == 0


def test_paths_and_arrays_are_the_same(tmp_path: Path) -> None:
    *good, image = images()
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, pixels in zip(paths, [*good, image], strict=True):
        Image.fromarray(pixels).save(path)
    from_paths, from_arrays = MeanImageBaseline().fit(paths[:-1]), MeanImageBaseline().fit(good)
    np.testing.assert_array_equal(from_paths.mean_, from_arrays.mean_)
    np.testing.assert_array_equal(from_paths.score_map(paths[-1]), from_arrays.score_map(image))


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one image"):
        MeanImageBaseline().fit([])
    with pytest.raises(DataError, match="one size"):
        MeanImageBaseline().fit([images(1, 64)[0], images(1, 32)[0]])
    with pytest.raises(DataError, match="shape"):
        MeanImageBaseline().fit(images(1, 64)).score_map(images(1, 32)[0])
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken\.png"):
        MeanImageBaseline().fit([tmp_path / "broken.png"])

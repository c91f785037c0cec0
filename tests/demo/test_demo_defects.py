import numpy as np
import pytest

from adtr.demo.defects import DEFECTS, VISIBLE_LEVELS, _clean
from adtr.errors import DataError


def surface(seed: int = 0, side: int = 128) -> np.ndarray:
    """Diagonal stripes with grain: textured in every direction that a smear can take."""
    rows, columns = np.mgrid[:side, :side]
    gray = 110 + 45 * np.sign(np.sin((rows + 2 * columns) / 6)) + np.random.default_rng(seed).normal(0, 4, (side, side))
    return np.repeat(np.clip(gray, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


@pytest.fixture(params=sorted(DEFECTS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_there_are_at_least_five_kinds() -> None:
    assert len(DEFECTS) >= 5


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_marks_what_changed_and_only_that(kind: str, seed: int) -> None:
    image = surface(seed)
    drawn, mask = DEFECTS[kind](image, np.random.default_rng(seed))
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert mask.shape == image.shape[:2]
    assert mask.dtype == np.bool_
    assert 0 < mask.mean() < 0.5
    change = np.abs(drawn.astype(int) - image).max(axis=2)
    assert change[~mask].max() <= VISIBLE_LEVELS
    assert change[mask].mean() > 2 * VISIBLE_LEVELS
    assert change[mask].mean() > 20 * change[~mask].mean()


def test_the_input_stays_as_it_was(kind: str) -> None:
    image = surface()
    before = image.copy()
    DEFECTS[kind](image, np.random.default_rng(1))
    np.testing.assert_array_equal(image, before)


def test_the_generator_decides_everything(kind: str) -> None:
    (first, first_mask), (again, again_mask), (other, _) = (
        DEFECTS[kind](surface(), np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first_mask, again_mask)
    assert (first != other).any()


def test_images_need_not_be_square(kind: str) -> None:
    image = surface(side=160)[:96]
    drawn, mask = DEFECTS[kind](image, np.random.default_rng(2))
    assert drawn.shape == (96, 160, 3)
    assert mask.shape == (96, 160)
    assert mask.any()


@pytest.mark.parametrize("name", ["stain", "crack", "misplaced", "smear"])
def test_what_cannot_be_seen_is_refused(name: str) -> None:
    black = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(DataError, match=f"{name} stays invisible"):
        DEFECTS[name](black, np.random.default_rng(0))


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_other_arrays_are_refused(kind: str, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        DEFECTS[kind](image, np.random.default_rng(0))


def test_cleaning_fills_holes_drops_specks_and_keeps_the_border() -> None:
    mask = np.zeros((100, 100), bool)
    mask[0:20, 0:20] = True
    mask[8:12, 8:12] = False  # a hole
    mask[60, 60] = True  # a speck
    expected = np.zeros((100, 100), bool)
    expected[0:20, 0:20] = True
    np.testing.assert_array_equal(_clean(mask), expected)

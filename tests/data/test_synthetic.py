import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from adtr.data import synthetic
from adtr.data.synthetic import (
    MIN_SIDE,
    SYNTHETIC,
    _gradient_noise,
    _rearrange,
    _recolour,
    _rectangle,
    _until_visible,
    blend,
    confetti,
    scar,
)
from adtr.errors import DataError

kinds = pytest.mark.parametrize("kind", SYNTHETIC)


def flat(level: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


def rough(seed: int = 0, height: int = 64, width: int = 64, low: int = 0, high: int = 256) -> np.ndarray:
    """Coloured noise."""
    return np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8)


@st.composite
def images(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """An image and a donor, the same one or another, of any contents."""
    height, width = draw(st.integers(MIN_SIDE, 70)), draw(st.integers(MIN_SIDE, 70))
    contents = {
        "black": flat(0, height, width),
        "white": flat(255, height, width),
        "gray": flat(7, height, width),
        "noise": rough(draw(st.integers(0, 9)), height, width),
        "gray noise": np.repeat(rough(3, height, width)[..., :1], 3, axis=2),
        "dark noise": rough(5, height, width, high=4),
    }
    image, donor = (contents[draw(st.sampled_from(sorted(contents)))] for _ in range(2))
    for array in (image, donor):
        array.flags.writeable = False
    return image, donor


@pytest.fixture
def rectangles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[float, float], float]]:
    """Size and angle of every rectangle that is drawn."""
    drawn = []

    def spy(shape: tuple[int, ...], center: np.ndarray, size: tuple[float, float], angle: float) -> object:
        drawn.append((size, angle))
        return _rectangle(shape, center, size, angle)

    monkeypatch.setattr(synthetic, "_rectangle", spy)
    return drawn


class TestEveryKind:
    @kinds
    @settings(max_examples=60, deadline=None)
    @given(pair=images(), seed=st.integers(0, 2**32))
    def test_the_mask_is_what_changed(self, kind: str, pair: tuple[np.ndarray, np.ndarray], seed: int) -> None:
        image, donor = pair
        before = image.copy(), donor.copy()
        drawn, mask = SYNTHETIC[kind](image, donor, np.random.default_rng(seed))
        assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
        assert (mask.shape, mask.dtype) == (image.shape[:2], np.bool_)
        assert mask.any()
        assert np.array_equal(mask, (drawn != image).any(axis=2))
        assert np.array_equal(image, before[0])
        assert np.array_equal(donor, before[1])
        assert not np.shares_memory(drawn, image)

    @kinds
    def test_the_generator_decides_everything(self, kind: str) -> None:
        (first, first_mask), (again, again_mask), (other, _) = (
            SYNTHETIC[kind](rough(0), rough(1), np.random.default_rng(seed)) for seed in (5, 5, 6)
        )
        assert np.array_equal(first, again)
        assert np.array_equal(first_mask, again_mask)
        assert (first != other).any()

    @pytest.mark.parametrize(("kind", "shows"), [("confetti", False), ("scar", True), ("blend", True)])
    def test_the_donor_shows(self, kind: str, shows: bool) -> None:
        image, donors = flat(120), (rough(1), rough(2))
        first, second = (SYNTHETIC[kind](image, donor, np.random.default_rng(3))[0] for donor in donors)
        assert (first != second).any() == shows

    @kinds
    @pytest.mark.parametrize(
        "image", [flat(9)[..., 0], flat(9).astype(np.float32), flat(9)[..., :2], flat(9, MIN_SIDE - 1)]
    )
    def test_other_arrays_are_refused(self, kind: str, image: np.ndarray) -> None:
        with pytest.raises(ValueError, match="image must be uint8"):
            SYNTHETIC[kind](image, image, np.random.default_rng(0))

    @kinds
    @pytest.mark.parametrize("donor", [flat(9, 64, 63), flat(9).astype(np.float32)])
    def test_other_donors_are_refused(self, kind: str, donor: np.ndarray) -> None:
        with pytest.raises(ValueError, match="donor must be like the image"):
            SYNTHETIC[kind](flat(9), donor, np.random.default_rng(0))

    @pytest.mark.parametrize("kind", [scar, blend])
    @pytest.mark.parametrize("level", [0, 128, 255])
    def test_on_a_plain_surface_it_can_be_seen(self, kind: synthetic.Synthesis, level: int) -> None:
        for seed in range(20):
            drawn, mask = kind(flat(level), flat(level), np.random.default_rng(seed))
            assert np.abs(drawn.astype(int) - level)[mask].mean() > 10


class TestAttempts:
    @staticmethod
    def changes(faint: float, levels: list[int]) -> tuple[int, int]:
        """The change that is taken where the attempts change one pixel by these levels, and the number of attempts."""
        attempts = itertools.count()

        @_until_visible(faint)
        def draw(image: np.ndarray, _donor: np.ndarray, _rng: np.random.Generator) -> np.ndarray:
            drawn = image.copy()
            attempt = next(attempts)
            drawn[3, 4] += np.uint8(levels[attempt] if attempt < len(levels) else 0)
            return drawn

        drawn, mask = draw(flat(9), flat(9), np.random.default_rng(0))
        assert mask.sum() == 1
        return int(drawn[3, 4, 0]) - 9, next(attempts)

    def test_the_first_visible_one_is_taken(self) -> None:
        assert self.changes(10, [4, 10, 11, 50]) == (11, 3)

    def test_else_the_strongest(self) -> None:
        assert self.changes(10, [0, 4, 7, 5]) == (7, 30)

    def test_nothing_at_all_is_an_error(self) -> None:
        with pytest.raises(DataError, match="draw changes nothing visible on an image of 64 x 64 pixels: use"):
            self.changes(10, [0])


class TestConfetti:
    @pytest.mark.parametrize("shape", [(48, 48), (30, 90)])
    def test_squares(self, shape: tuple[int, int], rectangles: list[tuple[tuple[float, float], float]]) -> None:
        draws, scale = 500, min(shape) / 240
        for seed in range(draws):
            before = len(rectangles)
            synthetic._confetti_squares(shape, np.random.default_rng(seed))
            assert len(rectangles) - before >= 2, "one of each layer"
        # Poisson numbers, given that they are not zero.
        expected = sum(rate / (1 - np.exp(-rate)) for rate in (1.8e-5 * 240**2, 1.2e-5 * 240**2))
        assert len(rectangles) / draws == pytest.approx(expected, abs=0.2)
        sizes, angles = np.array([size for size, _ in rectangles]), np.array([angle for _, angle in rectangles])
        assert (sizes[:, 0] == sizes[:, 1]).all()
        assert sizes.min() == pytest.approx(max(8 * scale, 1))
        assert sizes.max() == pytest.approx(54 * scale)
        assert sizes.mean() == pytest.approx(31 * scale, rel=0.06)
        assert -45 <= angles.min() < -43
        assert 43 < angles.max() <= 45

    def test_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fields = []
        for layers in (synthetic._LAYERS[:1], synthetic._LAYERS[1:]):
            monkeypatch.setattr(synthetic, "_LAYERS", layers)
            fields.append(
                [synthetic._confetti_squares((48, 48), np.random.default_rng(seed))[0] for seed in range(300)]
            )
        colours, blacks = (np.concatenate([field[field.any(axis=2)] for field in layer]) for layer in fields)
        assert (blacks == -255).all()
        assert -256 <= colours.min() < -250
        assert -6 < colours.max() <= -1
        assert colours.mean() == pytest.approx(-128.5, abs=8)
        assert (colours[:, 0] != colours[:, 1]).mean() > 0.9

    def test_layers_are_summed(self) -> None:
        fields = [synthetic._confetti_squares((48, 48), np.random.default_rng(seed))[0] for seed in range(100)]
        assert all((field <= -255).all(axis=2).any() for field in fields), "black squares everywhere"
        assert np.mean([(field[field.any(axis=2)] > -255).any() for field in fields]) > 0.8, "coloured ones nearly so"
        assert -511 <= min(field.min() for field in fields) < -400, "some lie on each other"

    @settings(max_examples=40, deadline=None)
    @given(st.integers(16, 90), st.integers(16, 90), st.integers(0, 2**32))
    def test_only_the_surroundings_are_blurred_and_that_is_exact(self, height: int, width: int, seed: int) -> None:
        noise, _ = synthetic._confetti_squares((height, width), np.random.default_rng(seed))
        sigma = 5 * (min(height, width) / 240)
        soft = ndimage.gaussian_filter(noise, (sigma, sigma, 0), mode="mirror", truncate=2.4)
        drawn, _ = confetti(flat(255, height, width), flat(255, height, width), np.random.default_rng(seed))
        assert np.abs(drawn - np.clip(255 + soft, 0, 255)).max() <= 0.5 + 1e-3

    def test_edges_are_soft_as_far_as_the_kernel_reaches(self) -> None:
        for seed in range(10):
            noise, _ = synthetic._confetti_squares((240, 240), np.random.default_rng(seed))
            drawn, mask = confetti(flat(255, 240, 240), flat(255, 240, 240), np.random.default_rng(seed))
            squares = noise.any(axis=2)
            assert mask[squares].mean() > 0.99
            distance = ndimage.distance_transform_cdt(~squares, "chessboard")
            assert 9 <= distance[mask].max() <= 12
            assert np.abs(np.diff(drawn.astype(int), axis=0)).max() < 70

    def test_bright_images_only_get_darker(self) -> None:
        for seed in range(30):
            image = rough(seed, low=120)
            drawn, _ = confetti(image, image, np.random.default_rng(seed))
            assert (drawn <= image).all()

    def test_dark_images_only_get_brighter(self) -> None:
        for seed in range(30):
            image = rough(seed, high=5)
            drawn, _ = confetti(image, image, np.random.default_rng(seed))
            assert (drawn >= image).all()
            assert drawn.max() > 60

    def test_invisible_noise_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        where = np.array([3]), np.array([4])
        monkeypatch.setattr(
            synthetic, "_confetti_squares", lambda shape, _rng: (np.zeros((*shape, 3), np.float32), where)
        )
        with pytest.raises(DataError, match="confetti changes nothing"):
            confetti(flat(0), flat(0), np.random.default_rng(0))


class TestScar:
    @pytest.mark.parametrize("shape", [(256, 256), (64, 200)])
    def test_thin_and_few(self, shape: tuple[int, int], rectangles: list[tuple[tuple[float, float], float]]) -> None:
        numbers, scale = [], min(shape) / 256
        for seed in range(120):
            before = len(rectangles)
            _, mask = scar(flat(0, *shape), flat(255, *shape), np.random.default_rng(seed))
            numbers.append(len(rectangles) - before)
            assert ndimage.label(mask, np.ones((3, 3)))[1] <= numbers[-1]
            assert mask.sum() <= 1.3 * sum(length * width for (length, width), _ in rectangles[before:]) + 3
        assert set(numbers) == {1, 2, 3}
        lengths, widths = np.array([size for size, _ in rectangles]).T
        angles = np.array([angle for _, angle in rectangles])
        assert lengths.min() == pytest.approx(10 * scale, abs=0.5)
        assert lengths.max() == pytest.approx(25 * scale, abs=0.5)
        assert widths.min() == pytest.approx(max(2 * scale, 1), abs=0.3)
        assert widths.max() == pytest.approx(16 * scale, abs=0.5)
        assert -45 <= angles.min() < -40
        assert 40 < angles.max() <= 45

    def test_texture_of_the_donor(self) -> None:
        plain, striped = flat(130, 256, 256), flat(130, 256, 256)
        striped[::2] = 230
        for donor, spread in ((plain, False), (striped, True)):
            drawn, mask = scar(flat(0, 256, 256), donor, np.random.default_rng(7))
            labels, count = ndimage.label(mask)
            assert all((np.ptp(drawn[labels == k], axis=0) > 50).any() == spread for k in range(1, count + 1))

    def test_lies_inside_the_image(self, monkeypatch: pytest.MonkeyPatch) -> None:
        inside = []

        def spy(shape: tuple[int, ...], center: np.ndarray, size: tuple[float, float], angle: float) -> object:
            wide = tuple(n + 80 for n in shape)
            inside.append(len(_rectangle(shape, center, size, angle)[0]))
            assert inside[-1] == len(_rectangle(wide, center + 40, size, angle)[0])
            return _rectangle(shape, center, size, angle)

        monkeypatch.setattr(synthetic, "_rectangle", spy)
        for seed in range(100):
            scar(flat(0), flat(255), np.random.default_rng(seed))
        assert len(inside) >= 100


class TestBlend:
    @pytest.mark.parametrize("shape", [(64, 64), (40, 100), (17, 16)])
    def test_area(self, shape: tuple[int, int]) -> None:
        areas = []
        for seed in range(150):
            _, mask = blend(rough(seed, *shape), rough(seed + 1, *shape), np.random.default_rng(seed))
            areas.append(mask.mean())
        assert 0.001 < min(areas) < 0.01
        assert 0.2 < max(areas) <= 0.3
        assert np.median(areas) == pytest.approx(np.sqrt(0.002 * 0.3), rel=0.5), "log-uniform"

    def test_resolutions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        drawn = []

        def spy(shape: tuple[int, ...], cells: np.ndarray, rng: np.random.Generator) -> np.ndarray:
            drawn.append(tuple(cells))
            return _gradient_noise(shape, cells, rng)

        monkeypatch.setattr(synthetic, "_gradient_noise", spy)
        for seed in range(60):
            blend(rough(0, 20, 40), rough(1, 20, 40), np.random.default_rng(seed))
        assert set(drawn) == set(itertools.product((1, 2), (1, 2, 4)))

    def test_the_texture_is_rearranged_even_where_its_colours_are_kept(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(synthetic, "_recolour", lambda pixels, _rng: pixels)
        assert blend(rough(0), rough(0), np.random.default_rng(0))[1].any()

    def test_opacity(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(synthetic, "_recolour", lambda pixels, _rng: np.full_like(pixels, 200))
        opacities = []
        for seed in range(60):
            drawn, mask = blend(flat(100), flat(100), np.random.default_rng(seed))
            assert np.ptp(drawn[mask]) == 0
            opacities.append((drawn[mask][0, 0] - 100) / 100)
        assert 0.195 <= min(opacities) < 0.26
        assert 0.94 < max(opacities) <= 1

    def test_regions_are_connected(self) -> None:
        """Unlike white noise, of which an area of 10 % is thousands of pixels apart."""
        sizes = []
        for seed in range(30):
            _, mask = blend(rough(0, 128, 128), rough(1, 128, 128), np.random.default_rng(seed))
            sizes.append(mask.sum() / ndimage.label(mask, np.ones((3, 3)))[1])
        assert np.median(sizes) > 15


class TestGradientNoise:
    def test_against_the_definition(self) -> None:
        shape, cells = (12, 20), np.array([3, 4])
        angles = np.random.default_rng(1).uniform(0, 2 * np.pi, (4, 5))
        expected = np.zeros(shape)
        for row, column in np.ndindex(shape):
            y, x = row * 3 / 12, column * 4 / 20
            for i, j in itertools.product((int(y), int(y) + 1), (int(x), int(x) + 1)):
                fade = [6 * t**5 - 15 * t**4 + 10 * t**3 for t in (1 - abs(y - i), 1 - abs(x - j))]
                slope = np.sin(angles[i, j]) * (y - i) + np.cos(angles[i, j]) * (x - j)
                expected[row, column] += fade[0] * fade[1] * slope
        noise = _gradient_noise(shape, cells, np.random.default_rng(1))
        np.testing.assert_allclose(noise, expected, atol=1e-5)

    @settings(max_examples=40, deadline=None)
    @given(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32))
    def test_properties(self, rows: int, columns: int, seed: int) -> None:
        noise = _gradient_noise((64, 128), 2 ** np.array([rows, columns]), np.random.default_rng(seed))
        assert noise.shape == (64, 128)
        assert np.abs(noise).max() <= 1
        assert np.abs(noise[:: 64 >> rows, :: 128 >> columns]).max() < 1e-5
        assert np.abs(np.diff(noise, axis=0)).max() < 4 * 2**rows / 64
        assert np.abs(np.diff(noise, axis=1)).max() < 4 * 2**columns / 128
        assert noise.std() > 0.02


class TestTexture:
    @pytest.mark.parametrize("shape", [(64, 64), (32, 48)])
    def test_rearranged_pixels_stay_the_same(self, shape: tuple[int, int]) -> None:
        image = np.arange(shape[0] * shape[1] * 3).astype(np.uint8).reshape(*shape, 3)
        for seed in range(10):
            moved = _rearrange(image, np.random.default_rng(seed))
            assert moved.shape == image.shape
            assert (moved != image).any(axis=2).mean() > 0.8
            assert np.array_equal(np.bincount(moved.ravel()), np.bincount(image.ravel()))

    def test_rearranged_image_need_not_divide_into_tiles(self) -> None:
        for seed in range(10):
            moved = _rearrange(rough(0, 23, 37, high=100), np.random.default_rng(seed))
            assert moved.shape == (23, 37, 3)
            assert moved.max() < 100

    def test_tiles_stay_whole(self) -> None:
        image = np.repeat(np.repeat(rough(0, 8, 8), 6, axis=0), 4, axis=1)
        for seed in range(10):
            tiles = _rearrange(image, np.random.default_rng(seed)).reshape(8, 6, 8, 4, 3)
            assert (np.ptp(tiles, axis=(1, 3)) == 0).all()

    def test_recoloured_pixels_change(self) -> None:
        pixels = rough(0)[0]
        changes = []
        for seed in range(60):
            recoloured = _recolour(pixels, np.random.default_rng(seed))
            assert (recoloured.shape, recoloured.dtype) == (pixels.shape, np.uint8)
            changes.append(np.abs(recoloured.astype(int) - pixels).mean())
        assert min(changes) > 10
        assert np.std(changes) > 15

    def test_recolouring_keeps_shades_in_order_up_to_a_few_turns(self) -> None:
        ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
        for seed in range(60):
            steps = np.diff(_recolour(ramp, np.random.default_rng(seed))[:, 0].astype(int))
            assert np.count_nonzero(np.diff(np.sign(steps[steps != 0]))) <= 4


class TestRectangle:
    @given(st.floats(1, 20), st.floats(1, 20), st.floats(-45, 45), st.integers(0, 39), st.integers(0, 59))
    def test_holds_its_center_and_stays_in_the_image(
        self, length: float, width: float, angle: float, row: int, column: int
    ) -> None:
        rows, columns, along, across = _rectangle((40, 60), np.array([row, column]), (length, width), angle)
        assert (row, column) in set(zip(rows.tolist(), columns.tolist(), strict=True))
        assert 0 <= rows.min() <= rows.max() < 40
        assert 0 <= columns.min() <= columns.max() < 60
        assert np.abs(along).max() <= length / 2
        assert np.abs(across).max() <= width / 2
        np.testing.assert_allclose(np.hypot(along, across), np.hypot(rows - row, columns - column), atol=1e-9)

    def test_corners(self) -> None:
        assert len(_rectangle((100, 100), np.array([50, 50]), (40, 40), 45)[0]) == pytest.approx(1600, rel=0.06)

    @pytest.mark.parametrize("angle", [-45, -20, 0, 31, 45])
    def test_area_and_direction(self, angle: float) -> None:
        rows, columns, _, _ = _rectangle((100, 100), np.array([50, 50]), (41, 11), angle)
        assert len(rows) == pytest.approx(41 * 11, rel=0.06)
        cov = np.cov(np.stack([rows, columns]))
        direction = np.linalg.eigh(cov)[1][:, 1]
        assert abs(direction @ [np.cos(np.radians(angle)), np.sin(np.radians(angle))]) > 0.995

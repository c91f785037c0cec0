from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from adtr.report.pictures import (
    CONTOUR,
    NO_MASK,
    PAPER,
    contact_sheet,
    heat_colors,
    overlay,
    panel,
    scale_map,
    tile,
    tiles,
)


def pixels(picture: Image.Image) -> NDArray[np.int_]:
    return np.asarray(picture).astype(int)


def has_contour(picture: Image.Image) -> NDArray[np.bool_]:
    """Where the contour's colour is, give or take what resampling does to it."""
    return (np.abs(pixels(picture) - CONTOUR) < 60).all(axis=-1)


def lightness(colors: NDArray[Any]) -> NDArray[np.float64]:
    """CIE L* of sRGB colours."""
    channels = colors / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)


def a_map(height: int = 60, width: int = 80) -> NDArray[np.float32]:
    """Zero, but for a square of tens at rows and columns 20 to 40."""
    anomaly_map = np.zeros((height, width), np.float32)
    anomaly_map[20:40, 20:40] = 10
    return anomaly_map


def gray_image(height: int = 60, width: int = 80) -> Image.Image:
    return Image.new("L", (width, height), 100)


def test_heat_colors_grow_lighter_evenly() -> None:
    colors = heat_colors(np.linspace(0, 1, 256)[None])
    assert colors.shape == (1, 256, 3)
    assert colors.dtype == np.uint8
    steps = np.diff(lightness(colors[0, ::15]))
    assert steps.min() > 2
    assert steps.max() < 4 * steps.min()


def test_heat_colors_clip() -> None:
    colors = heat_colors(np.array([[-3.0, 0.0, 1.0, 7.0]]))
    assert (colors[0, 0] == colors[0, 1]).all()
    assert (colors[0, 2] == colors[0, 3]).all()
    assert (colors[0, 0] != colors[0, 3]).any()


def test_scale_map_is_linear_and_clipped() -> None:
    scaled = scale_map(np.array([[0.0, 2.0, 3.0, 4.0, 9.0]]), low=2, high=4)
    np.testing.assert_allclose(scaled, [[0, 0, 0.5, 1, 1]])
    assert scaled.dtype == np.float32


def test_scale_map_of_an_empty_range_is_a_step() -> None:
    np.testing.assert_array_equal(scale_map(np.array([[1.0, 2.0, 3.0]]), low=2, high=2), [[0, 0, 1]])


@pytest.mark.parametrize(("low", "high"), [(2, 1), (float("nan"), 1)])
def test_scale_map_refuses_what_is_no_range(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="low must not be above high"):
        scale_map(np.zeros((2, 2)), low=low, high=high)


def test_overlay_leaves_good_areas_alone_and_heats_the_others() -> None:
    seen = pixels(overlay(gray_image(), a_map(), low=0, high=10, threshold=None, opacity=0.5))
    assert seen.shape == (60, 80, 3)
    assert (seen[a_map() == 0] == 100).all()
    hottest = heat_colors(np.ones((1, 1)))[0, 0].astype(int)
    np.testing.assert_allclose(seen[30, 30], (100 + hottest) / 2, atol=1)


def test_overlay_grows_more_opaque_with_the_value() -> None:
    anomaly_map = np.tile(np.linspace(0, 1, 80, dtype=np.float32), (60, 1))
    seen = pixels(overlay(gray_image(), anomaly_map, low=0, high=1, threshold=None))
    heat = heat_colors(anomaly_map).astype(int)
    distance = np.abs(seen - 100).sum(axis=-1)[0] / np.maximum(np.abs(heat - 100).sum(axis=-1)[0], 1)
    np.testing.assert_allclose(distance, anomaly_map[0] / 2, atol=0.05)


def test_overlay_outlines_what_exceeds_the_threshold() -> None:
    line = has_contour(overlay(gray_image(), a_map(), low=0, high=10, threshold=5, opacity=0))
    edge = np.zeros((60, 80), bool)
    edge[18:42, 18:42] = True
    edge[22:38, 22:38] = False
    assert line.any()
    assert not line[~edge].any()
    for side in (line[18:22, 30], line[38:42, 30], line[30, 18:22], line[30, 38:42]):
        assert side.any()


def test_the_threshold_itself_is_good() -> None:
    assert not has_contour(overlay(gray_image(), a_map(), low=0, high=10, threshold=10)).any()
    assert not has_contour(overlay(gray_image(), a_map(), low=0, high=10, threshold=None)).any()


def test_a_region_at_the_border_is_closed_there() -> None:
    line = has_contour(overlay(gray_image(), np.ones((60, 80)), low=0, high=1, threshold=0.5, opacity=0))
    for side in (line[0], line[-1], line[:, 0], line[:, -1]):
        assert side.mean() > 0.9
    assert not line[5:-5, 5:-5].any()


def test_one_pixel_is_marked() -> None:
    anomaly_map = np.zeros((60, 80))
    anomaly_map[30, 40] = 1
    assert has_contour(overlay(gray_image(), anomaly_map, low=0, high=1, threshold=0.5, opacity=0)).any()


def test_the_line_is_as_wide_as_the_image_is_large() -> None:
    large = has_contour(overlay(gray_image(450, 600), a_map(450, 600), low=0, high=10, threshold=5, opacity=0))
    larger = has_contour(overlay(gray_image(900, 1200), a_map(900, 1200), low=0, high=10, threshold=5, opacity=0))
    assert larger[:30, 30].sum() > 1.5 * large[:30, 30].sum() > 0


@pytest.mark.parametrize(("name", "value"), [("anomaly_map", np.zeros((80, 60))), ("truth", np.zeros((60, 81)))])
def test_sizes_must_agree(name: str, value: NDArray[Any]) -> None:
    arrays = {"anomaly_map": a_map(), "truth": None, name: value}
    with pytest.raises(ValueError, match=r"shape .* is not the image's \(60, 80\)"):
        panel(gray_image(), **arrays, low=0, high=1, threshold=None, title="")
    if name == "anomaly_map":
        with pytest.raises(ValueError, match="is not the image's"):
            overlay(gray_image(), value, low=0, high=1, threshold=None)


def cut(picture: Image.Image, width: int, height: int, cell: int | None = None, gap: int = 8) -> list[Image.Image]:
    """The four pictures of a panel of the default height."""
    top = picture.height - gap - height
    lefts = [gap + i * ((cell or width) + gap) for i in range(4)]
    return [picture.crop((left, top, left + width, top + height)) for left in lefts]


def test_panel_shows_image_truth_map_and_marks() -> None:
    truth = a_map() > 5
    picture = panel(gray_image(), a_map(), truth=truth, low=0, high=10, threshold=5, title="a", height=256)
    image, mask, heat, marked = cut(picture, width=341, height=256)
    assert (pixels(image) == 100).all()
    assert set(np.unique(pixels(mask)[::16, ::16])) == {0, 255}
    assert np.mean(pixels(mask) > 127) == pytest.approx(truth.mean(), abs=0.01)
    ends = heat_colors(np.array([[0.0, 1.0]]))[0]
    np.testing.assert_array_equal(pixels(heat)[[0, 128], [0, 128]], ends)
    assert has_contour(marked).any()
    assert not has_contour(heat).any()


def test_panel_without_truth_says_so() -> None:
    picture = panel(gray_image(), a_map(), truth=None, low=0, high=10, threshold=5, title="a")
    mask = pixels(cut(picture, width=341, height=256)[1])
    assert (mask[:100] == NO_MASK).all()
    assert (mask[100:156] != NO_MASK).any()


@pytest.mark.parametrize(
    ("size", "shown"), [((80, 60), (341, 256)), ((900, 60), (512, 34)), ((40, 900), (11, 256)), ((3000, 1), (512, 1))]
)
def test_panel_keeps_the_proportions(size: tuple[int, int], shown: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (200, 40, 40))
    anomaly_map = np.zeros((size[1], size[0]))
    picture = panel(image, anomaly_map, truth=None, low=0, high=1, threshold=None, title="")
    red = (pixels(picture) == (200, 40, 40)).all(axis=-1)
    assert red.any(axis=1).sum() == shown[1]
    # Twice: the image, and the marked one in which nothing is marked.
    assert red.any(axis=0).sum() == 2 * shown[0]


def test_the_line_is_not_enlarged_with_a_small_image() -> None:
    small = panel(gray_image(24, 32), a_map(24, 32), truth=None, low=0, high=10, threshold=5, title="")
    marked = has_contour(cut(small, width=341, height=256)[3])
    assert marked.any()
    assert marked[:, 300].sum() <= 4  # a line along the region's upper edge, crossed once


def test_the_smallest_anomaly_of_a_large_image_is_seen() -> None:
    anomaly_map, truth = np.zeros((1600, 2000), np.float32), np.zeros((1600, 2000), bool)
    anomaly_map[777, 999] = 10
    truth[777, 999] = True
    picture = panel(gray_image(1600, 2000), anomaly_map, truth=truth, low=0, high=10, threshold=5, title="")
    _, mask, heat, marked = cut(picture, width=320, height=256)
    assert pixels(mask).max() > 127
    assert lightness(pixels(heat)).max() > 60
    assert has_contour(marked).any()


def test_the_title_is_written_and_never_cut_off() -> None:
    def make(title: str) -> Image.Image:
        return panel(gray_image(), a_map(), truth=None, low=0, high=10, threshold=5, title=title, height=64)

    plain, short, long = make(""), make("part.png"), make("a/very/long/path/" * 20)
    assert plain.size == short.size
    assert (pixels(plain) != pixels(short)).any()
    assert long.width > short.width
    assert long.height == short.height
    assert (pixels(long)[:, -4:] == PAPER).all()


def test_contact_sheet_sets_panels_in_rows() -> None:
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    panels = [Image.new("RGB", (10 + i, 5 + i), color) for i, color in enumerate(colors)]
    one = contact_sheet(panels)
    assert one.size == (12, 5 + 6 + 7)
    two = contact_sheet(panels, columns=2)
    assert two.size == (12 + 11, 6 + 7)
    assert [two.getpixel(at) for at in [(0, 0), (12, 0), (0, 6), (12, 6)]] == [*colors, PAPER]
    three = contact_sheet(panels, columns=9)
    assert three.size == (10 + 11 + 12, 7)
    assert [three.getpixel((x, 0)) for x in (9, 10, 20, 21, 32)] == [colors[i] for i in (0, 1, 1, 2, 2)]


def test_contact_sheet_needs_panels_and_columns() -> None:
    with pytest.raises(ValueError, match="0 panels"):
        contact_sheet([])
    with pytest.raises(ValueError, match="0 columns"):
        contact_sheet([gray_image()], columns=0)


@pytest.mark.parametrize("size", [(60, 80), (600, 800), (3, 700), (1, 1)])
@pytest.mark.parametrize("marked", [True, False])
def test_tiles_are_of_one_size_and_say_where_there_is_no_truth(size: tuple[int, int], marked: bool) -> None:
    truth = np.zeros(size, bool) if marked else None
    pictures = tiles(gray_image(*size), np.zeros(size, np.float32), truth=truth, low=0, high=10, threshold=5, height=50)
    assert list(pictures) == ["image", "truth", "anomaly map", "marked"]
    assert (pictures["truth"] is None) == (truth is None)
    sizes = {picture.size for picture in pictures.values() if picture is not None}
    assert len(sizes) == 1
    width, height = sizes.pop()
    assert height <= 50
    assert width <= 100


def test_a_tile_outlines_the_hottest_place_over_a_caption() -> None:
    picture = tile(gray_image(), a_map(), low=2, high=8, title="1  scratched.png")
    marked = np.argwhere(has_contour(picture))
    assert marked.min(axis=0) == pytest.approx([25, 25], abs=4)  # a margin of 5 pixels
    assert marked.max(axis=0) == pytest.approx([45, 45], abs=4)
    caption = pixels(picture)[66:]
    assert (caption < 128).any()
    assert (pixels(picture)[:5] == PAPER).all()


def test_a_long_caption_does_not_widen_a_tile() -> None:
    short, long = (tile(gray_image(), a_map(), low=2, high=8, title=title) for title in ("1", "2  " + "x" * 300))
    assert short.size == long.size

import io
import struct
import subprocess
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adtr.data import images
from adtr.data.images import IMAGE_SUFFIXES, decode_mask, read_image, read_mask, resize
from adtr.errors import DataError, ImageError

Array = npt.NDArray[Any]
ORIENTATION = 0x0112
uint8_images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 12), st.integers(1, 12), st.just(3)))


class Tensor:
    """Behaves like a torch tensor on a device, as far as reading it goes."""

    def __init__(self, array: Array, step: int = 0) -> None:
        self._array, self._step = array, step
        self.dtype, self.shape = array.dtype, array.shape

    def detach(self) -> "Tensor":
        return Tensor(self._array, 1)

    def cpu(self) -> "Tensor":
        assert self._step == 1, "detach first"
        return Tensor(self._array, 2)

    def numpy(self) -> Array:
        assert self._step == 2, "bring to the CPU first"
        return self._array


def photo(height: int = 24, width: int = 36, seed: int = 0) -> Array:
    """Smooth, so that lossy formats keep it, and without any symmetry."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = rows * 200 // height, columns * 200 // width
    return np.stack([red, green, np.full_like(red, 40 + seed)], axis=-1).astype(np.uint8)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file for the many examples of a property."""
    return tmp_path_factory.mktemp("scratch") / "x"


def save(path: Path, array_or_image: Array | Image.Image, **options: object) -> Path:
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    image.save(path, **options)
    return path


def pixels(source: object) -> Array:
    image = read_image(source)
    assert image.mode == "RGB"
    return np.asarray(image)


def assert_unreadable(source: object, reason: str = "") -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {source}: ")
    assert len(message) > len(f"cannot read image {source}: ")
    assert "\n" not in message
    assert reason in message
    return message


class TestFormats:
    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
    def test_every_suffix(self, tmp_path: Path, suffix: str) -> None:
        path = save(
            tmp_path / f"x{suffix}", photo(), **({"quality": 95} if suffix in {".jpg", ".jpeg", ".webp"} else {})
        )
        read = pixels(path)
        assert read.shape == (24, 36, 3)
        assert np.abs(read.astype(int) - photo()).max() <= (16 if suffix in {".jpg", ".jpeg", ".webp"} else 0)
        assert np.array_equal(pixels(str(path)), read)

    def test_suffix_does_not_matter(self, tmp_path: Path) -> None:
        save(tmp_path / "x.png", photo())
        (tmp_path / "x.png").rename(tmp_path / "x.JPG")
        assert np.array_equal(pixels(tmp_path / "x.JPG"), photo())

    def test_first_frame(self, tmp_path: Path) -> None:
        frames = [Image.fromarray(photo(seed=seed)) for seed in (0, 100)]
        for name in ("x.tif", "x.png", "x.webp"):
            options = {"lossless": True} if name == "x.webp" else {}
            frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
            assert np.array_equal(pixels(tmp_path / name), photo(seed=0)), name

    def test_other_decoders_are_never_started(self, tmp_path: Path) -> None:
        Image.fromarray(photo()).save(tmp_path / "x.eps")
        (tmp_path / "x.eps").rename(tmp_path / "x.png")
        assert_unreadable(tmp_path / "x.png", "not an image")


class TestModes:
    def test_gray(self, tmp_path: Path) -> None:
        gray = photo()[..., 0]
        read = pixels(save(tmp_path / "x.png", gray))
        assert np.array_equal(read, np.repeat(gray[..., None], 3, axis=-1))

    def test_one_bit(self, tmp_path: Path) -> None:
        bits = photo()[..., 0] > 90
        read = pixels(save(tmp_path / "x.png", Image.fromarray(bits)))
        assert np.array_equal(read[..., 1], bits * np.uint8(255))

    def test_transparency_is_composited_over_white(self, tmp_path: Path) -> None:
        rgba = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [200, 0, 0, 51]]], np.uint8)
        expected = [[[200, 0, 0], [255, 255, 255], [244, 204, 204]]]
        assert pixels(save(tmp_path / "x.png", rgba)).tolist() == expected
        assert pixels(save(tmp_path / "x.webp", rgba, lossless=True, exact=True)).tolist() == expected

    def test_gray_with_alpha(self, tmp_path: Path) -> None:
        image = Image.merge("LA", [Image.new("L", (2, 1), 100), Image.fromarray(np.array([[255, 0]], np.uint8))])
        assert pixels(save(tmp_path / "x.png", image)).tolist() == [[[100] * 3, [255] * 3]]

    def test_palette(self, tmp_path: Path) -> None:
        image = Image.fromarray(photo()).quantize(16)
        assert np.array_equal(pixels(save(tmp_path / "x.png", image)), np.asarray(image.convert("RGB")))

    @pytest.mark.parametrize("transparency", [1, b"\xff\x00"], ids=["index", "bytes"])
    def test_palette_with_transparency(self, tmp_path: Path, transparency: int | bytes) -> None:
        image = Image.fromarray(np.array([[0, 1]], np.uint8))
        image = image.convert("P")
        image.putpalette([10, 20, 30, 40, 50, 60])
        path = save(tmp_path / "x.png", image, transparency=transparency)
        assert pixels(path).tolist() == [[[10, 20, 30], [255, 255, 255]]]

    def test_transparent_colour(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.png", np.array([[[9, 9, 9], [8, 8, 8]]], np.uint8), transparency=(9, 9, 9))
        assert pixels(path).tolist() == [[[255] * 3, [8] * 3]]

    def test_cmyk(self, tmp_path: Path) -> None:
        image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        for name in ("x.jpg", "x.tif"):
            red = pixels(save(tmp_path / name, image))[4, 4].astype(int)
            assert np.abs(red - [255, 0, 0]).max() < 8, name

    @pytest.mark.parametrize("name", ["x.png", "x.tif"])
    @pytest.mark.parametrize("order", ["<u2", ">u2"])
    def test_16_bit_gray_is_scaled_by_a_fixed_factor(self, tmp_path: Path, name: str, order: str) -> None:
        values = np.array([[0, 128, 129, 257, 25700, 65535]], order)
        read = pixels(save(tmp_path / name, Image.fromarray(values)))
        assert read[0, :, 0].tolist() == [0, 0, 1, 1, 100, 255]
        assert (read == read[..., :1]).all()

    def test_dark_16_bit_gray_is_not_stretched(self, tmp_path: Path) -> None:
        assert pixels(save(tmp_path / "x.png", np.array([[0, 2570]], np.uint16)))[0, :, 0].tolist() == [0, 10]

    def test_32_bit_gray_is_clipped(self, tmp_path: Path) -> None:
        values = np.array([[-5, 0, 25700, 65535, 70000]], np.int32)
        assert pixels(save(tmp_path / "x.tif", values))[0, :, 0].tolist() == [0, 0, 100, 255, 255]

    def test_float_is_refused(self, tmp_path: Path) -> None:
        path = save(tmp_path / "x.tif", np.ones((2, 2), np.float32))
        assert_unreadable(path, "convert it to 8 or 16 bit")


class TestOrientation:
    @pytest.mark.parametrize("name", ["x.png", "x.tif", "x.webp"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_is_applied(self, tmp_path: Path, name: str, orientation: int) -> None:
        stored = photo(5, 7)
        flipped = stored[:, ::-1]
        upright = [
            stored,
            flipped,
            stored[::-1, ::-1],
            stored[::-1],
            np.swapaxes(stored, 0, 1),
            np.rot90(stored, -1),
            np.rot90(flipped, -1),
            np.rot90(stored, 1),
        ][orientation - 1]
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        path = save(tmp_path / name, stored, exif=exif, **({"lossless": True} if name == "x.webp" else {}))
        assert np.array_equal(pixels(path), upright)

    def test_jpeg_is_turned_once(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        once = read_image(save(tmp_path / "x.jpg", photo(), exif=exif))
        assert once.size == (24, 36)
        assert np.array_equal(pixels(once), np.asarray(once))


class TestUnreadable:
    @pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES - {".jpeg", ".tiff"}))
    def test_truncated(self, tmp_path: Path, suffix: str) -> None:
        rng = np.random.default_rng(0)
        path = save(tmp_path / f"x{suffix}", rng.integers(0, 256, (64, 64, 3), np.uint8))
        whole = path.read_bytes()
        for share in (0.3, 0.6, 0.95):
            path.write_bytes(whole[: int(len(whole) * share)])
            assert_unreadable(path)

    def test_text_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.png").write_text("hello")
        assert_unreadable(tmp_path / "x.png", "not an image")

    def test_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "x.jpg").touch()
        assert_unreadable(tmp_path / "x.jpg", "empty")

    def test_missing_file(self, tmp_path: Path) -> None:
        assert_unreadable(tmp_path / "x.jpg", "No such file")
        assert_unreadable(str(tmp_path / "x.jpg"), "No such file")

    def test_directory(self, tmp_path: Path) -> None:
        assert_unreadable(tmp_path)

    def test_null_byte_in_the_path(self) -> None:
        assert_unreadable("a\0.png")

    def test_is_a_data_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError):
            read_image(tmp_path / "x.jpg")

    @settings(max_examples=150, deadline=None)
    @given(data=st.data())
    def test_damage_never_surfaces_as_anything_else(self, scratch: Path, data: st.DataObject) -> None:
        buffer = io.BytesIO()
        save(buffer, photo(6, 5), format=data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"])))
        damaged = bytearray(buffer.getvalue())
        for _ in range(data.draw(st.integers(1, 6))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        scratch.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                result = read_image(scratch)
            except ImageError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
            else:
                assert result.mode == "RGB"

    @pytest.mark.parametrize(
        "error", [OSError("a\nb"), SyntaxError("x"), struct.error("x"), KeyError(3), EOFError(), MemoryError()]
    )
    def test_whatever_pillow_raises(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
        def fail(*_args: object, **_options: object) -> NoReturn:
            raise error

        monkeypatch.setattr(Image, "open", fail)
        assert_unreadable(tmp_path / "x.png")

    def test_a_bug_is_not_disguised(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_args: object, **_options: object) -> NoReturn:
            raise AttributeError("a bug")

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(AttributeError):
            read_image(tmp_path / "x.png")


class TestTooLarge:
    def test_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "x.png", photo(10, 12))
        monkeypatch.setattr(images, "MAX_PIXELS", 120)
        assert read_image(path).size == (12, 10)
        monkeypatch.setattr(images, "MAX_PIXELS", 119)
        message = assert_unreadable(path)
        assert "10 x 12" in message
        assert "119" in message

    def test_in_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(images, "MAX_PIXELS", 119)
        for source in (photo(10, 12), Image.fromarray(photo(10, 12)), Tensor(photo(10, 12))):
            with pytest.raises(ImageError, match="limit of 119 pixels"):
                read_image(source)

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    @pytest.mark.parametrize(("limit", "named"), [(100, 100), (50, 100)], ids=["Pillow would warn", "Pillow refuses"])
    def test_decompression_bomb(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, named: int) -> None:
        path = save(tmp_path / "x.png", photo(10, 12))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert_unreadable(path, f"{named} pixels")

    @pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
    def test_decompression_bomb_warning_as_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "x.png", photo(10, 12))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        assert_unreadable(path)

    def test_pillows_limit_can_be_lifted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = save(tmp_path / "x.png", photo(10, 12))
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        assert read_image(path).size == (12, 10)


class TestMemory:
    @given(uint8_images)
    def test_array_round_trips(self, array: Array) -> None:
        assert np.array_equal(pixels(array), array)
        assert np.array_equal(pixels(Image.fromarray(array)), array)
        assert np.array_equal(pixels(np.asfortranarray(array)), array)

    def test_source_is_left_alone(self) -> None:
        array = photo()
        read = read_image(array)
        array[:] = 0
        assert np.array_equal(np.asarray(read), photo())
        image = Image.fromarray(photo())
        read_image(image).putpixel((0, 0), (9, 9, 9))
        assert np.array_equal(np.asarray(image), photo())

    def test_gray_arrays(self) -> None:
        assert pixels(np.array([[7, 8]], np.uint8)).tolist() == [[[7] * 3, [8] * 3]]
        assert pixels(np.array([[False, True]])).tolist() == [[[0] * 3, [255] * 3]]
        assert pixels(np.array([[0, 25700, 65535]], np.uint16))[0, :, 0].tolist() == [0, 100, 255]

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((4, 4, 3), np.float32),
            np.zeros((4, 4), np.float64),
            np.zeros((4, 4), np.int64),
            np.zeros((4, 4, 2), np.uint8),
            np.zeros((3, 4, 4), np.uint8),
            np.zeros((2, 4, 4, 3), np.uint8),
            np.zeros(4, np.uint8),
            np.array("x"),
        ],
        ids=lambda array: f"{array.dtype}-{array.shape}",
    )
    def test_other_arrays_are_refused(self, array: Array) -> None:
        with pytest.raises(ImageError, match="accepted are") as caught:
            read_image(array)
        assert str(array.dtype) in str(caught.value)
        assert str(array.shape) in str(caught.value)

    @pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0)])
    def test_no_pixels(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError, match="no pixels"):
            read_image(np.zeros(shape, np.uint8))

    def test_the_bytes_of_a_file(self, tmp_path: Path) -> None:
        Image.fromarray(photo()).save(tmp_path / "x.png")
        assert np.array_equal(pixels((tmp_path / "x.png").read_bytes()), photo())
        for damaged in (b"", b"no image", (tmp_path / "x.png").read_bytes()[:40]):
            with pytest.raises(ImageError, match=r"cannot read image \(bytes\): "):
                read_image(damaged)

    @pytest.mark.parametrize("source", [None, 3, bytearray(b"bytes"), ["x.png"]])
    def test_other_types_are_refused(self, source: object) -> None:
        with pytest.raises(ImageError, match=rf"\({type(source).__name__}\): accepted are"):
            read_image(source)

    def test_tensors(self) -> None:
        array = photo()
        chw = np.moveaxis(array, -1, 0)
        for tensor in (Tensor(array), Tensor(chw), Tensor(chw.astype(np.float32) / 255), Tensor(chw / 255.0)):
            assert np.array_equal(pixels(tensor), array)

    @given(uint8_images)
    def test_float_tensor_round_trips(self, array: Array) -> None:
        tensor = Tensor(np.moveaxis(array, -1, 0).astype(np.float32) / 255 * np.float32(0.9999999))
        assert np.array_equal(pixels(tensor), array)

    def test_ambiguous_tensor_is_channels_first(self) -> None:
        array = np.arange(9, dtype=np.uint8).reshape(3, 1, 3)
        assert np.array_equal(pixels(Tensor(array)), np.moveaxis(array, 0, -1))

    @pytest.mark.parametrize("value", [-0.1, 1.1, 255.0, np.nan])
    def test_float_tensor_out_of_range(self, value: float) -> None:
        array = np.full((3, 4, 4), 0.5)
        array[1, 2, 3] = value
        with pytest.raises(ImageError, match=r"0\.\.1"):
            read_image(Tensor(array))

    @pytest.mark.parametrize("shape", [(4, 4, 3), (4, 4), (1, 3, 4, 4), (3, 0, 4)])
    def test_float_tensor_of_another_shape(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ImageError):
            read_image(Tensor(np.zeros(shape)))

    def test_torch(self) -> None:
        torch = pytest.importorskip("torch")
        tensor = torch.from_numpy(np.moveaxis(photo(), -1, 0).copy())
        assert np.array_equal(pixels(tensor), photo())
        assert np.array_equal(pixels((tensor / 255).requires_grad_()), photo())
        with pytest.raises(ImageError, match="BFloat16"):
            read_image((tensor / 255).bfloat16())


class TestResize:
    def test_shape_and_layout(self) -> None:
        resized = resize(read_image(photo()), (5, 9))
        assert resized.shape == (5, 9, 3)
        assert resized.dtype == np.uint8
        assert resized.flags.c_contiguous
        resized[:] = 0  # the caller's own

    def test_same_size_changes_nothing(self) -> None:
        assert np.array_equal(resize(read_image(photo()), (24, 36)), photo())

    def test_single_pixel(self) -> None:
        assert (resize(read_image(np.full((1, 1, 3), 77, np.uint8)), (8, 4)) == 77).all()

    def test_is_antialiased(self) -> None:
        checkerboard = np.indices((64, 64)).sum(axis=0) % 2 * 255
        resized = resize(read_image(checkerboard.astype(np.uint8)), (8, 8))
        assert np.abs(resized.astype(int) - 127).max() < 10

    @given(
        colour=st.tuples(*[st.integers(0, 255)] * 3),
        source=st.tuples(*[st.integers(1, 40)] * 2),
        size=st.tuples(*[st.integers(1, 40)] * 2),
    )
    def test_constant_stays_constant(
        self, colour: tuple[int, int, int], source: tuple[int, int], size: tuple[int, int]
    ) -> None:
        image = Image.new("RGB", source, colour)
        resized = resize(image, size)
        assert resized.shape == (*size, 3)
        assert (resized == np.array(colour)).all()

    @given(uint8_images, st.tuples(*[st.integers(1, 20)] * 2))
    def test_stays_within_the_range_of_the_image(self, array: Array, size: tuple[int, int]) -> None:
        resized = resize(read_image(array), size)
        assert resized.min() >= array.min()
        assert resized.max() <= array.max()


class TestMask:
    def test_region_numbers(self, tmp_path: Path) -> None:
        path = save(tmp_path / "m.png", np.array([[0, 1, 2], [3, 255, 0]], np.uint8))
        mask = read_mask(path, (2, 3))
        assert mask.dtype == np.bool_
        assert mask.tolist() == [[False, True, True], [True, True, False]]
        assert np.array_equal(read_mask(str(path), (2, 3)), mask)

    @pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32, np.bool_])
    def test_pixel_types(self, tmp_path: Path, dtype: type) -> None:
        path = save(tmp_path / "m.tif", np.array([[0, 1]], dtype))
        assert read_mask(path, (1, 2)).tolist() == [[False, True]]

    def test_palette_counts_by_index(self, tmp_path: Path) -> None:
        image = Image.fromarray(np.array([[0, 1, 2]], np.uint8)).convert("P")
        image.putpalette([255, 255, 255, 0, 0, 0, 9, 9, 9])
        assert read_mask(save(tmp_path / "m.png", image), (1, 3)).tolist() == [[False, True, True]]

    def test_colour_counts_in_any_channel_whatever_the_alpha(self, tmp_path: Path) -> None:
        rgba = np.array([[[0, 0, 0, 255], [0, 0, 1, 255], [9, 0, 0, 0], [0, 0, 0, 0]]], np.uint8)
        expected = [[False, True, True, False]]
        assert read_mask(save(tmp_path / "a.png", rgba), (1, 4)).tolist() == expected
        assert read_mask(save(tmp_path / "b.png", rgba[..., :3]), (1, 4)).tolist() == expected
        gray_alpha = Image.merge("LA", [Image.fromarray(rgba[:, :2, 2].copy()), Image.new("L", (2, 1), 255)])
        assert read_mask(save(tmp_path / "c.png", gray_alpha), (1, 2)).tolist() == [[False, True]]

    def test_cmyk_black_is_background(self, tmp_path: Path) -> None:
        image = Image.new("CMYK", (2, 1), (0, 0, 0, 255))
        image.putpixel((1, 0), (0, 0, 0, 0))
        assert read_mask(save(tmp_path / "m.tif", image), (1, 2)).tolist() == [[False, True]]

    @pytest.mark.parametrize("name", ["m.jpg", "m.jpeg", "m.webp"])
    def test_lossy_files_are_cut_in_the_middle(self, tmp_path: Path, name: str) -> None:
        truth = np.zeros((32, 48), bool)
        truth[7:19, 11:30] = True
        for picture in (truth * np.uint8(255), np.repeat((truth * np.uint8(255))[..., None], 3, axis=-1)):
            path = save(tmp_path / name, picture, quality=60)
            assert (np.asarray(Image.open(path).convert("L")) > 0).sum() > truth.sum(), "the file is not lossy enough"
            assert (read_mask(path, (32, 48)) != truth).mean() < 0.005

    def test_orientation_is_applied(self, tmp_path: Path) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        path = save(tmp_path / "m.png", np.array([[1, 0, 0], [0, 0, 0]], np.uint8), exif=exif)
        assert read_mask(path, (3, 2)).tolist() == [[False, True], [False, False], [False, False]]

    def test_other_size(self, tmp_path: Path) -> None:
        path = save(tmp_path / "m.png", np.zeros((4, 6), np.uint8))
        with pytest.raises(ImageError) as caught:
            read_mask(path, (6, 4))
        assert str(caught.value) == (
            f"cannot read mask {path}: the mask is 4 x 6 pixels, but its image is 6 x 4 pixels (height x width)"
        )

    def test_unreadable(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "m.png").write_text("hello")
        with pytest.raises(ImageError, match=r"cannot read mask .*m\.png: not an image"):
            read_mask(tmp_path / "m.png", (1, 1))
        monkeypatch.setattr(images, "MAX_PIXELS", 3)
        with pytest.raises(ImageError, match="limit of 3 pixels"):
            read_mask(save(tmp_path / "n.png", np.zeros((2, 2), np.uint8)), (2, 2))

    @pytest.mark.parametrize("values", [[0, 1, 2, 3], [0, 50, 100, 150], range(0, 32 * 7, 7)])
    def test_up_to_32_gray_values_are_regions(self, tmp_path: Path, values: Iterable[int]) -> None:
        array = np.array([list(values)], np.uint8)
        assert np.array_equal(read_mask(save(tmp_path / "m.png", array), array.shape), array > 0)

    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
    def test_soft_masks_are_cut_at_half_their_maximum(self, tmp_path: Path, dtype: type) -> None:
        step = {np.uint8: 6, np.uint16: 1800, np.float32: 1 / 32}[dtype]
        array = (np.arange(33)[None] * step).astype(dtype)
        mask = read_mask(save(tmp_path / "m.tif", array), array.shape)
        assert mask.tolist() == [[i > 16 for i in range(33)]]

    def test_a_soft_mask_may_be_saved_in_colour(self, tmp_path: Path) -> None:
        gray = np.repeat(np.arange(33, dtype=np.uint8)[None, :, None], 3, axis=-1)
        assert read_mask(save(tmp_path / "m.png", gray), (1, 33)).sum() == 16
        gray[0, 1:, 0] += 1  # now it is coloured: every value counts
        assert read_mask(save(tmp_path / "m.png", gray), (1, 33)).sum() == 32

    def test_many_palette_indices_are_not_soft(self, tmp_path: Path) -> None:
        image = Image.fromarray(np.arange(40, dtype=np.uint8)[None]).convert("P")
        assert read_mask(save(tmp_path / "m.png", image), (1, 40)).sum() == 39

    def test_fit(self, tmp_path: Path) -> None:
        path = save(tmp_path / "m.png", np.array([[0, 9], [7, 0]], np.uint8))
        expected = [[False, False, True, True]] * 2 + [[True, True, False, False]] * 2
        assert read_mask(path, (4, 4), fit=True).tolist() == expected
        assert read_mask(path, (2, 2), fit=True).tolist() == [[False, True], [True, False]]
        assert read_mask(path, (100, 102), fit=True).shape == (100, 102)
        for size in ((100, 103), (103, 100)):
            with pytest.raises(ImageError, match="the mask is 2 x 2 pixels, but its image is 10"):
                read_mask(path, size, fit=True)
        with pytest.raises(ImageError, match="the mask is 2 x 2 pixels"):
            read_mask(path, (4, 4))

    def test_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = save(tmp_path / "m.png", np.array([[0, 9, 1]], np.uint8)).read_bytes()
        assert decode_mask(data, "x").tolist() == [[False, True, True]]
        with pytest.raises(ImageError, match=r"^cannot read mask the name: not an image"):
            decode_mask(b"hello", "the name")
        monkeypatch.setattr(images, "MAX_PIXELS", 2)
        with pytest.raises(ImageError, match="limit of 2 pixels"):
            decode_mask(data, "x")

    @given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 8), st.integers(1, 4))))  # too few pixels to be soft
    def test_is_where_not_zero(self, scratch: Path, values: Array) -> None:
        save(scratch, values, format="PNG")
        assert np.array_equal(read_mask(scratch, values.shape), values != 0)


def test_import_is_light() -> None:
    heavy = "{'torch', 'timm', 'scipy', 'sklearn'}"
    code = f"import sys, adtr.data.loading, adtr.data.folder; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_fax_coded_photographs_are_refused_but_masks_are_read(tmp_path: Path) -> None:
    """Of a damaged one, libtiff prints a line for each of millions of rows."""
    mask = np.zeros((9, 8), bool)
    mask[2:5, 3:6] = True
    Image.fromarray(mask).save(tmp_path / "mask.tif", compression="group4")
    with pytest.raises(ImageError, match="fax"):
        read_image(tmp_path / "mask.tif")
    assert np.array_equal(read_mask(tmp_path / "mask.tif", (9, 8)), mask)

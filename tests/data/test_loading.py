import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adtr.data import loading
from adtr.data.images import read_image, resize
from adtr.data.loading import SkippedImage, load_images
from adtr.errors import ConfigError, ImageError

Array = npt.NDArray[Any]


def flat(value: float, height: int = 4, width: int = 6) -> Array:
    return np.full((height, width, 3), value, np.uint8)


def loading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("adtr-load")]


@pytest.fixture(autouse=True)
def _no_thread_outlives_its_test() -> Iterator[None]:
    before = set(loading_threads())
    yield
    deadline = time.monotonic() + 5
    while set(loading_threads()) - before and time.monotonic() < deadline:
        time.sleep(0.005)
    assert set(loading_threads()) <= before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(12):
        Image.fromarray(flat(i, height=10 + i)).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_what_is_loaded(folder: Path) -> None:
    loaded = list(load_images(sorted(folder.iterdir()), (8, 5)))
    assert [image.index for image in loaded] == list(range(12))
    assert [image.path.name for image in loaded] == [f"{i:02}.png" for i in range(12)]
    assert [image.size for image in loaded] == [(10 + i, 6) for i in range(12)]
    for i, image in enumerate(loaded):
        assert image.source is image.path or image.source == image.path
        assert image.image is None
        assert image.pixels.shape == (8, 5, 3)
        assert image.pixels.dtype == np.uint8
        assert (image.pixels == i).all()


def test_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(flat(1, 4, 9)).save(tmp_path / "x.jpg", exif=exif)
    (loaded,) = load_images([str(tmp_path / "x.jpg")], (2, 2))
    assert loaded.size == (9, 4)
    assert loaded.path == tmp_path / "x.jpg"
    assert loaded.source == str(tmp_path / "x.jpg")


def test_in_memory_and_original() -> None:
    array = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    (loaded,) = load_images([array], (2, 3), keep_original=True)
    assert loaded.path is None
    assert loaded.source is array
    assert np.array_equal(np.asarray(loaded.image), array)
    assert np.array_equal(loaded.pixels, resize(read_image(array), (2, 3)))


def test_no_sources() -> None:
    assert list(load_images([], (2, 2))) == []


@settings(max_examples=25, deadline=None)
@given(count=st.integers(0, 30), workers=st.integers(1, 4), prefetch=st.integers(1, 40))
def test_order_does_not_depend_on_the_threads(count: int, workers: int, prefetch: int) -> None:
    loaded = list(load_images((flat(i) for i in range(count)), (2, 2), workers=workers, prefetch=prefetch))
    assert [(image.index, image.pixels[0, 0, 0]) for image in loaded] == [(i, i) for i in range(count)]


def test_order_is_kept_when_early_images_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_at_first(source: Array, **_: object) -> Image.Image:
        time.sleep(0.03 if source[0, 0, 0] % 4 == 0 else 0)
        return read_image(source)

    monkeypatch.setattr(loading, "read_image", slow_at_first)
    loaded = load_images((flat(i) for i in range(12)), (2, 2), workers=4)
    assert [image.pixels[0, 0, 0] for image in loaded] == list(range(12))


def test_threads_work_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(3, timeout=5)

    def meet(source: Array, **_: object) -> Image.Image:
        together.wait()
        return read_image(source)

    monkeypatch.setattr(loading, "read_image", meet)
    assert len(list(load_images([flat(i) for i in range(6)], (2, 2), workers=3))) == 6


@pytest.mark.parametrize("prefetch", [1, 3])
def test_sources_are_consumed_lazily(prefetch: int) -> None:
    taken = itertools.count()
    last = -1

    def endless() -> Iterator[Array]:
        nonlocal last
        for last in taken:
            yield flat(last % 256)

    stream = load_images(endless(), (2, 2), prefetch=prefetch)
    assert last == -1
    for i in range(10):
        assert next(stream).index == i
        assert last == i + prefetch - 1
    stream.close()


class TestErrors:
    def test_raise_at_the_first_bad_one_in_order(self, folder: Path) -> None:
        (folder / "03.png").write_text("not an image")
        (folder / "05.png").unlink()
        paths = [folder / f"{i:02}.png" for i in range(12)]
        stream = load_images(paths, (2, 2), workers=4)
        assert [next(stream).index for _ in range(3)] == [0, 1, 2]
        with pytest.raises(ImageError, match=r"03\.png"):
            next(stream)
        with pytest.raises(StopIteration):
            next(stream)

    def test_skip(self, folder: Path) -> None:
        (folder / "03.png").write_text("not an image")
        (folder / "05.png").unlink()
        sources = [*(folder / f"{i:02}.png" for i in range(12)), np.zeros((2, 2))]
        skipped: list[SkippedImage] = []
        loaded = list(load_images(sources, (2, 2), on_error="skip", skipped=skipped, prefetch=3))
        assert [image.index for image in loaded] == [0, 1, 2, 4, 6, 7, 8, 9, 10, 11]
        assert [image.path for image in skipped] == [folder / "03.png", folder / "05.png", None]
        assert skipped[0].reason.startswith("not an image")
        assert skipped[1].reason == "No such file or directory"
        assert "float64" in skipped[2].reason

    def test_skip_without_a_list(self, tmp_path: Path) -> None:
        assert [image.index for image in load_images([tmp_path / "x.png", flat(1)], (2, 2), on_error="skip")] == [1]

    def test_all_bad(self, tmp_path: Path) -> None:
        skipped: list[SkippedImage] = []
        assert list(load_images([tmp_path] * 5, (2, 2), on_error="skip", skipped=skipped, prefetch=2)) == []
        assert len(skipped) == 5

    def test_a_bug_is_not_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(_source: object, **_: object) -> NoReturn:
            raise RuntimeError("a bug")

        monkeypatch.setattr(loading, "read_image", fail)
        with pytest.raises(RuntimeError, match="a bug"):
            list(load_images([flat(1)], (2, 2), on_error="skip"))

    def test_failing_sources(self) -> None:
        def sources() -> Iterator[Array]:
            yield flat(0)
            raise KeyError("the source's own")

        with pytest.raises(KeyError, match="the source's own"):
            list(load_images(sources(), (2, 2)))

    @pytest.mark.parametrize("options", [{"workers": 0}, {"prefetch": 0}])
    def test_options_out_of_range(self, options: dict[str, int]) -> None:
        with pytest.raises(ConfigError, match="at least 1"):
            next(load_images([flat(1)], (2, 2), **options))


def test_closing_early_does_not_wait_for_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    started = []

    def block(source: Array, **_: object) -> Image.Image:
        index = int(source[0, 0, 0])
        started.append(index)
        if index > 0:
            assert release.wait(5)
        return read_image(source)

    monkeypatch.setattr(loading, "read_image", block)
    stream = load_images((flat(i) for i in range(100)), (2, 2), workers=2, prefetch=32)
    assert next(stream).index == 0
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 1
    release.set()
    for thread in loading_threads():
        thread.join(5)
    assert len(started) <= 3  # the first and one per thread; the rest of the queue was dropped


def test_paths_of_any_kind(folder: Path) -> None:
    class Here:
        def __fspath__(self) -> str:
            return str(folder / "00.png")

    loaded = list(load_images([Here(), str(folder / "01.png"), folder / "02.png"], (2, 2)))
    assert [type(image.path) for image in loaded] == [type(Path())] * 3
    assert loaded[0].size == (10, 6)


def test_brightness_and_sharpness_are_those_of_the_light() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 120, (32, 48, 3), np.uint8)
    plain = np.full((32, 48, 3), 90, np.uint8)
    first, twice, flat = load_images([image, image * 2, plain], (32, 48))
    assert first.brightness == pytest.approx(image.mean())
    grey = image.mean(axis=2)
    steps = np.mean([[abs(a - b) for a, b in itertools.pairwise(row)] for row in grey])
    steps += np.mean([[abs(a - b) for a, b in itertools.pairwise(column)] for column in grey.T])
    assert first.sharpness == pytest.approx(steps / grey.mean(), rel=1e-5)
    assert (twice.brightness, twice.sharpness) == pytest.approx((2 * first.brightness, first.sharpness), rel=1e-5)
    assert (flat.brightness, flat.sharpness) == (90, 0)

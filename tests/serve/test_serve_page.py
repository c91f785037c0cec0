"""The page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.detector import AnomalyDetector
from adtr.serve.app import create_app
from adtr.serve.models import Models
from adtr.serve.service import Settings
from browser import Browser, open_browser
from conftest import listening

TOKEN = "a-secret-token"
ITEMS = (
    "[...document.querySelectorAll('#results li')].map((li) => [li.querySelector('.name').textContent, li.className])"
)


@pytest.fixture(scope="module")
def address(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = Settings(token=TOKEN, feedback=tmp_path_factory.mktemp("feedback"))
    with listening(create_app(Models({"discs": model}, AnomalyDetector.load), settings)) as base:
        yield f"{base}/"


@pytest.fixture(scope="module")
def page(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page, once the token is given."""
    with open_browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.open(address)
        browser.wait("!document.getElementById('token-form').hidden")
        assert browser.run("document.activeElement.id") == "token"
        for character in TOKEN:
            browser.key(character)
        browser.run("document.querySelector('#token-form button').click()")
        browser.wait("document.getElementById('model').value === 'discs'")
        browser.errors.clear()  # the 401
        yield browser


def pixels(browser: Browser, name: str) -> np.ndarray:
    """What the canvas of an image shows, (H, W, 3)."""
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    data = browser.run(
        "[...document.querySelectorAll('#results li')].find((li) => li.querySelector('.name').textContent === "
        f"{json.dumps(name)}).querySelector('canvas').toDataURL()"
    )
    with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


def move(browser: Browser, slider: str, value: int) -> None:
    browser.run(
        f"(() => {{ const slider = document.getElementById('{slider}'); slider.value = {value}; "
        "slider.dispatchEvent(new Event('input')); })()"
    )
    browser.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def test_the_page_from_drop_to_verdict(
    page: Browser, address: str, detector: AnomalyDetector, good_png: bytes, bad_png: bytes
) -> None:
    page.drop({"<i>good.png": good_png, "bad.png": bad_png, "notes.txt": b"no image"})
    page.wait(
        "document.querySelectorAll('#results li').length === 2 && document.querySelector('#results li').className"
    )
    assert page.run(ITEMS) == [["bad.png", "anomalous"], ["<i>good.png", "good"]]
    bad = detector.predict([bad_png])[0]
    numbers = page.run("document.querySelector('#results .numbers').textContent")
    assert f"score {bad.score:.4g}, above the threshold {bad.thresholds.image:.4g}" in numbers
    regions = page.run("document.querySelector('#results .regions').textContent")
    left, top, width, height = bad.regions[0].box  # the page looks at pixels of the canvas, here of the same size
    assert f"{width} x {height} at {left}, {top}" in regions
    assert page.run("document.getElementById('summary').textContent") == "1 of 2 anomalous"
    assert all(url.startswith((address, "data:", "blob:")) for url in page.requested)
    assert page.errors == []


def test_the_sliders_change_what_is_shown_at_once(
    page: Browser, detector: AnomalyDetector, good_png: bytes, bad_png: bytes
) -> None:
    requests = len(page.requested)
    predictions = detector.predict([bad_png, good_png])
    calibration = detector.calibration_
    own = page.run("document.getElementById('rate').value")
    most = int(page.run("document.getElementById('rate').max"))
    for above in range(most + 1):
        move(page, "rate", above)
        rate = (above + 1) / (calibration.images + 1)
        thresholds = calibration.thresholds(rate)
        expected = [thresholds.verdict(prediction.score) for prediction in predictions]
        assert [verdict for _, verdict in page.run(ITEMS)] == expected
        assert f"threshold {thresholds.image:.4g}" in page.run(
            "document.querySelector('#results .numbers').textContent"
        )
    assert thresholds.false_alarm_rate == pytest.approx(0.5, abs=0.5 / calibration.images)
    move(page, "rate", int(own))
    assert "(the model's)" in page.run("document.getElementById('rate-text').textContent")

    original = np.asarray(Image.open(io.BytesIO(bad_png)))
    move(page, "opacity", 100)
    hot = pixels(page, "bad.png")
    assert hot.shape == original.shape
    page.key("h")
    plain = pixels(page, "bad.png")
    outlined = (plain != original).any(axis=-1)
    assert 0 < outlined.mean() < 0.5
    inside = predictions[0].mask
    assert not outlined[~_grown(inside, 3)].any()
    assert (hot != original).any(axis=-1)[inside].mean() > 0.9
    page.key("h")
    np.testing.assert_array_equal(pixels(page, "bad.png"), hot)
    assert len(page.requested) == requests  # the server was not asked


def test_a_wrong_verdict_can_be_marked(page: Browser) -> None:
    page.run("document.querySelector('#results [data-label=good]').click()")
    page.wait("document.querySelector('#results .kept').textContent === 'Kept as good.'")


def test_what_the_server_refuses_is_told(page: Browser) -> None:
    page.drop({"torn.png": b"no image"})
    page.wait("document.getElementById('message').textContent.startsWith('torn.png: cannot read image')")
    page.drop({"notes.txt": b"no image"})
    page.wait("document.getElementById('message').textContent === 'These are no images.'")
    page.errors.clear()


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_a_phone_and_both_colour_schemes(page: Browser, dark: bool) -> None:
    page.screen(360, 740, dark=dark, mobile=True)
    time.sleep(0.2)
    assert page.run("document.documentElement.scrollWidth") <= 360
    with Image.open(io.BytesIO(page.screenshot())) as image:
        brightness = np.median(np.asarray(image.convert("L")))
    assert brightness < 80 if dark else brightness > 170
    page.screen(1200, 900)


def _grown(mask: np.ndarray, steps: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.binary_dilation(mask, np.ones((3, 3)), iterations=steps)  # type: ignore[no-any-return]

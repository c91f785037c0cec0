"""The report as a page: whole, closed, escaped, and honest about what is missing."""

import re
import shutil
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path

import pytest
from darkness import SCORES, Darkness, write_parts
from PIL import Image

from adtr.errors import ModelError
from adtr.report import write_report
from adtr.report.page import POLICY


class Outline(HTMLParser):
    """The tags with their attributes, and the text; checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def report(parts: Path, **options: object) -> tuple[str, Outline]:
    path = parts.parent / "out" / "report.html"
    write_report(Darkness(), parts, path, **options)  # type: ignore[arg-type]
    page = path.read_text("utf-8")
    return page, Outline(page)


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "parts", SCORES, masks=["crack", "dent"])


def test_the_page_refers_to_nothing_outside_itself(parts: Path) -> None:
    page, outline = report(parts)
    assert {"content": POLICY, "http-equiv": "Content-Security-Policy"} in [tags for tag, tags in outline.tags]
    assert not {"script", "iframe", "object", "embed", "form", "link", "base"} & {tag for tag, _ in outline.tags}
    assert not any(name.startswith("on") for _, attributes in outline.tags for name in attributes)
    addresses = [
        value or ""
        for _, attributes in outline.tags
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "srcset", "action", "data")
    ]
    assert all(address.startswith(("#", "data:image/jpeg;base64,")) for address in addresses)
    assert all(address.startswith("#") for address in re.findall(r"url\(([^)]*)\)", page))
    anchors = {address[1:] for address in addresses if address.startswith("#") and len(address) > 1}
    assert anchors <= {attributes.get("id") for _, attributes in outline.tags}
    assert str(parts.parent) not in page  # where the data lies is nobody's business


def test_the_page_has_all_that_a_reader_needs(parts: Path) -> None:
    page, outline = report(parts)
    told = " ".join(outline.text.split())
    for part in (
        "Verdict Of 9 good images",
        "What is not known",
        "2 of 9 22.2% 2.8% to 60.0%",
        "crack: missed 1 of 5 20.0% 0.5% to 71.6%",
        "ROC, AUROC 0.7901",
        "test/good/008.png anomalous; score 90, p-value 0.025, severity",
        "3 of 9 images with a defect, the lowest score first.",
        "156 good images of parts",
        "image_size 16 x 16",
        "torch 2.9",
    ):
        assert part in told
    assert page.count("<svg ") == 4
    pictures = [attributes for tag, attributes in outline.tags if tag == "img"]
    assert len(pictures) == 2 * 3 + 3 * 4 + 2 * 3 + 2 * 4 + 2 * 4
    assert all(attributes["alt"] for attributes in pictures)


def test_names_of_files_are_text_and_nothing_else(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>&\"'"
    parts = write_parts(tmp_path / "<b>parts", {"good": [10.0, 90.0], bad: [15.0, 60.0]}, masks=[bad])
    (parts / f"test/{bad}/000.png").rename(parts / f"test/{bad}/{bad}\u202egnp.png")
    (parts / "test/good/000.png").write_bytes(b"")
    page, outline = report(parts, on_error="skip")
    assert "<img src=x" not in page
    assert "<b>parts" not in page
    assert not any("onerror" in attributes for _, attributes in outline.tags)
    assert f"test/{bad}/{bad}\\u202egnp.png" in outline.text
    assert "test/good/000.png" in outline.text  # the one that could not be read


@pytest.mark.parametrize(
    ("kinds", "said", "charts"),
    [
        (["good"], "no trade-off without images of defects, and no ROC without both", 2),
        (["dent"], "no calibration curve without good test images, and no ROC without both", 2),
    ],
)
def test_a_half_is_shown_and_the_other_half_is_said_to_be_missing(
    kinds: list[str], said: str, charts: int, tmp_path: Path
) -> None:
    page, outline = report(write_parts(tmp_path / "parts", {kind: SCORES[kind] for kind in kinds}))
    assert said in outline.text
    assert page.count("<svg ") == charts
    assert "not known" in outline.text


def test_nothing_readable_is_a_report_too(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", {"good": [10.0]})
    (parts / "test/good/000.png").write_bytes(b"")
    page, outline = report(parts, on_error="skip")
    assert "1 image could not be read" in outline.text
    assert "<svg" not in page


def test_few_or_no_pictures(parts: Path) -> None:
    page, outline = report(parts, panels=0)
    assert "data:image" not in page.replace(POLICY, "")
    assert "3 of 9 images with a defect, of which none is shown" in outline.text
    page, outline = report(parts, panels=1)
    assert "3 of 9 images with a defect, of which 1 is shown" in outline.text


def test_pictures_are_jpeg_files(parts: Path) -> None:
    page, _ = report(parts)
    data = re.findall(r"base64,([A-Za-z0-9+/=]+)", page)
    assert all(b64decode(one).startswith(b"\xff\xd8") for one in data)


def test_the_model_s_files_are_named_with_their_hashes(parts: Path, model: Path) -> None:
    _, outline = report(parts, model=model)
    assert f"{model.name} on parts" in outline.text
    assert re.search(r"model\.safetensors\s*[0-9a-f]{64}", outline.text)
    with pytest.raises(ModelError):
        write_report(Darkness(), parts, parts / "report.html", model=parts)
    assert not (parts / "report.html").exists()


def test_images_of_any_shape_are_shown(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", {"good": [90.0], "dent": [10.0]})
    shutil.rmtree(parts / "test/good")
    (parts / "test/good").mkdir()
    for i, size in enumerate([(1, 1), (400, 3), (3, 400), (16, 16)]):
        Image.new("RGB", size, (100, 100, 100)).save(parts / f"test/good/{i}.png")
    _, outline = report(parts)
    assert "4 of 4 good images" in outline.text

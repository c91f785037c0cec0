import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from adtr.demo.page import MetricRow, Panel, write_index

VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Collects the tags with their attributes, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def write(folder: Path, **changes: object) -> tuple[str, Outline]:
    arguments: dict[str, Any] = {
        "title": "Demo",
        "lead": "Lead.",
        "summary": {"Training": "80 images"},
        "metrics": [MetricRow(name="all", detector={"AUROC": 0.9876}, baseline={"AUROC": 0.5})],
        "samples": [],
        "panels": [],
        "commands": [("Train", "adtr fit")],
    }
    text = write_index(folder, **(arguments | changes)).read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    outline.close()
    assert outline.open == []
    return text, outline


def picture(folder: Path, name: str) -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    return name


def test_every_text_is_escaped(tmp_path: Path) -> None:
    bad = "<script>&\"'"
    file = picture(tmp_path, "a&'b.png")
    text, outline = write(
        tmp_path,
        title=bad,
        lead=bad,
        summary={bad: bad},
        metrics=[MetricRow(name=bad, detector={bad: 1.0}, baseline={bad: 0.0})],
        samples=[file],
        panels=[Panel(file=file, kind=bad, caption=bad)],
        commands=[(bad, bad)],
        baseline=bad,
    )
    assert "<script" not in text
    assert not any(tag == "script" for tag, _ in outline.tags)
    # title, heading, lead, summary twice, row, column, baseline, kind, caption, command twice
    assert outline.texts.count(bad) == 12
    assert any(attributes.get("alt") == f"{bad}: {bad}" for _, attributes in outline.tags)


def test_the_page_refers_to_nothing_but_the_pictures(tmp_path: Path) -> None:
    names = [picture(tmp_path, name) for name in ("samples/a b#1.png", "panels/c%20.png")]
    text, outline = write(tmp_path, samples=names[:1], panels=[Panel(file=names[1], kind="hole", caption="one")])
    addresses = [
        value for _, attributes in outline.tags for key, value in attributes.items() if key in ("src", "href") and value
    ]
    pictures = {address for address in addresses if not address.startswith("#")}
    assert {unquote(address) for address in pictures} == set(names)
    assert all((tmp_path / unquote(address)).is_file() for address in pictures)
    anchors = {address[1:] for address in addresses if address.startswith("#")}
    assert anchors == {attributes["id"] for _, attributes in outline.tags if "id" in attributes}
    assert not re.search(r"https?:|url\(|@import", text)


@pytest.mark.parametrize("file", ["missing.png", "../outside.png", "."])
def test_a_picture_that_is_not_in_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "outside.png").write_bytes(b"")
    folder = tmp_path / "page"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=re.escape(file)):
        write(folder, samples=[file])
    with pytest.raises(FileNotFoundError, match=re.escape(file)):
        write(folder, panels=[Panel(file=file, kind="hole", caption="one")])
    assert list(folder.iterdir()) == []


def test_the_better_number_is_bold_and_an_unknown_one_has_no_winner(tmp_path: Path) -> None:
    rows = [
        MetricRow(name="all", detector={"AUROC": 0.9876, "AP": 0.25}, baseline={"AUROC": 0.5, "AP": 0.75}),
        MetricRow(name="hole", detector={"AUROC": math.nan, "AP": 0.5}, baseline={"AUROC": 0.5, "AP": 0.5}),
    ]
    text, _ = write(tmp_path, metrics=rows)
    assert re.findall(r"<strong>(.*?)</strong>", text) == ["0.988", "0.750"]
    assert "<td>n/a</td><td>0.500</td><td>0.500</td><td>0.500</td>" in text


def test_the_best_and_the_hardest_of_each_kind_are_marked(tmp_path: Path) -> None:
    qualities = {"hole": [0.5, 0.9, 0.0, None], "stain": [0.7], "crack": [0.6, 0.6]}
    panels = [
        Panel(file=picture(tmp_path, f"{kind}{i}.png"), kind=kind, caption=f"{kind}{i}", quality=quality)
        for kind, values in qualities.items()
        for i, quality in enumerate(values)
    ]
    text, _ = write(tmp_path, panels=panels)
    assert re.findall(r'<span class="mark \w+">(\w+)</span> (\w+)', text) == [("best", "hole1"), ("hardest", "hole2")]
    assert re.findall(r"<h3>(.*?)</h3>", text) == ["hole", "stain", "crack"]


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, title="First")
    text, _ = write(tmp_path, title="Second")
    assert "Second" in text
    assert "First" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


def test_without_metrics_the_page_says_so(tmp_path: Path) -> None:
    text, outline = write(tmp_path, metrics=[])
    assert "Nothing was measured." in text
    assert not any(tag == "table" for tag, _ in outline.tags)

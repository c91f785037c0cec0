"""Watching a folder: complete images only, each once, also across a crash; sorting."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError, DataError
from adtr.watching import RESULTS, FolderWatch


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, Path]:
    """The folder that is watched and the output."""
    (tmp_path / "in").mkdir()
    return tmp_path / "in", tmp_path / "out"


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / RESULTS).read_text().splitlines()]


def looks(watch: FolderWatch, detector: AnomalyDetector, number: int = 2) -> list[str]:
    return [row["path"] for _ in range(number) for row in watch.look(detector)]


def test_an_image_is_predicted_once_it_is_complete(
    place: tuple[Path, Path], detector: AnomalyDetector, good_png: bytes, bad_png: bytes
) -> None:
    folder, output = place
    watch = FolderWatch(folder, output)
    slow = folder / "slow.png"
    slow.write_bytes(bad_png[:100])
    (folder / "sub").mkdir()
    (folder / "sub" / "a.png").write_bytes(good_png)
    (folder / ".hidden.png").write_bytes(good_png)
    (folder / "notes.txt").write_text("no image")
    assert looks(watch, detector, 1) == []
    slow.write_bytes(bad_png[:2000])
    assert looks(watch, detector, 1) == ["sub/a.png"]
    slow.write_bytes(bad_png)
    assert looks(watch, detector, 1) == []
    assert looks(watch, detector, 1) == ["slow.png"]
    assert looks(watch, detector, 3) == []
    told = {row["path"]: row for row in rows(output)}
    expected = detector.predict([bad_png])[0]
    assert told["slow.png"]["score"] == pytest.approx(expected.score, rel=1e-5)
    assert (told["slow.png"]["verdict"], told["sub/a.png"]["verdict"]) == ("anomalous", "good")
    assert told["slow.png"]["regions"]
    assert not (output / "anomalous").exists()


def test_a_restart_repeats_nothing_and_takes_off_a_half_written_line(
    place: tuple[Path, Path], detector: AnomalyDetector, good_png: bytes
) -> None:
    folder, output = place
    for name in ("a.png", "b.png", "c.png"):
        (folder / name).write_bytes(good_png)
    assert looks(FolderWatch(folder, output), detector) == ["a.png", "b.png", "c.png"]
    assert looks(FolderWatch(folder, output), detector) == []
    content = (output / RESULTS).read_bytes()
    (output / RESULTS).write_bytes(content[:-20])
    watch = FolderWatch(folder, output)
    assert (output / RESULTS).read_bytes() == content[: content.rfind(b'{"path": "c')]
    assert looks(watch, detector) == ["c.png"]
    assert [row["path"] for row in rows(output)] == ["a.png", "b.png", "c.png"]


@given(cuts=st.lists(st.integers(0, 3000), max_size=4))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_the_results_are_cut_each_image_is_there_once_in_the_end(
    cuts: list[int], detector: AnomalyDetector, good_png: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("cut")
    folder, output = root / "in", root / "out"
    folder.mkdir()
    for i in range(4):
        (folder / f"{i}.png").write_bytes(good_png)
    for cut in [*cuts, None]:
        looks(FolderWatch(folder, output, sort="copy"), detector)
        if cut is not None:
            content = (output / RESULTS).read_bytes()
            (output / RESULTS).write_bytes(content[:cut])
    assert Counter(row["path"] for row in rows(output)) == {f"{i}.png": 1 for i in range(4)}
    assert sum(path.is_file() for path in output.rglob("*.png")) == 4


def test_an_image_that_replaces_another_is_predicted_and_sorted_anew(
    place: tuple[Path, Path], detector: AnomalyDetector, good_png: bytes, bad_png: bytes
) -> None:
    folder, output = place
    watch = FolderWatch(folder, output, sort="copy")
    (folder / "latest.png").write_bytes(good_png)
    looks(watch, detector)
    assert (output / "good/latest.png").read_bytes() == good_png
    (folder / "latest.png").write_bytes(bad_png)
    assert looks(watch, detector) == ["latest.png"]
    assert [row["verdict"] for row in rows(output)] == ["good", "anomalous"]
    assert (output / "anomalous/latest.png").read_bytes() == bad_png
    assert not (output / "good/latest.png").exists()


def test_links_lead_to_the_images(
    place: tuple[Path, Path], detector: AnomalyDetector, bad_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = place
    monkeypatch.chdir(folder.parent)
    (folder / "deep").mkdir()
    (folder / "deep/a.png").write_bytes(bad_png)
    looks(FolderWatch(Path("in"), Path("out"), sort="link"), detector)
    link = output / "anomalous/deep/a.png"
    assert link.is_symlink()
    assert link.resolve() == (folder / "deep/a.png").resolve()


def test_unsure_images_have_a_folder_of_their_own(place: tuple[Path, Path], model: Path, bad_png: bytes) -> None:
    folder, output = place
    detector = AnomalyDetector.load(model)
    detector.set_rates(0.0, 0.5)
    score = detector.predict([bad_png])[0].score
    object.__setattr__(detector.thresholds_, "image", score + 1)
    (folder / "a.png").write_bytes(bad_png)
    looks(FolderWatch(folder, output, sort="copy"), detector)
    assert (output / "unsure/a.png").is_file()


def test_what_is_no_image_is_told_once(place: tuple[Path, Path], detector: AnomalyDetector) -> None:
    folder, output = place
    (folder / "text.png").write_text("no image")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    watch = FolderWatch(folder, output, sort="copy")
    assert looks(watch, detector, 4) == ["text.png"]
    (row,) = rows(output)
    assert row["error"].startswith(f"cannot read image {folder / 'text.png'}: not an image")
    assert "verdict" not in row
    assert looks(FolderWatch(folder, output), detector) == []


def test_it_stops_between_two_images(place: tuple[Path, Path], detector: AnomalyDetector, good_png: bytes) -> None:
    folder, output = place
    for i in range(5):
        (folder / f"{i}.png").write_bytes(good_png)
    watch = FolderWatch(folder, output)
    list(watch.look(detector))
    done: list[str] = []
    for row in watch.look(detector, stop=lambda: len(done) == 2):
        done.append(row["path"])  # noqa: PERF401 - `stop` looks at it meanwhile
    assert done == ["0.png", "1.png"]
    assert looks(watch, detector) == ["2.png", "3.png", "4.png"]


@pytest.mark.skipif(os.name == "nt", reason="file names are Unicode there")
def test_a_name_that_is_not_unicode_is_remembered(
    place: tuple[Path, Path], detector: AnomalyDetector, good_png: bytes
) -> None:
    folder, output = place
    name = os.fsdecode(b"gr\xfcn.png")
    (folder / name).write_bytes(good_png)
    assert looks(FolderWatch(folder, output, sort="copy"), detector) == [name]
    assert looks(FolderWatch(folder, output), detector) == []


def test_mistakes_are_told(place: tuple[Path, Path]) -> None:
    folder, output = place
    with pytest.raises(DataError, match="no such folder"):
        FolderWatch(folder / "nothing", output)
    for inside, outside in ((folder, folder), (folder, folder / "out"), (folder, folder.parent)):
        with pytest.raises(ConfigError, match="inside each other"):
            FolderWatch(inside, outside)
    output.mkdir()
    (output / RESULTS).write_text('{"a": 1}\n')
    with pytest.raises(AdtrError, match="something else"):
        FolderWatch(folder, output)


@pytest.mark.parametrize("size", ["Infinity", "1e999", '"x"', "[" * 100_000])
def test_results_of_something_else_are_refused(place: tuple[Path, Path], size: str) -> None:
    folder, output = place
    output.mkdir()
    (output / RESULTS).write_text(f'{{"path": "a.png", "size": {size}, "mtime_ns": 1}}\n')
    with pytest.raises(AdtrError, match="holds something else"):
        FolderWatch(folder, output)


def test_a_file_larger_than_any_image_is_not_read(
    place: tuple[Path, Path], detector: AnomalyDetector, monkeypatch: pytest.MonkeyPatch, good_png: bytes
) -> None:
    folder, output = place
    monkeypatch.setattr("adtr.watching.MAX_BYTES", 1000)
    (folder / "large.png").write_bytes(good_png)
    assert looks(FolderWatch(folder, output), detector) == ["large.png"]
    assert "more than 1000 bytes" in rows(output)[0]["error"]

"""Rows in parts: what is cut goes on, what is whole says so, what is foreign is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from adtr.errors import AdtrError, ConfigError
from adtr.scaling import answers
from adtr.scaling.answers import MANIFEST, Answers, as_json

ABOUT = {"model": "abc", "images": 10}


def row(number: int) -> dict[str, Any]:
    if number % 4 == 3:
        return {"path": f"{number}.png", "error": "no image"}
    return {
        "path": f"{number}.png",
        "score": number / 3,
        "p_value": 0.5,
        "severity": 1e-9 * number,
        "threshold": 1.1,
        "verdict": "anomalous" if number % 2 else "good",
        "is_anomalous": bool(number % 2),
        "regions": [{"box": [1, 2, 3, 4], "area": 12, "peak": 0.1}] if number % 2 else [],
        "brightness": 100.5,
        "sharpness": 0.25,
    }


@pytest.mark.parametrize("name", ["out", "out.jsonl", "out.parquet"])
@pytest.mark.parametrize("cut", [0, 3, 4, 10])
def test_a_run_that_was_cut_goes_on_and_gives_the_same(
    tmp_path: Path, name: str, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART_ROWS", 2)
    output = tmp_path / name
    killed = Answers(output, ABOUT)
    for number in range(cut):
        killed.add(row(number))
    if killed.is_file:
        assert not output.exists()  # nothing that looks whole
    assert not json.loads((killed.folder / MANIFEST).read_text())["complete"]

    again = Answers(output, ABOUT)
    assert again.done == cut - cut % 2  # the last part was not written
    for number in range(again.done, 10):
        again.add(row(number))
    again.finish()
    assert again.counts == {"good": 5, "anomalous": 3, "unreadable": 2}
    assert [str(image.path) for image in again.skipped] == ["3.png", "7.png"]
    expected = [row(number) for number in range(10)]
    if name == "out.jsonl":
        assert [json.loads(line) for line in output.read_text().splitlines()] == expected
        assert list(json.loads(output.read_text().splitlines()[0])) == list(expected[0])
    else:
        read = parquet.read_table(output).to_pylist()
        assert [json.loads(as_json(r)) for r in read] == expected
    assert again.folder.exists() is (name == "out")
    if name == "out":
        assert Answers(output, ABOUT).is_complete
        manifest = json.loads((output / MANIFEST).read_text())
        assert manifest == {"about": ABOUT, "complete": True, "counts": dict(again.counts)}


def test_a_run_cut_before_its_file_was_made_only_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    first = Answers(tmp_path / "out.jsonl", ABOUT)
    first.add(row(0))
    with monkeypatch.context() as patch:
        patch.setattr(answers, "_join", cut)
        with pytest.raises(KeyboardInterrupt):
            first.finish()
    again = Answers(tmp_path / "out.jsonl", ABOUT)
    assert (again.is_complete, again.done) == (True, 1)
    again.finish()
    assert (tmp_path / "out.jsonl").is_file()


def test_time_alone_makes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PART_SECONDS", 0.0)
    kept = Answers(tmp_path / "out", ABOUT)
    kept.add(row(0))
    kept.add(row(1))
    assert [part.name for part in kept.parts()] == [
        "part-000000000000-000000000001.parquet",
        "part-000000000001-000000000002.parquet",
    ]


def test_another_run_or_something_else_is_not_touched(tmp_path: Path) -> None:
    Answers(tmp_path / "out", ABOUT)
    with pytest.raises(AdtrError, match=r"another run \(with another images\)"):
        Answers(tmp_path / "out", {**ABOUT, "images": 11})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(AdtrError, match="holds something else than results"):
        Answers(tmp_path / "other", ABOUT)
    with pytest.raises(ConfigError, match=r"end in \.parquet or \.jsonl, not 'out\.csv'"):
        Answers(tmp_path / "out.csv", ABOUT)
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(AdtrError, match="is a folder, not a file"):
        Answers(tmp_path / "folder.jsonl", ABOUT)
    (tmp_path / "out" / MANIFEST).write_text("[]")
    with pytest.raises(AdtrError, match="is no manifest"):
        Answers(tmp_path / "out", ABOUT)


def test_a_part_that_is_missing_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PART_ROWS", 1)
    kept = Answers(tmp_path / "out", ABOUT)
    for number in range(3):
        kept.add(row(number))
    kept.parts()[1].unlink()
    with pytest.raises(AdtrError, match="lacks the part with row 1"):
        Answers(tmp_path / "out", ABOUT)

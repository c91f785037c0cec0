"""`--track` of each command that has it."""

from pathlib import Path
from typing import Any

import pytest

from adtr.cli import main
from adtr.store import read_metadata
from adtr.tracking import TRACKERS, Tracker
from conftest import SMALL, write_dataset

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
QUICK = [*FLAGS, "--max-steps", "2"]
TOOL = "json"
"""A package that is always there stands for a tool."""


class Notebook(Tracker):
    """Remembers what it was told."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = f"a notebook at {where}", name
        self.images: list[str] = []
        self.steps: list[int] = []
        self.model: Path | None = None
        self.failed: bool | None = None

    def _write_config(self, values: Any) -> None:  # noqa: ANN401
        self.config = values

    def _write_losses(self, values: Any, step: int) -> None:  # noqa: ANN401
        self.steps += [step] * ("loss" in values)

    def _write_results(self, values: Any) -> None:  # noqa: ANN401
        self.results = values

    def _write_image(self, name: str, path: Path) -> None:
        assert path.is_file()
        self.images.append(name)

    def _write_model(self, folder: Path) -> None:
        assert read_metadata(folder)
        self.model = folder

    def _end(self, failed: bool) -> None:
        self.failed = failed


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> list[Notebook]:
    """A notebook for each run."""
    books: list[Notebook] = []

    def open_one(where: str, name: str) -> Notebook:
        books.append(Notebook(where, name))
        return books[-1]

    monkeypatch.setitem(TRACKERS, TOOL, open_one)
    return books


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def test_fit(dataset: Path, tmp_path: Path, books: list[Notebook], capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "bottles"
    assert adtr("fit", dataset, "-o", output, *QUICK, "--track", f"{TOOL}:here:80") == 0
    [book] = books
    assert "told a notebook at here:80\n" in capsys.readouterr().err
    assert (book.name, book.failed, book.steps, book.model) == ("bottles", False, [1, 2], output)
    assert book.config["width"] == SMALL["width"]
    assert book.results["training/images"] == 14


def test_a_fit_that_fails(dataset: Path, tmp_path: Path, books: list[Notebook]) -> None:
    missing = tmp_path / "weights.safetensors"
    assert adtr("fit", dataset, "-o", tmp_path / "m", *QUICK, "--track", TOOL, "--backbone-weights", missing) == 2
    assert books[0].failed is True
    assert books[0].model is None


def test_improve(model: Path, dataset: Path, tmp_path: Path, books: list[Notebook]) -> None:
    output = tmp_path / "better"
    steps = ("--improve-epochs", 1, "--improve-max-steps", 1)
    assert adtr("improve", model, "--anomalies", dataset / "test/dark", "-o", output, *steps, "--track", TOOL) == 0
    [book] = books
    assert (book.name, book.failed, book.steps, book.model) == ("better", False, [1], output)
    assert {"before/false_alarms", "after/image_auroc"} <= set(book.results)
    assert book.config["improve_max_steps"] == 1


def test_evaluate(model: Path, dataset: Path, tmp_path: Path, books: list[Notebook]) -> None:
    assert adtr("evaluate", model, dataset, "--panels", tmp_path / "panels", "--track", TOOL, "-q") == 0
    [book] = books
    assert (book.name, book.failed, book.steps, book.model) == (f"evaluate {model.name}", False, [], None)
    assert len(book.images) == 16
    assert "panels/dark/000.jpg" in book.images
    assert 0 <= book.results["image_auroc"] <= 1
    assert book.config["model"] == str(model)


def test_experiment(tmp_path: Path, books: list[Notebook]) -> None:
    write_dataset(tmp_path / "discs", train=10, test=4)
    flags = [*QUICK, "--improve-epochs", "1", "--jobs", "1", "-q", "--preset", "quick"]
    assert adtr("experiment", "mvtec", "--data", tmp_path, "-o", tmp_path / "out", *flags, "--track", TOOL) == 0
    assert [(book.name, book.failed) for book in books] == [("discs ADTR 0", False), ("discs ADTR+ 0", False)]
    assert books[1].config["row"] == "ADTR+"
    assert books[1].config["width"] == SMALL["width"]
    assert 0 <= books[1].results["pixel_auroc"] <= 1


@pytest.mark.parametrize("command", ["fit", "experiment"])
def test_an_unknown_tool_is_told_before_any_work(
    command: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (dataset,) if command == "fit" else ("mvtec", "--data", dataset)
    assert adtr(command, *given, "-o", tmp_path / "m", *QUICK, "--track", "tensorbord") == 2
    assert "unknown tracking tool 'tensorbord'; did you mean tensorboard?" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()

"""Several processes at once on one output or one model: one wins, none corrupts, and no lock outlives its process."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adtr.cli import main
from adtr.detector import AnomalyDetector
from adtr.locks import hold_folder
from conftest import SMALL

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def process(*command: object) -> Iterator[subprocess.Popen[str]]:
    """A process that is killed in the end."""
    with subprocess.Popen(
        [*map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


@posix
def test_an_output_that_is_being_written_is_nobody_else_s(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    for held, command in (
        (tmp_path / "out.unfinished", ("fit", dataset, "-o", output)),
        (tmp_path / "out.unfinished", ("improve", model, "--synthetic", "scar", "-o", output)),
        (output, ("watch", dataset / "test", "-m", model, "-o", output)),
        (output, ("experiment", "mvtec", "--data", dataset, "-o", output)),
    ):
        with hold_folder(held):
            assert adtr(*command) == 2
        said = f"another process is writing {output}; wait until it has ended, or choose another output"
        assert capsys.readouterr().err == f"adtr: error: {said}\n"


@posix
@pytest.mark.slow
def test_of_two_fits_one_wins_and_a_killed_one_leaves_no_lock(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, work = tmp_path / "model", tmp_path / "model.unfinished"
    code = "import sys\nfrom adtr.cli import main\nfrom adtr.training import loop\n"
    code += "loop.CHECKPOINT_SECONDS = 0\nmain(sys.argv[1:])"
    with process(sys.executable, "-c", code, "fit", dataset, "-o", output, *FLAGS, "--epochs", 5000) as first:
        wait_for(lambda: (work / "checkpoint.safetensors").exists() or first.poll() is not None)
        assert adtr("fit", dataset, "-o", output, *FLAGS) == 2
        assert "another process is writing" in capsys.readouterr().err
        assert (work / "checkpoint.safetensors").exists()  # the first one's, untouched
        first.send_signal(signal.SIGKILL)
        first.wait(60)
    assert adtr("fit", dataset, "-o", output, *FLAGS, "-q") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    AnomalyDetector.load(output).predict(dataset / "test/good")


@posix
@pytest.mark.slow
def test_of_two_watches_one_writes_and_a_killed_one_leaves_no_lock(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("watch", dataset / "test", "-m", model, "-o", tmp_path / "out", "--interval", 0.05)
    results = tmp_path / "out/results.jsonl"
    with process(sys.executable, "-m", "adtr", *command) as first:
        wait_for(lambda: results.exists() and bool(results.read_text()))
        assert adtr(*command) == 2
        assert "another process is writing" in capsys.readouterr().err
        first.kill()
        first.wait(60)
    with process(sys.executable, "-m", "adtr", *command) as second:
        wait_for(lambda: len(results.read_text().splitlines()) == 16)
        second.terminate()
        assert second.wait(60) == 0
    rows = [json.loads(line)["path"] for line in results.read_text().splitlines()]
    assert len(set(rows)) == len(rows) == 16


@posix
@pytest.mark.slow
def test_a_model_that_is_replaced_all_the_time_is_always_read_whole(
    detector: AnomalyDetector, dataset: Path, tmp_path: Path
) -> None:
    models = []
    for i in range(2):
        fitted = AnomalyDetector(**{**SMALL, "epochs": 1 + i, "seed": i}).fit(dataset)
        fitted.save(tmp_path / f"{i}")
        models.append((fitted.calibration_, fitted.predict(dataset / "test/good")[0].score))
    code = (
        "import sys\nfrom adtr import AnomalyDetector\n"
        "detectors = [AnomalyDetector.load(path) for path in sys.argv[1:3]]\n"
        "while True:\n    for detector in detectors:\n        detector.save(sys.argv[3])"
    )
    shared = tmp_path / "shared"
    detector.save(shared)
    first = detector.calibration_
    found = []
    with process(sys.executable, "-c", code, tmp_path / "0", tmp_path / "1", shared) as writer:
        wait_for(lambda: AnomalyDetector.load(shared).calibration_ != first or writer.poll() is not None)
        for _ in range(30):
            loaded = AnomalyDetector.load(shared)
            found.append((loaded.calibration_, loaded.predict(dataset / "test/good")[0].score))
        assert writer.poll() is None
    assert all(pair in models for pair in found)
    assert len({calibration.image_scores for calibration, _ in found}) == 2  # it was replaced under our eyes


@posix
@pytest.mark.slow
def test_two_that_learn_from_the_same_features_learn_the_same(dataset: Path, tmp_path: Path) -> None:
    AnomalyDetector(**{**SMALL, "epochs": 1}).fit(dataset, keep_features=True).save(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    command = ("improve", tmp_path / "model", "--synthetic", "scar", "--improve-epochs", 2, "-q", "-o")
    with process(sys.executable, "-m", "adtr", *command, tmp_path / "a") as other:
        assert adtr(*command, tmp_path / "b") == 0
        assert other.wait(120) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before

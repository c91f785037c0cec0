"""Each tool is asked, by its own means of reading, what it was told."""

import importlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, AdtrWarning, ConfigError
from adtr.tracking import Tracker, check_tool, tracked
from conftest import SMALL

RESULTS = {"thresholds": {"image": 2.5, "unsure": None}, "auroc": float("nan"), "ready": True, "kind": "x", "images": 7}
NUMBERS = {"thresholds/image": 2.5, "images": 7.0}
"""What of the results is a finite number."""


def tell(tool: str, folder: Path) -> str:
    """A small run; returns where it is."""
    picture, model = folder / "panel.png", folder / "bottles.adtr"
    Image.new("RGB", (6, 4), (10, 20, 30)).save(picture)
    model.mkdir()
    (model / "config.json").write_text("{}")
    with tracked(tool, "bottles") as tracker:
        assert tracker is not None
        tracker.log_config({"epochs": 3, "backbone": "lite", "image_size": (64, 64)})
        for step in range(1, 4):
            tracker.log_losses({"loss": 1 / step, "learning_rate": 0.5}, step)
        tracker.log_losses({"epoch_loss": 0.6}, 3)
        tracker.log_image("panels/dark/000", picture)
        tracker.log_results(RESULTS)
        tracker.log_model(model)
        return tracker.where


def test_no_tool_is_no_work() -> None:
    with tracked(None, "x") as tracker:
        assert tracker is None


def test_unknown_and_absent_tools_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^unknown tracking tool 'wandbb'; did you mean wandb\? "):
        check_tool("wandbb:here")
    monkeypatch.setattr("adtr.tracking.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"pip install 'adtr\[mlflow\]'$"):
        check_tool("mlflow:http://localhost:5000")


def test_a_folder_of_runs_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the working directory of `python -m adtr` may have one."""
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(ConfigError, match=r"pip install 'adtr\[mlflow\]'$"):
        check_tool("mlflow")


class Deaf(Tracker):
    """Fails as a server that went away does."""

    where = "a server"

    def __init__(self) -> None:
        self.asked = 0

    def _write_losses(self, values: object, step: int) -> None:  # noqa: ARG002
        self.asked += 1
        raise ConnectionError("gone\nfor pages")

    _write_config = _write_results = _write_image = _write_model = _end = None  # type: ignore[assignment]


def test_a_tool_that_fails_is_told_no_more_and_the_work_goes_on() -> None:
    tracker = Deaf()
    with pytest.warns(AdtrWarning, match=r"^a server takes no more: gone; the work goes on$"):
        tracker.log_losses({"loss": 1.0}, 1)
    tracker.log_losses({"loss": 1.0}, 2)
    tracker.finish(failed=False)
    assert tracker.asked == 1


def test_a_detector_tells_its_tracker_of_all_its_steps(dataset: Path) -> None:
    class Notes(Tracker):
        where = "here"

        def __init__(self) -> None:
            self.notes: list[tuple[Any, ...]] = []

        def _write_losses(self, values: Any, step: int) -> None:  # noqa: ANN401
            self.notes.append((step, *values))

        def _write_config(self, values: Any) -> None:  # noqa: ANN401
            self.config = values

        def _write_results(self, values: Any) -> None:  # noqa: ANN401
            self.results = values

        _write_image = _write_model = _end = None  # type: ignore[assignment]

    notes = Notes()
    detector = AnomalyDetector(**SMALL, max_steps=3).fit(dataset, tracker=notes)
    steps = [(step, "loss", "learning_rate") for step in (1, 2, 3)]
    assert notes.notes == [*steps[:2], (2, "epoch_loss"), steps[2], (3, "epoch_loss")]
    assert notes.config["max_steps"] == 3
    assert notes.config["data"] == str(dataset)
    assert notes.results["thresholds/image"] == detector.thresholds_.image
    assert notes.results["training/steps"] == 3


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    where = tell(f"tensorboard:{tmp_path / 'runs'}", tmp_path)
    folder = tmp_path / "runs/bottles/version_0"
    assert where == f"TensorBoard ({folder})"
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (1, 1.0),
        (2, 0.5),
        (3, pytest.approx(1 / 3)),
    ]
    assert events.Scalars("thresholds/image")[0].value == 2.5
    assert "auroc" not in events.Tags()["scalars"]
    assert (events.Images("panels/dark/000")[0].height, events.Images("panels/dark/000")[0].width) == (4, 6)
    assert b"|epochs|3|" in events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0]
    assert events.SummaryMetadata("_hparams_/session_start_info") is not None


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real MLflow server on this machine."""
    pytest.importorskip("mlflow")
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("mlflow")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "a")]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + 120
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert server.poll() is None
                assert time.monotonic() < end
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def check_mlflow(uri: str, artifacts: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("adtr")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("bottles", "FINISHED")
    assert run.data.params == {"epochs": "3", "backbone": "lite", "image_size": "(64, 64)"}
    assert {key: run.data.metrics[key] for key in NUMBERS} == NUMBERS
    assert "auroc" not in run.data.metrics
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [(loss.step, loss.value) for loss in losses] == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert [file.path for file in client.list_artifacts(run.info.run_id, "panels/dark")] == ["panels/dark/panel.png"]
    model = Path(client.download_artifacts(run.info.run_id, "model", str(artifacts)))
    assert (model / "config.json").read_text() == "{}"


def test_mlflow_in_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)  # where it puts the artifacts
    uri = f"sqlite:///{tmp_path}/runs.db"
    assert tell(f"mlflow:{uri}", tmp_path).startswith(f"MLflow ({uri}, experiment adtr, run ")
    (tmp_path / "read").mkdir()
    check_mlflow(uri, tmp_path / "read")


@pytest.mark.slow
def test_mlflow_on_a_server(mlflow_server: str, tmp_path: Path) -> None:
    tell(f"mlflow:{mlflow_server}", tmp_path)
    (tmp_path / "read").mkdir()
    check_mlflow(mlflow_server, tmp_path / "read")


def test_an_mlflow_server_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with (
        pytest.raises(AdtrError, match=r"^mlflow cannot track this run at http://127\.0\.0\.1:9: .+"),
        tracked("mlflow:http://127.0.0.1:9", "x"),
    ):
        pass


def test_weights_and_biases_stays_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB__SERVICE_WAIT", "300")  # for a machine that is busy
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "own"))
    where = tell(f"wandb:{tmp_path / 'runs'}", tmp_path)
    [folder] = (tmp_path / "runs/wandb").glob("offline-run-*")
    assert where == f"Weights & Biases ({folder})"
    [record] = folder.glob("*.wandb")
    told = (b"learning_rate", b"epoch_loss", b"thresholds/image", b"backbone", b"bottles.adtr")
    deadline = time.monotonic() + 60  # a process of its own writes the file, after the run has ended
    while any(name not in record.read_bytes() for name in told) and time.monotonic() < deadline:
        time.sleep(0.1)
    content = record.read_bytes()
    assert [name for name in told if name not in content] == []
    assert b"auroc" not in content
    assert [path.suffix for path in folder.glob("files/media/images/panels/dark/*")] == [".png"]
    assert not list(tmp_path.rglob("code/*"))

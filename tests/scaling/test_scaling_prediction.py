"""Predicting with Ray on a real local cluster: the same answers, each once, whoever is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import Table, parquet
from ray._common.usage.usage_lib import usage_stats_enabled
from ray.data import Dataset

from adtr.cli import main
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError, ModelError
from adtr.files import replace_file
from adtr.locks import hold_folder
from adtr.progress import Silent
from adtr.scaling import answers, prediction
from adtr.scaling.cluster import gpus_for
from adtr.scaling.prediction import PROBLEM, Order, Worker, model_digest, pipeline, predict
from adtr.scaling.sources import find_units

pytestmark = pytest.mark.usefixtures("cluster")


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert [row["path"] for row in found] == [row["path"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            if name == "regions":
                assert [region["box"] for region in value] == [region["box"] for region in other[name]]
            else:
                assert value == (pytest.approx(other[name], rel=1e-4) if isinstance(value, float) else other[name])


@pytest.fixture(scope="module")
def images(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """128 images, good and dark ones in turns."""
    folder = tmp_path_factory.mktemp("many")
    sources = sorted((dataset / "test").rglob("*.png"))
    for i in range(128):
        shutil.copy(sources[i * 5 % len(sources)], folder / f"{i:03}.png")
    return folder


@pytest.fixture(scope="module")
def plain(model: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `adtr predict` says of them."""
    output = tmp_path_factory.mktemp("plain") / "out.jsonl"
    assert adtr("predict", model, images, "-o", output, "--unsure-rate", 0.3, "-q") == 0
    return rows(output)


def test_the_command_says_what_predict_says(
    model: Path, images: Path, plain: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    common = ("--engine", "ray", "--unsure-rate", 0.3, "--batch-size", 7)
    assert adtr("predict", model, images, "-o", output, *common) == 0
    check_same(rows(output), plain)
    counts = Counter(row["verdict"] for row in plain)
    assert min(counts["good"], counts["anomalous"]) > 10
    unsure = f", {counts['unsure']} unsure" if counts["unsure"] else ""
    assert capsys.readouterr().err == f"{counts['anomalous']} of 128 images are anomalous{unsure}\n"


@pytest.mark.slow
def test_an_exported_file_reads_parquet_and_answers_in_parquet(
    onnx_file: Path, images: Path, plain: list[dict[str, Any]], tmp_path: Path
) -> None:
    content = [{"image": {"bytes": path.read_bytes()}} for path in sorted(images.iterdir())[:20]]
    content[7]["image"]["bytes"] = b"broken"
    source, output = tmp_path / "in.parquet", tmp_path / "out"
    parquet.write_table(Table.from_pylist(content), source, row_group_size=8)
    given = ("predict", onnx_file, f"file://{source}", "-o", output, "--engine", "ray", "--unsure-rate", 0.3, "-q")
    assert adtr(*given, "--on-error", "skip") == 0
    found = parquet.read_table(output).to_pylist()
    assert [row["path"] for row in found] == [f"file://{source}#{i}" for i in range(20)]
    assert [i for i, row in enumerate(found) if row["error"]] == [7]
    for row, other in zip(found, plain, strict=False):
        if not row["error"]:
            assert row["score"] == pytest.approx(other["score"], rel=1e-3)
            assert row["verdict"] == other["verdict"]


@pytest.mark.slow
def test_decoding_on_the_cores_for_a_gpu_gives_the_same(model: Path, images: Path, plain: list[dict[str, Any]]) -> None:
    """The GPU itself is left out: what is asked for here is two stages, each image through both."""
    order = an_order(model)
    units = find_units([str(images)]).slice(0, 40)
    given: list[dict[str, Any]] = []
    real = Dataset.map_batches
    with pytest.MonkeyPatch.context() as patch:

        def without_gpu(self: Dataset, function: object, **options: object) -> Dataset:
            given.append({"function": function, **options})
            return real(self, function, **{**options, "num_gpus": None})

        patch.setattr(Dataset, "map_batches", without_gpu)
        dataset = pipeline(order, units, 1, on_gpu=True)
        lines = [line for batch in dataset.iter_batches(batch_format="pyarrow") for line in batch["row"].to_pylist()]
    assert [options.get("num_gpus") for options in given] == [None, 1]
    found = [json.loads(line) for line in lines]
    assert [row.pop("number") for row in found] == list(range(40))
    check_same(found, plain[:40])


def an_order(model: Path, **changes: object) -> Order:
    values = {
        "model": model,
        "digest": model_digest(model),
        "device": "auto",
        "backbone_weights": None,
        "false_alarm_rate": None,
        "unsure_rate": 0.3,
        "batch_size": 8,
        "size": (64, 64),
        "root": "/",
    }
    return Order(**{**values, **changes})


def workers() -> set[int]:
    """Processes of this cluster that hold a model."""
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = [int(line.split()[0]) for line in shown if "ray::MapWorker" in line]
    return {pid for pid in found if os.getpid() in ancestors(pid)}


def ancestors(pid: int) -> list[int]:
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_each_image_is_answered_once_when_workers_are_killed(
    model: Path, images: Path, plain: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "BLOCK", 2)
    killed: list[int] = []

    class Killer(Silent):
        def advance(self, amount: int = 1, *, note: str = "") -> None:  # noqa: ARG002
            nonlocal killed
            if not killed:
                killed = sorted(workers())
                for pid in killed:
                    os.kill(pid, signal.SIGKILL)

    output = tmp_path / "out.jsonl"
    done = predict(model, [str(images)], output, unsure_rate=0.3, batch_size=2, progress=Killer())
    assert killed
    assert done.counts.total() == 128
    check_same(rows(output), plain)


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_nothing_that_looks_whole_and_goes_on(
    cluster: str,
    model: Path,
    images: Path,
    plain: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "out.jsonl"
    arguments = ["predict", model, images, "-o", output, "--engine", "ray", "--unsure-rate", 0.3, "-q"]
    code = (
        "import sys\nfrom adtr.scaling import answers, prediction\n"
        "answers.PART_ROWS, prediction.BLOCK = 3, 2\n"
        "from adtr.cli import main\nmain(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    driver = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster})
    partial = output.with_name("out.jsonl.partial")
    deadline = time.monotonic() + 120
    while not list(partial.glob("part-*")) and time.monotonic() < deadline:
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert not output.exists()
    assert json.loads((partial / answers.MANIFEST).read_text())["complete"] is False
    kept = sum(parquet.read_metadata(part).num_rows for part in partial.glob("part-*"))
    assert 0 < kept < 128

    judged: list[int] = []
    real = answers.Answers.add
    monkeypatch.setattr(answers.Answers, "add", lambda self, row: judged.append(1) or real(self, row))
    assert adtr(*arguments) == 0
    assert len(judged) == 128 - kept
    check_same(rows(output), plain)
    assert not partial.exists()


def test_an_unreadable_image_stops_the_run_or_is_named(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(images, folder, ignore=lambda _, names: names[20:])
    names = sorted(path.name for path in folder.iterdir())
    (folder / names[5]).write_bytes(b"no image")
    given = ("predict", model, folder, "-o", tmp_path / "out", "--engine", "ray")
    assert adtr(*given) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"adtr: error: cannot read image {folder / names[5]}: ")
    assert len(error.splitlines()) == 1
    assert adtr(*given, "--on-error", "skip") == 0  # goes on where it stopped
    error = capsys.readouterr().err
    assert f"adtr: skipped 1 unreadable image(s):\n  {folder / names[5]}: " in error
    assert " of 19 images are anomalous" in error
    found = parquet.read_table(tmp_path / "out").to_pylist()
    assert [Path(row["path"]).name for row in found] == names
    assert [i for i, row in enumerate(found) if row["error"]] == [5]
    assert adtr(*given, "--on-error", "skip") == 0  # is complete
    assert parquet.read_table(tmp_path / "out").to_pylist() == found


def test_a_full_disk_is_one_line_and_what_was_kept_stays(
    model: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(order: object, units: Table, workers: object) -> Iterator[dict[str, Any]]:  # noqa: ARG001
        for unit in units.to_pylist():
            yield {"number": unit["number"], "path": unit["path"], "error": "none was asked"}

    def full(path: Path, data: bytes | str) -> None:
        if path.name.startswith("part-000000000006"):
            raise AdtrError(f"cannot write {path}: No space left on device")
        replace_file(path, data)

    monkeypatch.setattr(prediction, "_rows", rows)
    monkeypatch.setattr(answers, "PART_ROWS", 3)
    with monkeypatch.context() as patch:
        patch.setattr(answers, "replace_file", full)
        with pytest.raises(AdtrError, match="No space left"):
            predict(model, [str(images)], tmp_path / "out", on_error="skip", progress=Silent())
    assert sum(parquet.read_metadata(part).num_rows for part in (tmp_path / "out").glob("part-*")) == 6
    with hold_folder(tmp_path / "out"), pytest.raises(AdtrError, match="another process is writing"):
        predict(model, [str(images)], tmp_path / "out", on_error="skip", progress=Silent())
    done = predict(model, [str(images)], tmp_path / "out", on_error="skip", progress=Silent())
    assert (done.done, done.is_complete) == (128, True)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="waits for a pipe")
def test_a_run_in_which_nothing_moves_ends(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "NO_PROGRESS", 12.0)
    os.mkfifo(tmp_path / "nobody-writes.png")
    with pytest.raises(AdtrError, match="no image was answered for in"):
        predict(model, [str(tmp_path / "nobody-writes.png")], tmp_path / "out", progress=Silent())


@pytest.mark.slow
def test_what_stops_a_worker_is_one_line(model: Path, images: Path, tmp_path: Path) -> None:
    order = an_order(model, digest="of another model")
    units = find_units([str(images)]).slice(0, 2)
    batch = {name: units[name].to_numpy() for name in units.column_names}
    (answer,) = Worker(order)(batch)
    assert "has changed since the run began" in json.loads(answer["row"][0])[PROBLEM]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction, "model_digest", lambda _: "of another model")
        with pytest.raises(AdtrError, match="has changed since the run began"):
            predict(model, [str(images)], tmp_path / "out", progress=Silent())
    with pytest.raises(ModelError, match="every machine of the cluster needs it at the same place"):
        model_digest(tmp_path / "gone.onnx")


def test_a_model_is_read_once_for_each_worker(model: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[object] = []
    real = AnomalyDetector.load
    monkeypatch.setattr(AnomalyDetector, "load", lambda *a, **k: loads.append(a) or real(*a, **k))
    units = find_units([str(images)]).slice(0, 4)
    batch = {name: units[name].to_numpy() for name in units.column_names}
    worker = Worker(an_order(model))
    assert [len(answer["row"]) for _ in range(3) for answer in worker(batch)] == [4, 4, 4]
    assert len(loads) == 1


def test_mistakes_are_one_line(model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for arguments, message in {
        (model, images, "--engine", "ray"): "--engine ray needs --output",
        (model, images, "--workers", "2"): "--workers belongs to --engine ray",
        (model, images, "--engine", "ray", "-o", out, "--coco", "x.json"): "makes no maps, overlays or COCO",
        (model, images, "--engine", "ray", "-o", tmp_path / "x.csv"): "end in .parquet or .jsonl, not 'x.csv'",
        (model, tmp_path / "no", "--engine", "ray", "-o", out): "no such file or folder",
        (tmp_path, images, "--engine", "ray", "-o", out): "is not a model folder",
        (model, images, "--engine", "ray", "-o", out, "--device", "cuda"): "the cluster has no GPU",
        (model, images, "--engine", "ray", "-o", out, "--device", "cuda:1"): "--device auto, cpu or cuda",
    }.items():
        assert adtr("predict", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1


def test_the_cluster_has_no_gpu_here_and_exported_files_want_none() -> None:
    assert gpus_for("auto") == gpus_for("cpu") == gpus_for("auto", exported=True) == 0
    with pytest.raises(ConfigError):
        gpus_for("mps")


def test_nobody_is_told() -> None:
    assert not usage_stats_enabled()


@pytest.mark.slow
def test_a_stranger_is_not_obeyed(cluster: str) -> None:
    """The test of the killed driver is the other side of it: it has the token, and is let in."""
    code = "import ray, sys\nray.init(address=sys.argv[1])\nprint('let in', ray.cluster_resources())"
    stranger = {**os.environ, "RAY_AUTH_TOKEN": "another"}
    done = subprocess.run(
        [sys.executable, "-c", code, cluster], env=stranger, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert "let in" not in done.stdout
    assert "ConnectionError" in done.stderr


def test_ray_is_imported_only_where_it_is_asked_for(model: Path, images: Path) -> None:
    code = (
        "import sys\nfrom adtr.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print('ray' in sys.modules, 'pyarrow' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "predict", str(model), str(next(images.iterdir())), "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr.splitlines()[-1] == "False False"

"""`--devices` and `--nodes`: a command as several processes."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adtr.cli import main
from adtr.cli.devices import BUG, LOST, MISTAKE, _tell
from adtr.errors import AdtrError
from adtr.store import read_metadata
from adtr.training.checkpoint import FILE
from conftest import SMALL, Run

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
linux = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds its processes in /proc")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adtr: error: ")
    assert err.count("\n") == 1
    return err.removeprefix("adtr: error: ").rstrip()


def test_more_devices_than_there_are(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ("fit", dataset, "-o", tmp_path / "m")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert complaint(capsys, *fit, "--devices", 3) == "--devices 3: this machine has 2 CUDA device(s)"
    assert complaint(capsys, *fit, "--devices", 2, "--device", "cuda:1") == (
        "--device cuda:1 is one device; give --device cuda with --devices 2"
    )
    assert complaint(capsys, *fit, "--devices", 0).startswith("Invalid value for '--devices': 0 is not in the range")
    assert not list(tmp_path.iterdir())


def test_machines_must_know_where_they_meet(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = ("fit", dataset, "-o", tmp_path / "m", "--device", "cpu", "--nodes", 2)
    for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert complaint(capsys, *fit).startswith("--nodes 2 needs MASTER_ADDR in the environment: ")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")
    monkeypatch.setenv("NODE_RANK", "2")
    assert complaint(capsys, *fit).endswith("NODE_RANK '2' a number from 0 to 1")
    assert not list(tmp_path.iterdir())


def test_mistakes_are_told_before_any_process_starts(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adtr.cli.fit.launch", lambda *_: pytest.fail("this would be work"))
    assert "no such folder" in complaint(capsys, "fit", tmp_path / "x", "-o", tmp_path / "m", "--devices", 2)
    assert "epochs must be" in complaint(capsys, "fit", dataset, "-o", tmp_path / "m", "--devices", 2, "--epochs", 0)
    assert "is a file" in complaint(capsys, "fit", dataset, "-o", __file__, "--devices", 2)


@dataclass
class Failure:
    """Of a process, as torchrun tells it."""

    exitcode: int
    timestamp: int = 0
    message: str = ""

    def signal_name(self) -> str:
        return signal.Signals(-self.exitcode).name


@pytest.mark.parametrize(
    ("failures", "told"),
    [
        ([Failure(LOST, 1), Failure(-signal.SIGKILL, 2)], r"^process 1 of the training was killed \(SIGKILL\)"),
        ([Failure(-signal.SIGTERM, 2), Failure(-signal.SIGSEGV, 2)], r"^process 1 .* killed \(SIGSEGV\)"),
        ([Failure(LOST, 1), Failure(MISTAKE, 2, "no such image")], r"^no such image$"),
        ([Failure(MISTAKE, 3, "second"), Failure(MISTAKE, 2, "first")], r"^first$"),
        ([Failure(LOST, 1, "Connection closed"), Failure(-signal.SIGTERM, 1)], r"^process 0 lost another .*closed"),
        ([Failure(-signal.SIGTERM, 1)], r"^process 0 of the training was killed \(SIGTERM\)"),
    ],
)
def test_the_failure_that_brought_the_others_about_is_told(failures: list[Failure], told: str) -> None:
    with pytest.raises(AdtrError, match=told):
        _tell(dict(enumerate(failures)))  # type: ignore[arg-type]


def test_a_bug_of_any_process_is_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        _tell({0: Failure(LOST), 1: Failure(BUG, 5, "Traceback ...")})  # type: ignore[dict-item]
    assert stop.value.code == 1
    assert capsys.readouterr().err == "Traceback ...\n"


@pytest.mark.slow
def test_two_processes_fit_the_model_of_one(run: Run, dataset: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert run("fit", dataset, "-o", one, *FLAGS, "--device", "cpu").returncode == 0
    done = run("fit", dataset, "-o", two, *FLAGS, "--device", "cpu", "--devices", 2)
    assert (done.returncode, done.stdout) == (0, "")
    assert [line.split()[0] for line in done.stderr.splitlines()] == ["trained", "threshold", "saved"]
    (_, before, alone), (_, after, shared) = read_metadata(one), read_metadata(two)
    assert shared["training"]["processes"] == 2
    assert shared["training"]["losses"] == pytest.approx(alone["training"]["losses"], rel=1e-4)
    assert after.image_scores == pytest.approx(before.image_scores, rel=1e-3)
    assert shared["data"]["image_hashes"] == alone["data"]["image_hashes"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


@pytest.mark.slow
def test_a_mistake_of_any_process_is_one_line(run: Run, dataset: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for i, path in enumerate(sorted((dataset / "train/good").iterdir())):
        (images / path.name).write_bytes(path.read_bytes() if i != 20 else b"no image")
    done = run("fit", images, "-o", tmp_path / "model", *FLAGS, "--device", "cpu", "--devices", 2)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"adtr: error: cannot read image {images / '020.png'}: not an image")
    assert done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["images"]  # an empty work folder is of no use


EAGER = """
import os, signal, sys
from adtr.training import loop
steps, add_up = [], loop.add_up
def add_up_or_die(*arguments):
    steps.append(1)
    if os.environ.get("KILLED") == os.environ["RANK"] and len(steps) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    add_up(*arguments)
loop.CHECKPOINT_SECONDS, loop.add_up = 0, add_up_or_die
from adtr.cli.one_of_several import run
run()
"""
LAUNCHER = f"import sys; from adtr.cli import devices, main; devices.PROCESS = ('-c', {EAGER!r}); main(sys.argv[1:])"
"""The command line, with processes that write a checkpoint at every step; one of them may end at the eighth."""


def children(pid: int) -> dict[int, int]:
    """Process numbers of the launcher's processes, by their local rank."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        rank = re.search(rb"\0LOCAL_RANK=(\d+)", Path(f"/proc/{child}/environ").read_bytes())
        if rank:
            found[int(rank[1])] = int(child)
    return found


@pytest.fixture
def started(dataset: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A fit of two processes that has written a checkpoint."""
    command = [sys.executable, "-c", LAUNCHER, "fit", dataset, "-o", tmp_path / "model", *FLAGS, "--epochs", "20000"]
    with subprocess.Popen(
        [*map(str, command), "--device", "cpu", "--devices", "2"], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 200
        while not (tmp_path / "model.unfinished" / FILE).exists():
            assert process.poll() is None, process.stderr.read() if process.stderr else ""
            assert time.monotonic() < end
            time.sleep(0.05)
        yield process
        process.kill()


def killed(rank: int) -> str:
    return (
        f"adtr: error: process {rank} of the training was killed (SIGKILL), and the others were ended; "
        "the same command with --resume goes on from the last checkpoint\n"
    )


@linux
@pytest.mark.slow
def test_a_killed_process_ends_the_others(started: subprocess.Popen[str], tmp_path: Path) -> None:
    processes = children(started.pid)
    begun = time.monotonic()
    os.kill(processes[1], signal.SIGKILL)
    _, errors = started.communicate(timeout=60)
    assert time.monotonic() - begun < 10
    assert (started.returncode, errors) == (2, killed(1))
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes.values())
    assert [path.name for path in (tmp_path / "model.unfinished").iterdir()] == [FILE]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_resume_goes_on_with_another_number_of_devices(run: Run, dataset: Path, model: Path, tmp_path: Path) -> None:
    fit = ["fit", dataset, "-o", tmp_path / "model", *FLAGS, "--device", "cpu"]
    command = [sys.executable, "-c", LAUNCHER, *map(str, fit), "--devices", "2"]
    done = subprocess.run(command, env={**os.environ, "KILLED": "0"}, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr) == (2, killed(0))
    assert run(*fit, "--resume").returncode == 0
    training = read_metadata(tmp_path / "model")[2]["training"]
    assert (training["resumed_at"], training["processes"]) == (7, 1)
    assert training["losses"] == pytest.approx(read_metadata(model)[2]["training"]["losses"], rel=1e-4)


@linux
@pytest.mark.slow
def test_a_killed_launcher_leaves_no_process_behind(started: subprocess.Popen[str]) -> None:
    processes = children(started.pid)
    started.kill()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in processes.values()):
        assert time.monotonic() < end
        time.sleep(0.1)


@linux
@pytest.mark.slow
def test_ctrl_c_stops_all_quietly(started: subprocess.Popen[str]) -> None:
    processes = children(started.pid)
    started.send_signal(signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors.strip()) == (130, "adtr: stopped")
    assert not any(Path(f"/proc/{pid}").exists() for pid in processes.values())


@pytest.mark.slow
def test_two_machines(dataset: Path, tmp_path: Path) -> None:
    """Both of them here, each with a process; only the first writes."""
    from torch.distributed.elastic.utils.distributed import get_free_port

    place = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(get_free_port())}
    command = [sys.executable, "-m", "adtr", "fit", dataset, *FLAGS, "--device", "cpu", "--nodes", "2", "-o"]
    machines = [
        subprocess.Popen(
            [*map(str, command), str(tmp_path / f"model-{rank}")],
            env={**place, "NODE_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [machine.communicate(timeout=200)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert len(errors[0].splitlines()) == 3
    assert errors[1] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["model-0"]
    assert read_metadata(tmp_path / "model-0")[2]["training"]["processes"] == 2

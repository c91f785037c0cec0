"""The command line as a process: exit codes, streams, signals, terminals."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from adtr import __version__
from adtr.cli import COMMANDS
from conftest import SMALL, Run, write_dataset

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX streams and signals")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "adtr", *map(str, arguments)]


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None")]
)
def test_threads_leave_their_cores_to_others_unless_told_otherwise(given: dict[str, str], spins: str) -> None:
    code = "import os\nfrom adtr.cli import main\ntry: main(['--version'])\nexcept SystemExit: pass\n"
    code += "print(os.environ.get('GOMP_SPINCOUNT'))"
    plain = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env={**plain, **given}, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == spins


def test_python_m_adtr(run: Run) -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"adtr {__version__}\n", "")


def test_the_installed_script() -> None:
    script = shutil.which("adtr", path=str(Path(sys.executable).parent))
    if script is None:
        pytest.skip("adtr is not installed as a script")
    done = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"  {name}" in done.stdout for name in COMMANDS)


def test_a_mistake_ends_with_code_2_and_no_traceback(run: Run, tmp_path: Path) -> None:
    done = run("fit", tmp_path / "nowhere", "-o", tmp_path / "model")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"adtr: error: no such folder: {tmp_path / 'nowhere'}\n"


@posix
def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(command("presets"), stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told_once() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command("presets"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == "adtr: error: cannot use stdout: No space left on device\n"


@posix
def test_a_closed_stdout_is_no_failure() -> None:
    line = " ".join([*command("presets"), ">&-"])
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_fit_info_predict_evaluate(run: Run, tmp_path: Path) -> None:
    """The whole way, with non-ASCII names, as somebody would go it for the first time."""
    data = write_dataset(tmp_path / "Größen und Maße")
    model = tmp_path / "Mödell 1"
    done = run("fit", data, "-o", model, *FLAGS, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    assert len(done.stderr.splitlines()) == 3  # and no warning of any library

    done = run("info", model)
    assert done.returncode == 0
    assert "Größen und Maße" in done.stdout

    done = run("predict", model, data / "test", "--overlays", tmp_path / "overlays")
    assert done.returncode == 0
    shown = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(shown) == 16
    assert all(Path(row["overlay"]).is_file() for row in shown)
    assert len(done.stderr.splitlines()) == 1

    done = run("evaluate", model, data, "-o", tmp_path / "report.json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads((tmp_path / "report.json").read_text())
    good = [row for row in shown if "/good/" in row["path"]]
    assert report["false_alarms"]["count"] == sum(row["is_anomalous"] for row in good)
    assert report["missed"]["count"] == sum(not row["is_anomalous"] for row in shown if row not in good)


@posix
@pytest.mark.slow
@pytest.mark.parametrize("name", ["predict", "evaluate"])
def test_head_gets_its_line(name: str, model: Path, dataset: Path) -> None:
    with subprocess.Popen(
        command(name, model, dataset), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


@posix
@pytest.mark.slow
def test_ctrl_c_stops_quietly_and_keeps_the_checkpoint(dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "model"
    code = (
        "import signal\nimport sys\nfrom adtr.cli import main\nfrom adtr.training import loop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "loop.CHECKPOINT_SECONDS = 0\nmain(sys.argv[1:])"
    )
    arguments = [*map(str, ["fit", dataset, "-o", output, *FLAGS, "--epochs", 5000])]
    work = tmp_path / "model.unfinished"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _wait_for(lambda: (work / "checkpoint.safetensors").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130
    assert errors.strip() == "adtr: stopped"
    assert [path.name for path in work.iterdir()] == ["checkpoint.safetensors"]
    assert not output.exists()


@posix
@pytest.mark.slow
def test_a_terminal_sees_progress_and_stdout_stays_clean(model: Path, dataset: Path, tmp_path: Path) -> None:
    import pty

    def on_a_terminal(*arguments: object) -> tuple[str, str]:
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        with subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=slave, text=True, env=environment
        ) as process:
            os.close(slave)
            seen = b""
            while True:
                try:
                    chunk = os.read(master, 4096)
                except OSError:  # what Linux says at the end
                    break
                if not chunk:
                    break
                seen += chunk
            os.close(master)
            assert process.stdout is not None
            out = process.stdout.read()
            assert process.wait(timeout=60) == 0
        return out, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())

    out, err = on_a_terminal("fit", dataset, "-o", tmp_path / "model", *FLAGS)
    assert out == ""
    assert re.search(r"features +\S+ +24/24", err)
    assert re.search(r"training +\S+ +12/12 .*loss \d+", err)
    out, err = on_a_terminal("predict", model, dataset, "-o", tmp_path / "scores.csv")
    assert out == ""
    assert re.search(r"predicting +\S+ +48/48", err)
    out, err = on_a_terminal("predict", model, dataset / "test/good")
    assert len([json.loads(line) for line in out.splitlines()]) == 8
    assert "predicting" not in err  # the results themselves show that the work goes on
    out, err = on_a_terminal("evaluate", model, dataset, "--quiet")
    assert out
    assert err == ""


def _wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)

"""`adtr serve` and `adtr watch` as processes: addresses, signals, mistakes."""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import httpx
import pytest

from adtr.cli import main
from conftest import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
PNG = {"Content-Type": "image/png"}


@contextmanager
def process(*arguments: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "adtr", *map(str, arguments)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def first_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    line = started.stdout.readline().strip()
    assert line, started.stderr.read() if started.stderr else ""
    return line


def test_sigterm_finishes_what_was_accepted(model: Path, good_png: bytes) -> None:
    with process("serve", f"line={model}", "--port", 0, ADTR_TOKEN="a-secret-token") as server:
        base = first_line(server)
        assert base.startswith("http://127.0.0.1:")
        with httpx.Client(base_url=base, timeout=60) as client:
            while not _answers(client):
                time.sleep(0.05)
            assert client.get("/v1/models").status_code == 401
            client.headers["Authorization"] = "Bearer a-secret-token"
            files = [("images", good_png)] * 8

            begun = threading.Barrier(5)

            def ask() -> int:
                begun.wait()
                return client.post("/v1/models/line/predict?map=float", files=files).status_code

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                answers = [pool.submit(ask) for _ in range(4)]
                begun.wait()
                while "adtr_queue_images 0.0" in client.get("/metrics").text:
                    assert not any(answer.done() for answer in answers)
                server.send_signal(signal.SIGTERM)
                done = [answer for answer in answers if _accepted(answer)]
        assert server.wait(timeout=30) == 0
        assert server.stderr is not None
        lines = [json.loads(line) for line in server.stderr.read().splitlines()]
    finished = [line for line in lines if line["event"] == "request" and line["path"].endswith("/predict")]
    assert len(done) == len(finished) >= 1
    assert {line["status"] for line in finished} == {200}
    assert not any("traceback" in line for line in lines)
    assert "a-secret-token" not in json.dumps(lines)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.ConnectError:
        return False


def _accepted(answer: concurrent.futures.Future[int]) -> bool:
    """Whether it was answered; not, where the server was told to stop before it had read the request."""
    try:
        return answer.result() == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_slow_and_a_rude_client_do_not_stop_the_others(model: Path, good_png: bytes) -> None:
    with process("serve", model, "--port", 0, "--max-upload", "100KB") as server:
        base = first_line(server)
        port = int(base.rpartition(":")[2])
        with httpx.Client(base_url=base, timeout=60) as client:
            while not _answers(client):
                time.sleep(0.05)
            name = client.get("/v1/models").json()["models"][0]["name"]
            assert name == "discs"
            head = f"POST /v1/models/{name}/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
            slow = socket.create_connection(("127.0.0.1", port))
            slow.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
            rude = socket.create_connection(("127.0.0.1", port))
            rude.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
            rude.close()
            broken = socket.create_connection(("127.0.0.1", port))
            broken.sendall(b"\x16\x03\x01 what is this\r\n\r\n")

            def gigabyte() -> Iterator[bytes]:
                for _ in range(1000):
                    yield bytes(1_000_000)

            try:
                refused = client.post(f"/v1/models/{name}/predict", content=gigabyte(), headers=PNG)
                assert refused.status_code == 413
            except httpx.WriteError:
                pass  # the connection may be closed under the upload
            assert client.post(f"/v1/models/{name}/predict", content=good_png, headers=PNG).status_code == 200
            slow.settimeout(30)
            assert b" 408 " in slow.recv(1000)
            assert b"400" in broken.recv(1000)
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached by other machines: set ADTR_TOKEN"),
        (["--token", "short"], "less than 8 characters"),
        (["--max-upload", "20 parsecs"], "no size such as"),
        (["--max-upload", "0"], "no size such as"),
        (["--host", "192.0.2.1", "--insecure"], "cannot listen on 192.0.2.1, port 8000"),
        (["--host", "no-such-host.invalid", "--insecure"], "cannot listen on no-such-host.invalid"),
        (["--port", "0", "--false-alarm-rate", "2"], "false_alarm_rate"),
        (["discs=elsewhere"], "two models are named discs"),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", str(model), *arguments])
    assert stop.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_port_that_is_taken_is_told(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit) as stop:
        main(["serve", str(model), "--port", str(taken.getsockname()[1])])
    assert stop.value.code == 2
    assert "choose another --port" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "prometheus_client"])
def test_without_the_extra_it_is_named(module: str, model: Path) -> None:
    code = f"import sys\nsys.modules[{module!r}] = None\nfrom adtr.cli import main\nmain(['serve', {str(model)!r}])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"adtr: error: the server needs {module}: pip install 'adtr[serve]'\n"


def test_watch_goes_on_where_it_was_killed(model: Path, tmp_path: Path, good_png: bytes, bad_png: bytes) -> None:
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / "a.png").write_bytes(good_png)
    arguments = ("watch", folder, "--model", model, "-o", output, "--sort", "link", "--interval", 0.1)
    with process(*arguments) as watch:
        assert json.loads(first_line(watch))["path"] == "a.png"
        watch.kill()
    (folder / "b.png").write_bytes(bad_png)
    with process(*arguments) as watch:
        row: dict[str, Any] = json.loads(first_line(watch))
        assert (row["path"], row["verdict"]) == ("b.png", "anomalous")
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(timeout=30) == 0
        assert watch.stderr is not None
        assert watch.stderr.read().splitlines()[-1] == "stopped after 1 images: 1 anomalous"
    assert [json.loads(line)["path"] for line in (output / "results.jsonl").read_text().splitlines()] == [
        "a.png",
        "b.png",
    ]
    assert (output / "anomalous/b.png").is_symlink()


@pytest.fixture
def handlers() -> Iterator[None]:
    """Of signals, as they were before; no trace and no alarm is left."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    sys.settrace(None)
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_watch_stops_wherever_the_signal_meets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adtr.watching.FolderWatch.look", lambda *_, **__: iter(()))
    (tmp_path / "in").mkdir()

    def fail(*_: object) -> None:
        raise AssertionError("it did not stop")

    signal.signal(signal.SIGALRM, fail)
    for lines in range(40):
        countdown = itertools.count(lines, -1)

        def trace(frame: FrameType, event: str, argument: object, countdown: Iterator[int] = countdown) -> object:  # noqa: ARG001
            if event == "line" and next(countdown) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            return trace

        models = SimpleNamespace(look=partial(sys.settrace, trace), get=lambda _: SimpleNamespace(detector=None))
        monkeypatch.setattr("adtr.serve.models.Models", lambda *_, models=models: models)
        signal.setitimer(signal.ITIMER_REAL, 20)
        with pytest.raises(SystemExit) as stop:
            main(["watch", str(tmp_path / "in"), "-m", "model", "-o", str(tmp_path / "out"), "--interval", "0.05"])
        sys.settrace(None)
        assert stop.value.code == 0
        assert capsys.readouterr().err.endswith("stopped after 0 images\n")


def test_watch_tells_mistakes(run: Run, model: Path, tmp_path: Path) -> None:
    done = run("watch", tmp_path / "nothing", "-m", model, "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (2, f"adtr: error: no such folder: {tmp_path / 'nothing'}\n")

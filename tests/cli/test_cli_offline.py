"""The network is asked only for what the user asked to fetch: all else is at hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli_errors import FLAGS

GUARDED = """
import json, sys

def refuse(event, arguments):
    if event in {events!r}:
        with open(sys.argv[1], "a") as file:
            print(event, arguments[-2:], file=file)
        raise PermissionError(13, "no network here")

sys.addaudithook(refuse)
from adtr.cli import main
for arguments in json.loads(sys.argv[2]):
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise
"""
"""Commands in a process that notes and refuses every use of a socket, and every other process."""
EVENTS = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto"),
    *("os.fork", "os.posix_spawn", "os.exec", "os.system"),
)


def guarded(asked: Path, *commands: tuple[object, ...]) -> subprocess.CompletedProcess[str]:
    arguments = json.dumps([[str(argument) for argument in command] for command in commands])
    command = [sys.executable, "-c", GUARDED.replace("{events!r}", repr(EVENTS)), str(asked), arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_fit_predict_and_evaluate_use_no_network(dataset: Path, tmp_path: Path) -> None:
    asked, model = tmp_path / "asked", tmp_path / "model"
    done = guarded(
        asked,
        ("fit", dataset, "-o", model, *FLAGS, "--epochs", "1"),
        ("predict", model, dataset / "test", "-o", tmp_path / "scores.jsonl"),
        ("evaluate", model, dataset),
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "scores.jsonl").exists()
    assert not asked.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
def test_export_uses_no_network(name: str, model: Path, dataset: Path, tmp_path: Path) -> None:
    """OpenVINO's own telemetry among it."""
    asked, file = tmp_path / "asked", tmp_path / name
    done = guarded(
        asked,
        ("export", model, "-o", file, "--format", "onnx" if name == "model.onnx" else "openvino"),
        ("predict", file, dataset / "test", "-o", tmp_path / "scores.jsonl"),
    )
    assert done.returncode == 0, done.stderr
    assert not asked.exists()


@pytest.mark.slow
def test_weights_that_are_not_at_hand_are_asked_for(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    asked = tmp_path / "asked"
    done = guarded(asked, ("fit", dataset, "-o", tmp_path / "model", *FLAGS, "--backbone", "resnet18.a1_in1k"))
    assert done.returncode == 2
    assert "cannot fetch the weights of resnet18.a1_in1k" in done.stderr
    assert "socket.getaddrinfo" in asked.read_text()

"""The Dockerfile's own steps, run without an engine: a fresh virtual environment in place of the image."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from conftest import Run

ROOT = Path(__file__).parents[2]


def steps(name: str) -> list[str]:
    """What follows an instruction of the Dockerfile, each time."""
    return re.findall(rf"^{name} (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)


def arguments(name: str) -> list[str]:
    """The words of ENTRYPOINT or CMD."""
    return [shlex.split(word.strip())[0] for word in steps(name)[-1].strip("[]").split(",")]


def test_nothing_runs_as_root_and_all_that_is_copied_is_there() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert text.index("\nUSER adtr") < text.index("\nENTRYPOINT")
    wanted = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"}
    copied = {source for step in steps("COPY") for source in step.split()[:-1]}
    assert copied == wanted
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the image is of Linux")
def test_the_steps_of_the_image_make_a_server_without_torch(
    run: Run, model: Path, tmp_path: Path, good_png: bytes
) -> None:
    build, environment, models = tmp_path / "build", tmp_path / "venv", tmp_path / "models"
    for folder in (build, models):
        folder.mkdir()
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    for step in steps("COPY"):
        *sources, target = step.split()
        place = Path(target.replace("/build", str(build)))
        for source in sources:
            path = ROOT / source
            subprocess.run(["cp", "-r", f"{path}/." if path.is_dir() else path, _folder(place)], check=True)
    for part in steps("RUN")[0].split(" && "):
        words = shlex.split(part.replace("/build", str(build)))
        if words[0] == "pip":
            subprocess.run([environment / "bin" / "pip", "--quiet", *words[1:]], check=True, timeout=900)

    python = environment / "bin" / "python"
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run([python, "-c", "import torch"], capture_output=True, env=clean)
    assert found.returncode == 1
    subprocess.run([python, "-c", "import adtr.serve.app, adtr.serve.server, adtr.detector"], check=True, env=clean)

    exported = run("export", model, "-o", models / "model.onnx")
    assert exported.returncode == 0, exported.stderr
    words = [*arguments("ENTRYPOINT"), *arguments("CMD")]
    words = [word.replace("/models", str(models)).replace("8000", "0") for word in words]
    clean["ADTR_TOKEN"] = "a-secret-token"
    with subprocess.Popen(
        [environment / "bin" / words[0], *words[1:]], stdout=subprocess.PIPE, text=True, env=clean
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().strip().rpartition(":")[2]
            headers = {"Authorization": "Bearer a-secret-token", "Content-Type": "image/png"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:
                end = time.monotonic() + 60
                while time.monotonic() < end:
                    try:
                        assert client.get("/readyz").status_code == 200
                        break
                    except httpx.ConnectError:
                        time.sleep(0.1)
                answer = client.post("/v1/models/model/predict", content=good_png)
                assert answer.status_code == 200
                assert answer.json()["predictions"][0]["verdict"] == "good"
            server.terminate()
            assert server.wait(30) == 0
        finally:
            server.kill()


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path

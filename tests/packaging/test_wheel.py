"""The wheel and the source distribution, built and used as somebody would who has never seen the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import adtr
from conftest import SMALL, write_dataset

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution and the wheel that was made from it."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def own_files() -> set[str]:
    """Every file of the package, code or not."""
    source = ROOT / "src"
    return {
        file.relative_to(source).as_posix()
        for file in (source / "adtr").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def test_the_wheel_holds_the_package_and_nothing_else(built: Path) -> None:
    [wheel] = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = (name for name in names if name.endswith("/METADATA"))
        headers = Parser().parsestr(archive.read(metadata).decode())
    assert {"adtr/py.typed", "adtr/presets/quick.toml", "adtr/serve/page/index.html"} <= own_files()
    assert {name for name in names if not name.startswith(f"adtr-{adtr.__version__}.dist-info/")} == own_files()
    assert headers["Version"] == adtr.__version__
    assert headers["License-Expression"] == "Apache-2.0"
    assert str(headers.get_payload()).startswith("# adtr")


def test_the_source_distribution_can_be_tested(built: Path) -> None:
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    assert {f"src/{name}" for name in own_files()} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "mkdocs.yml", "docs/index.md"} <= names
    assert {"tests/conftest.py", "benchmarks/common.py", "Dockerfile", "docker/requirements.txt"} <= names
    assert not {name for name in names if "__pycache__" in name or name.startswith((".venv", "build/", "runs/"))}


def test_the_installed_wheel_works_away_from_its_source(built: Path, tmp_path: Path) -> None:
    """In a virtual environment that shares the dependencies, but not adtr, with the one that runs the tests."""
    environment = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = Path(subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not followed
    [wheel] = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, timeout=120)

    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def call(*arguments: object) -> str:
        done = subprocess.run(
            list(map(str, arguments)), cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = python.with_name("adtr")
    assert Path(call(python, "-c", "import adtr; print(adtr.__file__)").strip()).is_relative_to(packages)
    assert call(command, "--version") == f"adtr {adtr.__version__}\n"
    assert "Usage: adtr" in call(command, "--help")
    assert "quick" in call(command, "presets")
    data = write_dataset(tmp_path / "discs")
    call(command, "fit", data, "-o", "model", *FLAGS)
    assert len(call(command, "predict", "model", data / "test").splitlines()) == 16

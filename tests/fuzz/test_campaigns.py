"""The beginnings of the campaigns of `benchmarks/fuzz.py`: each input is taken, or refused in one line."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
if not BENCHMARKS.is_dir():
    pytest.skip("the campaigns are not here", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))

from fuzz import GOOD, campaign, make_models  # noqa: E402
from fuzzing.targets import CHEAP, DEAR, TARGETS  # noqa: E402
from fuzzing.worker import Guard, attempt, write_case  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks

FEW = {"images": 60, "masks": 20, "parquet": 20, "cifar": 15}
"""Inputs of the dearer ones among the cheap; 40 of the others."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "models").mkdir()
    (folder / "models" / "model").symlink_to(model)
    return folder


@pytest.fixture(scope="module")
def guard(place: Path) -> Iterator[Guard]:
    return Guard(place / "may")


@pytest.mark.parametrize("name", [target.name for target in CHEAP])
def test_the_first_inputs(
    name: str, place: Path, guard: Guard, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    target = TARGETS[name]()
    may = place / "may" / name
    (may / "opened").mkdir(parents=True)
    target.open(place / "models", may / "opened")
    outcomes = set()
    for i in range(FEW.get(name, 40)):
        case, out = place / "cases" / f"{name}-{i}", may / str(i)
        write_case(target.make(random.Random(f"{name}-0-{i}"), place / "models"), case)
        out.mkdir()
        outcome, detail = attempt(target, case, out, seconds=20, guard=guard, said=lambda: capfd.readouterr().err)
        assert outcome in GOOD, f"{name}-0-{i}: {outcome}: {detail}"
        outcomes.add(outcome.partition(",")[0])
    assert "refused" in outcomes


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_campaign(name: str, tmp_path: Path) -> None:
    make_models(tmp_path / "models", set(TARGETS[name].needs))
    count = 60 if TARGETS[name] in DEAR else 600
    found = campaign(name, count, seed=1, models=tmp_path / "models", folder=tmp_path / "fuzz")
    assert found.outcomes.total() == count
    assert found.failures == []


def test_the_guard_sees_what_reaches_out(tmp_path: Path) -> None:
    """A campaign that could not fail would prove nothing."""
    import pickle
    import socket

    guard = Guard(tmp_path / "may")
    (tmp_path / "may").mkdir()
    with guard.active(()):
        (tmp_path / "may" / "fine").write_text("x")
        (tmp_path / "outside").write_text("x")
        (tmp_path / "outside").rename(tmp_path / "may" / "x")
        pickle.loads(pickle.dumps(Path("x")))
        with socket.socket() as client:
            client.connect_ex(("127.0.0.1", 1))
    seen = " ".join(guard.seen)
    assert "fine" not in seen
    for words in (f"open {tmp_path / 'outside'}", "os.rename", "pickle.find_class", "socket.connect"):
        assert words in seen

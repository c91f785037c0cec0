"""What `--verify` proves: two trainings in processes of their own, compared to the bit."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from adtr.cli import main
from adtr.config import Config
from adtr.detector import AnomalyDetector
from adtr.learning import repetition
from adtr.learning.repetition import compare, repeat, short_fit
from adtr.store import read_metadata
from conftest import SMALL

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def arrays() -> repetition.Arrays:
    rng = np.random.default_rng(0)
    return {
        "features": rng.random((3, 4, 5)).astype(np.float16),
        "weights.a": rng.random((6, 7)).astype(np.float32),
        "weights.b": rng.random(2).astype(np.float32),
        "scores.image": rng.random(4),
    }


def test_equal_numbers_are_equal() -> None:
    found = compare(arrays(), arrays(), steps=7)
    assert (found.different, found.largest_difference) == ({}, 0)
    assert (found.images, found.steps, found.numbers) == (3, 7, 60 + 42 + 2 + 4)
    assert found.describe() == (
        "verified: two trainings of 7 steps on 3 images, in processes of their own, agree in every bit of 108 numbers "
        f"(SHA-256 {found.sha256[:12]})"
    )


def test_one_bit_is_seen() -> None:
    other = arrays()
    other["weights.a"].view(np.uint32)[2, 3] ^= 1
    other["weights.b"] += 0.5
    found = compare(arrays(), other, steps=7)
    assert found.different == {"weights": 3}
    assert found.largest_difference == pytest.approx(0.5)
    assert "differ in 3 weights of 108 numbers, by at most 0.5" in found.describe()
    assert found.sha256 == compare(arrays(), arrays(), steps=7).sha256 != compare(other, other, steps=7).sha256


def test_minus_zero_and_nan_are_bits_too() -> None:
    other = arrays()
    other["scores.image"][:2] = 0.0, np.nan
    same = {name: values.copy() for name, values in other.items()}
    assert not compare(other, same, steps=1).different
    same["scores.image"][0] = -0.0
    assert compare(other, same, steps=1).different == {"scores": 1}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "_in_fresh_process", short_fit)


@pytest.mark.usefixtures("in_this_process")
def test_what_is_held_out_is_verified_too(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = ("--held-out", str(dataset / "test/good"))
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(dataset), "-o", str(tmp_path / "model"), *FLAGS, "--epochs", "1", "--verify", *held_out])
    assert stop.value.code == 0
    said = capsys.readouterr().err
    assert said.startswith("verified: two trainings of 10 steps on 32 images, in processes of their own, agree")
    assert "trained on 24 images" in said


@pytest.mark.usefixtures("in_this_process")
def test_fit_tells_and_remembers_what_it_verified(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(dataset), "-o", str(tmp_path / "model"), *FLAGS, "--epochs", "1", "--verify"])
    assert stop.value.code == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("verified: two trainings of 10 steps on 24 images, in processes of their own, agree")
    verified = read_metadata(tmp_path / "model")[2]["verified"]
    assert (verified["images"], verified["steps"], verified["different"]) == (24, 10, {})
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path / "model")])
    assert "training repeats to the bit, for 10 steps on 24 images" in capsys.readouterr().out


def test_where_a_training_does_not_repeat_nothing_is_trained(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = itertools.count()

    def of_another_seed(config: Config, *arguments: object) -> object:
        return short_fit(config.override(seed=next(seeds)), *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(repetition, "_in_fresh_process", of_another_seed)
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(dataset), "-o", str(tmp_path / "model"), *FLAGS, "--verify"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("adtr: error: two trainings of 10 steps on 24 images")
    assert err.endswith("; nothing was trained; without --verify it would be\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_fresh_processes_agree(dataset: Path) -> None:
    detector = AnomalyDetector(**SMALL)
    images = sorted((dataset / "train/good").iterdir())
    found = repeat(detector.config, images, device="cpu", backbone_weights=None)
    assert not found.different
    here = compare(*(short_fit(_short(detector.config), images, "cpu", None, "raise")[0],) * 2, steps=10)
    assert here.sha256 == found.sha256  # and so does this one


def _short(config: Config) -> Config:
    return config.override(epochs=repetition.STEPS, max_steps=repetition.STEPS, folds=0, holdout=0.25, holdout_min=2)

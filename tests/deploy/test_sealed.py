"""What is inside an exported file, and which files are refused."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from adtr.deploy.exported import ExportedDetector
from adtr.deploy.sealed import DIGEST_KEY, KEY, read_sealed, seal_onnx
from adtr.detector import AnomalyDetector
from adtr.errors import ModelError


def error_of(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        ExportedDetector.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_metadata_are_onnx_metadata(onnx_file: Path, detector: AnomalyDetector) -> None:
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    entries = {entry.key: entry.value for entry in model.metadata_props}
    assert set(entries) == {KEY, DIGEST_KEY}
    metadata = json.loads(entries[KEY])
    assert metadata["export"]["classes"] == ["good", "anomalous"]
    assert metadata["export"]["threshold"] > 0
    assert metadata["export"]["parity"]["fp32"]["score_max"] < 1e-3
    assert metadata["data"]["image_hashes"] == detector.metadata_["data"]["image_hashes"]
    assert metadata == read_sealed(onnx_file).metadata


def test_nothing_inside_tells_where_it_was_made(onnx_file: Path, dataset: Path) -> None:
    model = onnx.load(onnx_file)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")  # any text may occur in random bytes
    data = model.SerializeToString()
    assert str(dataset).encode() not in data
    assert b".py" not in data
    assert str(Path.home()).encode() not in data


@pytest.mark.parametrize("place", [100, 20_000, -20_000, -100, -10, -1])
def test_an_altered_byte_is_refused(place: int, onnx_file: Path, tmp_path: Path) -> None:
    data = bytearray(onnx_file.read_bytes())
    data[place] ^= 1
    (tmp_path / "altered.onnx").write_bytes(data)
    assert "adtr export" in error_of(tmp_path / "altered.onnx") or "SHA-256" in error_of(tmp_path / "altered.onnx")


def test_a_weight_of_another_value_is_refused(onnx_file: Path, tmp_path: Path) -> None:
    data = onnx_file.read_bytes()
    tensor = max((t for t in onnx.load(onnx_file).graph.initializer), key=lambda t: len(t.raw_data))
    at = data.index(tensor.raw_data) + len(tensor.raw_data) // 2
    (tmp_path / "altered.onnx").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert "SHA-256 differs" in error_of(tmp_path / "altered.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"\0", b"no model", b"\x08" * 1000, b"\xff" * 100, b"r\x4f" + b"0" * 79], ids=range(6)
)
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_what_is_no_model_is_one_line(content: bytes, suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"model{suffix}").write_bytes(content)
    (tmp_path / "model.bin").write_bytes(content)
    assert "is not a file that `adtr export` wrote" in error_of(tmp_path / f"model{suffix}")


def test_somebody_elses_model_is_one_line(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "other", [value], [value])
    onnx.save(helper.make_model(graph), tmp_path / "other.onnx")
    assert "it has no seal" in error_of(tmp_path / "other.onnx")


def external(model: onnx.ModelProto) -> None:
    tensor = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def external_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="other")
    model.graph.node.append(helper.make_node("Constant", [], ["constant"], value=tensor))


def custom_operator(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Run", [], ["ran"], domain="evil.example"))


def custom_domain(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("evil.example", 1))


def inner_graph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))


def function(model: onnx.ModelProto) -> None:
    model.functions.add(name="f", domain="")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (external, "tensors in other files"),
        (external_attribute, "tensors in other files"),
        (custom_operator, "'evil.example', which are not ONNX's own"),
        (custom_domain, "'evil.example', which are not ONNX's own"),
        (inner_graph, "graphs in graphs"),
        (function, "defines functions"),
    ],
)
def test_a_sealed_file_that_holds_more_than_an_export_is_refused(
    change: Callable[[onnx.ModelProto], None], reason: str, onnx_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(onnx_file)
    metadata = read_sealed(onnx_file).metadata
    del model.metadata_props[:]
    change(model)
    (tmp_path / "hostile.onnx").write_bytes(seal_onnx(model.SerializeToString(), metadata))
    assert reason in error_of(tmp_path / "hostile.onnx")


@pytest.mark.parametrize(
    "change",
    [
        {"format": 99},
        {"config": {}},
        {"calibration": {"image_scores": [2.0, 1.0], "pixel_maxima": [1.0, 1.0], "folds": 0}},
        {"data": {}},
        {"backbone": None},
    ],
)
def test_metadata_that_a_detector_cannot_use_are_one_line(
    change: dict[str, object], onnx_file: Path, tmp_path: Path
) -> None:
    model = onnx.load(onnx_file)
    del model.metadata_props[:]
    metadata = {**read_sealed(onnx_file).metadata, **change}
    (tmp_path / "odd.onnx").write_bytes(seal_onnx(model.SerializeToString(), metadata))
    assert "newer adtr" in error_of(tmp_path / "odd.onnx") if "format" in change else error_of(tmp_path / "odd.onnx")


def test_a_missing_or_huge_file_is_one_line(tmp_path: Path) -> None:
    assert "cannot read" in error_of(tmp_path / "none.onnx")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate((1 << 30) + 1)
    assert f"more than {1 << 30} bytes" in error_of(tmp_path / "huge.onnx")


def test_openvino_weights_are_sealed_too(openvino_file: Path, tmp_path: Path) -> None:
    for file in (openvino_file, openvino_file.with_suffix(".bin")):
        shutil.copy(file, tmp_path)
    copy = tmp_path / openvino_file.name
    weights = bytearray(copy.with_suffix(".bin").read_bytes())
    weights[len(weights) // 2] ^= 1
    copy.with_suffix(".bin").write_bytes(weights)
    assert "SHA-256 differs" in error_of(copy)
    copy.with_suffix(".bin").unlink()
    assert f"cannot read {copy.with_suffix('.bin')}" in error_of(copy)


def test_xml_with_entities_is_refused(openvino_file: Path, tmp_path: Path) -> None:
    xml = openvino_file.read_bytes().replace(b"<net ", b'<!DOCTYPE net [<!ENTITY a "b">]><net ', 1)
    (tmp_path / "model.xml").write_bytes(xml)
    shutil.copy(openvino_file.with_suffix(".bin"), tmp_path / "model.bin")
    assert "more than elements" in error_of(tmp_path / "model.xml")


def test_deep_and_endless_numbers_in_the_metadata_are_one_line(onnx_file: Path, tmp_path: Path) -> None:
    model = onnx.load(onnx_file)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    text = entry.value
    del model.metadata_props[:]
    file = tmp_path / "model.onnx"
    for old, new in (
        ('"format": 3', '"format": NaN'),
        ('"format": 3', '"format": ' + "[" * 100_000),
        ('"folds": 0', '"folds": Infinity'),
    ):
        assert old in text
        covered = onnx.ModelProto()
        covered.CopyFrom(model)
        covered.metadata_props.add(key=KEY, value=text.replace(old, new, 1))
        data = covered.SerializeToString()
        digest = onnx.ModelProto()
        digest.metadata_props.add(key=DIGEST_KEY, value=hashlib.sha256(data).hexdigest())
        file.write_bytes(data + digest.SerializeToString())
        assert "is not a file that `adtr export` wrote" in error_of(file)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert "no regular file" in error_of(tmp_path / "model.onnx")

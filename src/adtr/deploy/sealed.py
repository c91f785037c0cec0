"""Exported files: what belongs to a detector inside them, sealed by a SHA-256, and what strangers' files must not hold.

An ONNX file ends in two metadata entries, `adtr` (JSON) and `adtr_sha256`; the latter covers every byte before it. An
OpenVINO model is an XML file beside a file of weights; the JSON is in its runtime information, and a comment at its end
covers the bytes before it and the weights. Nothing here needs more than the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from adtr.calibration import Calibration
from adtr.config import Config
from adtr.errors import ModelError
from adtr.files import parse_json, read_bounded
from adtr.store import check_record

FORMAT = 3
MAX_BYTES = 1 << 30
KEY, DIGEST_KEY = "adtr", "adtr_sha256"

_DIGEST = re.compile(rb"[0-9a-f]{64}")
_ONNX_SEAL = b"r\x4f\n\x0b" + DIGEST_KEY.encode() + b"\x12\x40"  # of ModelProto: metadata_props { key value }
_XML_SEAL = (b"<!-- " + DIGEST_KEY.encode() + b" ", b" -->\n")

# Numbers of fields in onnx.proto: stable, as every ONNX file rests on them.
_MODEL_GRAPH, _MODEL_OPSETS, _MODEL_METADATA, _MODEL_FUNCTIONS = 7, 8, 14, 25
_GRAPH_NODES, _GRAPH_TENSORS, _GRAPH_SPARSE = 1, 5, 15
_NODE_ATTRIBUTES, _NODE_DOMAIN = 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH, _ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = 5, 6, 10, 11, (22, 23)
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14


@dataclass(frozen=True, kw_only=True, eq=False)
class SealedModel:
    """An exported file that was checked."""

    path: Path
    config: Config
    calibration: Calibration
    metadata: dict[str, Any]
    graph: bytes
    """The ONNX model, or the OpenVINO model's XML."""
    weights: bytes | None
    """Of an OpenVINO model."""


def weights_path(xml: Path) -> Path:
    """Where the weights of an OpenVINO model lie."""
    return xml.with_suffix(".bin")


def seal_onnx(model: bytes, metadata: dict[str, Any]) -> bytes:
    """An ONNX model with its metadata and its seal."""
    from onnx import ModelProto, StringStringEntryProto

    entry = StringStringEntryProto(key=KEY, value=json.dumps(metadata))
    # Protocol buffers that follow each other merge: the last bytes of the file are these entries.
    covered = model + ModelProto(metadata_props=[entry]).SerializeToString()
    return covered + _ONNX_SEAL + hashlib.sha256(covered).hexdigest().encode()


def seal_xml(xml: bytes, weights: bytes) -> bytes:
    """An OpenVINO model's XML, its metadata inside, with its seal."""
    return hashlib.sha256(xml + weights).hexdigest().encode().join((xml + _XML_SEAL[0], _XML_SEAL[1]))


def read_sealed(path: Path) -> SealedModel:
    """An exported file with its configuration, calibration and metadata; nothing of it is run.

    Raises:
        ModelError: the file was not written by `adtr export`, was altered, or holds what no export holds.
    """
    data = _read(path)
    weights = _read(weights_path(path)) if path.suffix == ".xml" else None
    try:
        if weights is None:
            covered, digest = data[: -len(_ONNX_SEAL) - 64], data[-64:]
            is_sealed = data.endswith(_ONNX_SEAL + digest)
        else:
            end = len(_XML_SEAL[0]) + 64 + len(_XML_SEAL[1])
            covered, digest = data[:-end], data[-end:][len(_XML_SEAL[0]) : -len(_XML_SEAL[1])]
            is_sealed = data.endswith(_XML_SEAL[0] + digest + _XML_SEAL[1])
        if not is_sealed or not _DIGEST.fullmatch(digest):
            raise ValueError("it has no seal at its end")
        text = _onnx_metadata(memoryview(covered)) if weights is None else _xml_metadata(covered)
        metadata = parse_json(text)
        if type(metadata["format"]) is not int:
            raise TypeError("its format is no whole number")
        if metadata["format"] > FORMAT:
            raise ModelError(f"{path} was written by a newer adtr (format {metadata['format']}); update adtr")
        if metadata["format"] < FORMAT:
            raise ModelError(f"{path} was written by an older adtr (format {metadata['format']}); export it anew")
        config = Config.from_dict(metadata["config"])
        calibration = check_record(metadata)
    except ModelError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, ET.ParseError) as error:
        reason = " ".join(str(error).split())[:300]  # a ConfigError is a ValueError
        raise ModelError(f"{path} is not a file that `adtr export` wrote ({reason})") from error
    if hashlib.sha256(covered + (weights or b"")).hexdigest() != digest.decode():
        raise ModelError(f"{path} is not what was exported (its SHA-256 differs); export or copy it again")
    return SealedModel(
        path=path, config=config, calibration=calibration, metadata=metadata, graph=data, weights=weights
    )


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, MAX_BYTES)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def _xml_metadata(xml: bytes) -> str:
    if b"<!" in xml:
        raise ValueError("its XML holds more than elements")
    entry = ET.fromstring(xml).find(f"rt_info/{KEY}")  # noqa: S314 - entities were refused
    if entry is None:
        raise ValueError(f"it has no {KEY!r} entry")
    return entry.attrib["value"]


def _onnx_metadata(model: memoryview) -> str:
    """The JSON of an ONNX model, which is looked through on the way."""
    text = None
    for field, value in _fields(model):
        if field == _MODEL_FUNCTIONS:
            raise ValueError("it defines functions")
        if field == _MODEL_OPSETS:
            _check_domain(_texts(value).get(1, ""))
        elif field == _MODEL_GRAPH:
            _check_graph(value)
        elif field == _MODEL_METADATA:
            entry = _texts(value)
            text = entry.get(2) if entry.get(1) == KEY else text
    if text is None:
        raise ValueError(f"it has no {KEY!r} entry")
    return text


def _check_graph(graph: Any) -> None:  # noqa: ANN401 - see _fields
    for field, value in _fields(graph):
        if field == _GRAPH_SPARSE:
            raise ValueError("it holds sparse tensors")
        if field == _GRAPH_TENSORS:
            _check_tensor(value)
        elif field == _GRAPH_NODES:
            for part, inner in _fields(value):
                if part == _NODE_DOMAIN:
                    _check_domain(str(inner, "utf-8"))
                elif part == _NODE_ATTRIBUTES:
                    _check_attribute(inner)


def _check_attribute(attribute: Any) -> None:  # noqa: ANN401
    for field, value in _fields(attribute):
        if field in (_ATTRIBUTE_GRAPH, _ATTRIBUTE_GRAPHS, *_ATTRIBUTE_SPARSE):
            raise ValueError("it holds graphs in graphs, or sparse tensors")
        if field in (_ATTRIBUTE_TENSOR, _ATTRIBUTE_TENSORS):
            _check_tensor(value)


def _check_tensor(tensor: Any) -> None:  # noqa: ANN401
    for field, value in _fields(tensor):
        if field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and value != 0):
            raise ValueError("it keeps tensors in other files")


def _check_domain(domain: str) -> None:
    if domain not in ("", "ai.onnx"):
        raise ValueError(f"it uses operators of {domain!r}, which are not ONNX's own")


def _texts(message: Any) -> dict[int, str]:  # noqa: ANN401
    return {field: str(value, "utf-8") for field, value in _fields(message) if not isinstance(value, int)}


def _fields(message: Any) -> Iterator[tuple[int, Any]]:  # noqa: ANN401
    """Field numbers of a protocol buffer with their values: whole numbers, or the bytes (not copied) of all else.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(message, memoryview):
        raise ValueError("it is not an ONNX model")
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        size = {1: 8, 5: 4}.get(tag & 7, 0)
        if tag & 7 in (0, 2):
            number, at = _varint(message, at)
            if tag & 7 == 0:
                yield tag >> 3, number
                continue
            size = number
        if (not size and tag & 7 != 2) or at + size > len(message):
            raise ValueError("it is not an ONNX model")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("it is not an ONNX model")

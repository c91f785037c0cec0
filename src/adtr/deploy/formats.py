"""The formats of exported graphs, and what lower precision makes of them."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from adtr.calibration import Thresholds
from adtr.deploy.exported import INPUT, Runtime, import_openvino, onnx_runtime, openvino_runtime
from adtr.deploy.graph import DetectorGraph, Outputs, export_program
from adtr.deploy.sealed import KEY, seal_onnx, seal_xml, weights_path
from adtr.errors import ConfigError
from adtr.files import replace_file

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto
    from torch.export import ExportedProgram

Precision = Literal["fp32", "fp16", "int8"]

_OPSET = 18
_HALVED = 1024  # tensors of fewer numbers are not worth a cast


class OnnxDraft:
    """An ONNX model that is being made.

    Args:
        graph: to be exported.
        precision: fp16 stores the weights in half precision, and computes in float32; int8 runs the backbone in 8 bit.
        images: good images at network size, (h, w, 3) uint8, that tell int8 the ranges of the activations.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
    """

    def __init__(self, graph: DetectorGraph, precision: Precision, images: Sequence[NDArray[np.uint8]]) -> None:
        self.model = to_onnx(graph)
        if precision == "int8":
            self.model = quantize(self.model, images)
        if precision == "fp16":
            halve_weights(self.model.graph)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """What the graph decides by."""
        from onnx import numpy_helper

        values = {"image_threshold": thresholds.image, "pixel_threshold": thresholds.pixel}
        found = [tensor for tensor in self.model.graph.initializer if tensor.name in values]
        assert len(found) == len(values), "the exporter named the thresholds otherwise"
        for tensor in found:
            tensor.CopyFrom(numpy_helper.from_array(np.array(values[tensor.name], np.float32), tensor.name))

    def runtime(self) -> Runtime:
        """Runs the model as it is now."""
        return onnx_runtime(self.model.SerializeToString())

    def write(self, path: Path, metadata: dict[str, Any]) -> None:
        """The finished file."""
        replace_file(path, seal_onnx(self.model.SerializeToString(), metadata))


class OpenVinoDraft(OnnxDraft):
    """An OpenVINO model that is being made, by way of ONNX."""

    def __init__(self, graph: DetectorGraph, precision: Precision, images: Sequence[NDArray[np.uint8]]) -> None:
        if not _is_installed("openvino"):
            raise ConfigError("OpenVINO models need openvino: pip install 'adtr[openvino]'")
        # OpenVINO halves the weights itself.
        super().__init__(graph, "fp32" if precision == "fp16" else precision, images)
        self._compress = precision == "fp16"

    def runtime(self) -> Runtime:
        """Runs the model as it is now."""
        return openvino_runtime(*self._serialize({}))

    def write(self, path: Path, metadata: dict[str, Any]) -> None:
        """The finished files: the XML, and its weights beside it."""
        xml, weights = self._serialize(metadata)
        replace_file(weights_path(path), weights)
        replace_file(path, seal_xml(xml, weights))

    def _serialize(self, metadata: dict[str, Any]) -> tuple[bytes, bytes]:
        openvino = import_openvino()
        with tempfile.TemporaryDirectory() as name:
            source, target = Path(name, "model.onnx"), Path(name, "model.xml")
            source.write_bytes(self.model.SerializeToString())
            model = openvino.convert_model(source)
            model.set_rt_info(json.dumps(metadata), [KEY])
            openvino.save_model(model, target, compress_to_fp16=self._compress)
            return target.read_bytes(), weights_path(target).read_bytes()


class TorchDraft:
    """A program of torch.export that is being made.

    Raises:
        ConfigError: a precision other than fp32.
    """

    def __init__(
        self,
        graph: DetectorGraph,
        precision: Precision,
        images: Sequence[NDArray[np.uint8]],  # noqa: ARG002 - as the others
    ) -> None:
        if precision != "fp32":
            raise ConfigError(f"the torch format is written in fp32, not {precision}; choose another --format")
        self._program: ExportedProgram = export_program(graph)

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """What the graph decides by."""
        self._program.state_dict["image_threshold"].fill_(thresholds.image)
        self._program.state_dict["pixel_threshold"].fill_(thresholds.pixel)

    def runtime(self) -> Runtime:
        """Runs the program as it is now."""
        import torch

        module = self._program.module()

        def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
            with torch.inference_mode():
                outputs = Outputs(*module(torch.from_numpy(images.copy())))
            return [getattr(outputs, name).numpy() for name in names]

        return run

    def write(self, path: Path, metadata: dict[str, Any]) -> None:
        """The finished file."""
        import torch

        buffer = io.BytesIO()
        torch.export.save(self._program, buffer, extra_files={f"{KEY}.json": json.dumps(metadata)})
        replace_file(path, buffer.getvalue())


Draft = OnnxDraft | TorchDraft
FORMATS: dict[str, tuple[str, type[OnnxDraft | TorchDraft]]] = {
    "onnx": (".onnx", OnnxDraft),
    "openvino": (".xml", OpenVinoDraft),
    "torch": (".pt2", TorchDraft),
}
"""By name: the end of the file's name, and what makes it."""


def to_onnx(graph: DetectorGraph) -> ModelProto:
    """The graph in ONNX.

    Raises:
        ConfigError: onnx or onnxscript is not installed.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if not _is_installed(name):
            raise ConfigError(f"exporting needs {name}: pip install 'adtr[onnx]'")
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        program = torch.onnx.export(
            export_program(graph),
            dynamo=True,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=list(Outputs._fields),
            verbose=False,
        )
    assert program is not None
    model: ModelProto = program.model_proto
    graph_proto = model.graph
    del graph_proto.value_info[:], model.metadata_props[:]
    for part in (graph_proto, *graph_proto.node, *graph_proto.input, *graph_proto.output, *graph_proto.initializer):
        del part.metadata_props[:]  # where in the code each comes from, paths included
    return model


def halve_weights(graph: GraphProto) -> None:
    """Store large weights in half precision; they are cast back when the file is loaded, and all else stays float32."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= _HALVED and np.abs(values).max() < np.finfo(np.float16).max:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}_half"))
            casts.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def quantize(model: ModelProto, images: Sequence[NDArray[np.uint8]]) -> ModelProto:
    """The backbone in 8 bit, weights channel by channel; all else stays float32.

    Convolutions alone would not do: between them the runtimes would go to float32 and back.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images: Iterator[NDArray[np.uint8]] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT: image[None]}

    chosen: list[str] = []
    of_backbone: set[str] = set()
    for node in model.graph.node:  # convolutions, and the activations and shortcuts that follow them
        if node.op_type == "Conv" or (node.op_type in ("Clip", "Relu", "Add") and of_backbone.intersection(node.input)):
            chosen.append(node.name)
            of_backbone.update(node.output)
    with tempfile.TemporaryDirectory() as name:
        source, target = Path(name, "float.onnx"), Path(name, "int8.onnx")
        onnx.save(model, source)
        quant_pre_process(source, source, skip_optimization=True, skip_symbolic_shape=True)
        quantize_static(
            source,
            target,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        quantized: ModelProto = onnx.load(target)
    del quantized.metadata_props[:]
    return quantized


def _is_installed(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None

"""`ExportedDetector`: predict and evaluate with an exported file, by onnxruntime or OpenVINO, without torch."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.data.loading import LoadedImage
from adtr.deploy.sealed import SealedModel, read_sealed
from adtr.errors import ConfigError, ModelError
from adtr.predictor import Predictor

INPUT = "images"

Runtime = Callable[[NDArray[np.uint8], Sequence[str]], list[NDArray[Any]]]
"""Images of one size, (B, H, W, 3), and names of outputs (see `adtr.deploy.graph.Outputs`) to those outputs."""


class ExportedDetector(Predictor):
    """A fitted detector from a file that `adtr export` wrote; it learns no more.

    Images are resized as for training, before the graph, whose own resize then leaves them as they are.
    """

    def __init__(self, sealed: SealedModel, runtime: Runtime) -> None:
        self.path = sealed.path
        self.fitted_config_, self.calibration_ = sealed.config, sealed.calibration
        self.metadata_ = sealed.metadata
        self.skipped_ = []
        self._runtime = runtime
        self.set_rates()

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> ExportedDetector:
        """Read an exported file; its seal is checked, and files that hold more than an export are refused.

        Args:
            path: an ONNX file, or the XML of an OpenVINO model.
            device: "auto" or "cpu".

        Raises:
            ModelError: the file is not an export, or was altered.
            ConfigError: another device, or the runtime is not installed.
        """
        if device not in ("auto", "cpu"):
            raise ConfigError(f"exported files run on the CPU, not on {device!r}; use --device cpu")
        sealed = read_sealed(Path(path))
        try:
            if sealed.weights is None:
                runtime = onnx_runtime(sealed.graph)
            else:
                runtime = openvino_runtime(sealed.graph, sealed.weights, sealed.config.embedding.image_size)
        except ConfigError:
            raise
        except Exception as error:  # neither runtime's errors have a class of their own
            raise ModelError(f"{path} cannot be run here ({_reason(error)}); export it again") from error
        return cls(sealed, runtime)

    def __repr__(self) -> str:
        return f"ExportedDetector({str(self.path)!r})"

    def _compare(self, batch: Sequence[LoadedImage]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        try:
            scores, maps = self._runtime(np.stack([image.pixels for image in batch]), ["score", "score_map"])
        except Exception as error:  # see `load`
            raise ModelError(f"{self.path} cannot be run here ({_reason(error)}); export it again") from error
        if scores.shape != (len(batch),) or maps.ndim != 3 or len(maps) != len(batch) or not maps.size:
            raise ModelError(f"{self.path} gives no score and map of each image; export it again")
        return scores.astype(np.float32), maps.astype(np.float32)

    def _require_fitted(self) -> None:
        """An exported detector always is."""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())[:200]
    return "".join(character for character in text if character.isprintable()) or type(error).__name__


def onnx_runtime(model: bytes) -> Runtime:
    """An ONNX model in onnxruntime.

    Raises:
        ConfigError: onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("ONNX files need onnxruntime: pip install 'adtr[onnx]'") from error
    onnxruntime.disable_telemetry_events()  # of the builds for Windows
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = _threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        outputs: list[NDArray[Any]] = session.run(list(names), {INPUT: images})
        return outputs

    return run


def import_openvino() -> ModuleType:
    """OpenVINO, kept from telling its makers: its telemetry would start a process that connects to them.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # as if it were not installed
    try:
        import openvino
    except ImportError as error:
        raise ConfigError("OpenVINO models need openvino: pip install 'adtr[openvino]'") from error
    return openvino


def openvino_runtime(xml: bytes, weights: bytes, size: tuple[int, int] | None = None) -> Runtime:
    """An OpenVINO model; for images of one size, where it is given, which is faster.

    Raises:
        ConfigError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    core = openvino.Core()
    model = core.read_model(xml, weights)
    if size is not None:
        model.reshape({INPUT: [-1, *size, 3]})
    # On some processors OpenVINO would else compute in bfloat16.
    how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": _threads()}
    compiled = core.compile_model(model, "CPU", how)

    def run(images: NDArray[np.uint8], names: Sequence[str]) -> list[NDArray[Any]]:
        outputs = compiled({INPUT: images})
        return [outputs[name].copy() for name in names]

    return run


def _threads() -> int:
    """As torch counts them: OMP_NUM_THREADS, which also tells a worker its share of the cores; 0: all cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdecimal() else 0

"""What the tests share: small images, a small data set that can be learned in seconds, and a model fitted to it."""

from __future__ import annotations

import copy
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from adtr.cli import wait_briefly

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # many tests compare bits, which a GPU rounds otherwise each time
wait_briefly()  # as the command line does, before torch is imported

from adtr.detector import AnomalyDetector  # noqa: E402

if TYPE_CHECKING:
    from fastapi import FastAPI
    from fastapi.testclient import TestClient


if find_spec("ray") is None:  # comes with the extra of that name
    collect_ignore = [f"scaling/test_{name}.py" for name in ("answers", "scaling_prediction", "sources")]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        skip = pytest.mark.skip(reason="needs --slow")
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(skip)


def good_image(rng: np.random.Generator, side: int = 96) -> np.ndarray:
    """A disc with a bar on a rough ground, always at the same place."""
    y, x = np.mgrid[:side, :side] / side
    ground = 120 + 25 * np.sin(20 * x) + rng.normal(0, 4, (side, side))
    disc = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.09
    bar = (abs(x - 0.5) < 0.05) & (y > 0.6)
    gray = np.where(bar, 40, np.where(disc, 200, ground)) + rng.normal(0, 3, (side, side))
    return np.clip(np.stack([gray, gray * 0.9, gray * 0.8], axis=-1), 0, 255).astype(np.uint8)


def defect_image(rng: np.random.Generator, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A good image with a dark rectangle somewhere on it, and its mask."""
    image = good_image(rng, side)
    mask = np.zeros((side, side), bool)
    top, left = rng.integers(0, side * 3 // 4, 2)
    mask[top : top + side // 5, left : left + side // 6] = True
    image[mask] = rng.integers(0, 60, (int(mask.sum()), 3))
    return image, mask


def write_dataset(root: Path, *, train: int = 24, test: int = 8, validation: int = 0, seed: int = 0) -> Path:
    """An MVTec-layout data set of discs, half of the test images with a dark rectangle."""
    rng = np.random.default_rng(seed)
    for folder in ("train/good", "test/good", "test/dark", "ground_truth/dark"):
        (root / folder).mkdir(parents=True)
    for i in range(train):
        Image.fromarray(good_image(rng)).save(root / f"train/good/{i:03}.png")
    for i in range(test):
        Image.fromarray(good_image(rng)).save(root / f"test/good/{i:03}.png")
        image, mask = defect_image(rng)
        Image.fromarray(image).save(root / f"test/dark/{i:03}.png")
        Image.fromarray(mask).save(root / f"ground_truth/dark/{i:03}_mask.png")
    if validation:
        (root / "validation/good").mkdir(parents=True)
    for i in range(validation):
        Image.fromarray(good_image(rng)).save(root / f"validation/good/{i:03}.png")
    return root


SMALL = {
    "image_size": 64,
    "grid_size": 8,
    "width": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "feedforward": 64,
    "batch_size": 8,
    "epochs": 6,
    "precision": "fp32",
}
"""Overrides that make the network small enough for tests."""


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "discs")


@pytest.fixture(scope="session")
def detector(dataset: Path) -> AnomalyDetector:
    """A small fitted detector; tests must not change it."""
    return AnomalyDetector(**SMALL).fit(dataset)


@pytest.fixture(scope="session")
def model(detector: AnomalyDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its model folder; tests must copy it before changing it."""
    folder = tmp_path_factory.mktemp("models") / "discs"
    detector.save(folder)
    return folder


@pytest.fixture(scope="session")
def traced(detector: AnomalyDetector) -> Iterator[None]:
    """All exports of the small detector share one trace, which takes seconds."""
    from adtr.deploy import formats
    from adtr.deploy.graph import DetectorGraph

    trace, query = formats.to_onnx, detector.network_.reconstruction.query
    traced = trace(DetectorGraph(detector.network_).eval())

    def to_onnx(graph: DetectorGraph) -> object:
        ours = graph.network.reconstruction.query
        return copy.deepcopy(traced) if ours.shape == query.shape and ours.equal(query) else trace(graph)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "to_onnx", to_onnx)
        yield


@pytest.fixture(scope="session")
def onnx_file(detector: AnomalyDetector, traced: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The small detector as an ONNX file; tests must not change it."""
    from adtr.deploy.export import export

    file = tmp_path_factory.mktemp("onnx") / "discs.onnx"
    export(detector, file)
    return file


@pytest.fixture(scope="session")
def openvino_file(detector: AnomalyDetector, traced: None, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001
    """The small detector as an OpenVINO model; tests must not change it."""
    from adtr.deploy.export import export

    file = tmp_path_factory.mktemp("openvino") / "discs.xml"
    export(detector, file, format="openvino")
    return file


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def run() -> Run:
    """The command line as a process: `run("info", model)`."""

    def call(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "adtr", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)  # type: ignore[call-overload,no-any-return]

    return call


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets that ADTR_DATA names."""
    folder = os.environ.get("ADTR_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("ADTR_DATA names no folder of real data sets")
    return Path(folder)


def png(array: np.ndarray) -> bytes:
    """An image as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def good_png() -> bytes:
    return png(good_image(np.random.default_rng(5)))


@pytest.fixture(scope="session")
def bad_png() -> bytes:
    return png(defect_image(np.random.default_rng(6))[0])


Serve = Callable[..., "AbstractContextManager[TestClient]"]


@pytest.fixture(scope="session")
def serve(model: Path) -> Serve:
    """`with serve(queue=2) as client:` the server's application with the model "discs", started and stopped."""

    @contextmanager
    def opened(**settings: Any) -> Iterator[TestClient]:  # noqa: ANN401 - of any field
        from fastapi.testclient import TestClient

        from adtr.serve.app import create_app
        from adtr.serve.models import Models
        from adtr.serve.service import Settings

        app = create_app(Models({"discs": model}, AnomalyDetector.load), Settings(**settings))
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
            yield client

    return opened


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application that answers on a port of this machine."""
    import uvicorn

    from adtr.serve.server import listen

    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """A small Ray cluster, which this process is connected to; its address."""
    import ray

    from adtr.scaling.cluster import connect

    connect(2, object_store_memory=100 << 20)
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()

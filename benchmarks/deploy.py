"""Exported files: latency of one image, images a second in batches, size, and what each format costs in AUROC.

All take raw images and give scores and maps, on the same number of threads; only "predict" is adtr's own way, from
arrays. The formats take turns in each round, so that a noisy machine slows all of them alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from adtr import AnomalyDetector
from adtr.data.folder import open_dataset
from adtr.deploy.export import export, in_full_precision
from adtr.deploy.exported import onnx_runtime, openvino_runtime
from adtr.deploy.graph import DetectorGraph
from adtr.deploy.sealed import read_sealed
from common import dataset_folder, parser, table, write

Call = Callable[[np.ndarray], object]
FILES = [("onnx", "fp32"), ("onnx", "fp16"), ("onnx", "int8")]
FILES += [("openvino", "fp32"), ("openvino", "fp16"), ("openvino", "int8"), ("torch", "fp32")]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def eager(detector: AnomalyDetector) -> Call:
    """PyTorch as it comes: the graph's module, not exported."""
    graph = DetectorGraph(detector.network_).eval()
    graph.set_thresholds(detector.thresholds_)

    def call(images: np.ndarray) -> object:
        with torch.inference_mode():
            return graph(torch.from_numpy(images))

    return call


def program(path: Path) -> Call:
    """A torch.export program."""
    module = torch.export.load(path).module()

    def call(images: np.ndarray) -> object:
        with torch.inference_mode():
            return module(torch.from_numpy(images))

    return call


def runtime(path: Path) -> Call:
    """An exported file."""
    sealed = read_sealed(path)
    run = onnx_runtime(sealed.graph) if sealed.weights is None else openvino_runtime(sealed.graph, sealed.weights)
    return lambda images: run(images, ["score", "is_anomalous", "anomaly_map"])


def predict(detector: AnomalyDetector) -> Call:
    """What adtr itself does, the map included."""
    return lambda images: [p.anomaly_map for p in detector.predict(list(images))]


def seconds(call: Call, images: np.ndarray) -> float:
    """Wall time of a call."""
    started = time.perf_counter()
    call(images)
    return time.perf_counter() - started


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--dataset", default="transistor", help="data set, by name or folder")
    made.add_argument("--model", type=Path, help="model folder; by default one is fitted")
    made.add_argument("--rounds", type=int, default=6, help="turns of each format, with five single images in each")
    made.add_argument("--batch", type=int, default=8, help="images in a batch")
    made.add_argument("--threads", type=int, default=2, help="of PyTorch; the others take all cores")
    options = made.parse_args()
    torch.set_num_threads(options.threads)
    folder = dataset_folder(options.data, options.dataset)
    detector = AnomalyDetector.load(options.model, device="cpu") if options.model else AnomalyDetector().fit(folder)
    twin = in_full_precision(detector)
    paths = [sample.path for sample in open_dataset(folder, reserve=False).test][: options.batch]
    size = Image.open(paths[0]).size
    batch = np.stack([np.array(Image.open(path).convert("RGB").resize(size)) for path in paths])

    calls: dict[str, Call] = {"eager PyTorch, fp32": eager(twin), "predict, fp32": predict(twin)}
    own = "bf16" if detector.network_.embedding.dtype == torch.bfloat16 else "fp32"
    calls[f"predict, {own}"] = predict(detector)
    facts: dict[str, dict[str, object]] = {}
    with tempfile.TemporaryDirectory() as name:
        for file_format, precision in FILES:
            path = Path(name, f"{precision}{SUFFIXES[file_format]}")
            made_file = export(detector, path, format=file_format, precision=precision, data=folder, tolerance=1)
            parity = made_file.parity["fp32"]
            what = f"{file_format}, {precision}"
            files = [path, path.with_suffix(".bin")] if file_format == "openvino" else [path]
            facts[what] = {
                "MB": sum(file.stat().st_size for file in files) / 1e6,
                "score difference, max": parity.score_max,
                "map difference, max": parity.map_max,
                "flipped": f"{parity.flipped} of {parity.images}",
                "image AUROC change": parity.image_auroc_change,
                "pixel AUROC change": parity.pixel_auroc_change,
            }
            calls[what] = program(path) if file_format == "torch" else runtime(path)
            if file_format != "torch":
                calls[f"predict, {what}"] = predict(AnomalyDetector.load(path))
            print(what, parity.describe(), flush=True)
        one: dict[str, list[float]] = {what: [] for what in calls}
        many: dict[str, list[float]] = {what: [] for what in calls}
        for _ in range(options.rounds):
            for what, call in calls.items():
                time.sleep(0.2)  # the threads of the one before may still spin
                for _ in range(2):
                    call(batch[:1])
                one[what] += [seconds(call, batch[:1]) for _ in range(5)]
                call(batch)
                many[what].append(seconds(call, batch))
    base = statistics.median(one["eager PyTorch, fp32"])
    rows: list[dict[str, object]] = [
        {
            "what": what,
            "one image, ms": statistics.median(one[what]) * 1000,
            "times as fast as eager": base / statistics.median(one[what]),
            f"images/s, batches of {options.batch}": len(batch) / statistics.median(many[what]),
            **(facts.get(what) or dict.fromkeys(next(iter(facts.values())), "")),
        }
        for what in calls
    ]
    heading = f"Images of {size[0]} x {size[1]} pixels.\n\n"
    write(options.output, "deploy", rows, heading + table(rows))


if __name__ == "__main__":
    main()

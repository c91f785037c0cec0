"""Throughput: training, feature extraction and prediction against the matrix-product ceiling of the same run.

The ceiling is measured after each of several rounds of training, since the pace of a shared machine changes within
seconds; figures are the medians of the rounds.

Training is counted in FLOP: 2 for each multiply-add of the products in a forward pass, three times that for a step.
Muon's own products are work too, but not the network's: they are shown apart.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from adtr import AnomalyDetector, Config, load_preset
from adtr.device import choose_device, has_fast_bf16, keep_freed_memory
from adtr.model.network import ADTR
from adtr.training import muon
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.loop import train
from common import matrix_ceiling, median_seconds, parser, peak_memory, table, write

ROUNDS = 5


def reconstruction_flops(config: Config, channels: int) -> float:
    """FLOP of the products in one forward pass of one image."""
    c = config.reconstruction
    tokens = config.embedding.grid_size[0] * config.embedding.grid_size[1]
    attention = 4 * c.width**2 + 2 * tokens * c.width  # projections; weights and their use
    feedforward = 2 * c.width * c.feedforward
    layers = c.encoder_layers * (attention + feedforward) + c.decoder_layers * (2 * attention + feedforward)
    return 2.0 * tokens * (layers + 2 * channels * c.width)


def muon_flops(network: ADTR) -> float:
    """FLOP of the Newton-Schulz iterations of one step: three products in each of them, of the shorter side's size."""
    reconstruction = network.reconstruction
    shapes = [
        sorted(module.weight.shape)
        for part in (reconstruction.encoder, reconstruction.decoder)
        for module in part.modules()
        if isinstance(module, nn.Linear)
    ]
    return sum(len(muon.COEFFICIENTS) * 2.0 * (2 * short**2 * long + short**3) for short, long in shapes)


def training(config: Config, steps: int, device: torch.device) -> dict[str, object]:
    """Images/s and FLOP/s of training steps, the optimiser included."""
    config = config.override(max_steps=steps, epochs=steps)
    network = ADTR(config).to(device)
    height, width = config.embedding.grid_size
    cache = FeatureCache(64, height * width, network.embedding.channels)
    cache.append(torch.randn(64, height * width, network.embedding.channels))
    data = GoodImages(network, cache, torch.arange(64))
    keep_freed_memory()
    train(network, data, config.override(max_steps=3).training, device=device)
    flops = 3 * reconstruction_flops(config, network.embedding.channels) * config.training.batch_size
    extra = muon_flops(network) if config.training.optimizer == "muon" else 0.0
    paces, ceilings = [], []
    for _ in range(ROUNDS):
        record = train(network, data, config.training, device=device)
        paces.append(record.steps / record.seconds)
        ceilings.append(matrix_ceiling("bfloat16" if record.precision == "bf16" else "float32", device))
    shares = [flops * pace / ceiling for pace, ceiling in zip(paces, ceilings, strict=True)]
    pace = statistics.median(paces)
    return {
        "grid": f"{height}x{width}",
        "batch": config.training.batch_size,
        "optimizer": config.training.optimizer,
        "precision": record.precision,
        "images/s": config.training.batch_size * pace,
        "GFLOP/s": flops * pace / 1e9,
        "ceiling, GFLOP/s": statistics.median(ceilings) / 1e9,
        "share of ceiling": statistics.median(shares),
        "with Muon's products": statistics.median(shares) * (1 + extra / flops),
        "peak memory, MiB": peak_memory(),
    }


def prediction(folder: Path, images: int, side: int, device: torch.device) -> list[dict[str, object]]:
    """Images/s from files and from memory, and the latency of one image."""
    rng = np.random.default_rng(0)
    smooth = [Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).resize((side, side)) for _ in range(images)]
    for i, image in enumerate(smooth):
        image.save(folder / f"{i:04}.png")
    paths = sorted(folder.glob("*.png"))
    arrays = [np.asarray(image) for image in smooth]
    detector = AnomalyDetector(max_steps=1).fit(arrays)
    detector.predict(arrays[:16])
    rows = []
    for name, sources in {"files": paths, "memory": arrays}.items():
        seconds = median_seconds(lambda s=sources: detector.predict(s), rounds=3)
        rows.append({"what": f"predict from {name}", "images": images, "side": side, "images/s": images / seconds})
    latency = median_seconds(lambda: detector.predict(arrays[0]), rounds=20)
    rows.append({"what": "one image from memory", "side": side, "ms": latency * 1000})
    batch = torch.from_numpy(np.stack([np.asarray(image.resize((256, 256))) for image in smooth[:16]]))
    batch = batch.to(device)
    seconds = median_seconds(lambda: detector.network_.embedding(batch).cpu())
    rows.append({"what": "features", "images": 16, "side": 256, "images/s": 16 / seconds})
    return rows


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=12, help="training steps that are timed")
    made.add_argument("--images", type=int, default=100, help="images to predict")
    options = made.parse_args()
    device = choose_device()
    quick, paper = load_preset("quick"), load_preset("paper-mvtec").override(backbone="tf_efficientnet_lite2")
    runs = [quick, quick.override(optimizer="adamw"), paper.override(precision="fp32")]
    if has_fast_bf16(device):  # it would be emulated, and take minutes
        runs.append(paper.override(precision="bf16"))
    runs += [quick.override(grid_size=grid) for grid in (8, 32)]
    trained = [training(config, options.steps, device) for config in runs]
    predicted: list[dict[str, object]] = []
    for side in (256, 512, 1024):
        with tempfile.TemporaryDirectory() as name:
            started = time.perf_counter()
            predicted += prediction(Path(name), options.images, side, device)
            print(f"{side} px done in {time.perf_counter() - started:.0f} s", flush=True)
    columns = {"what": "", "images": "", "side": "", "images/s": "", "ms": ""}
    markdown = f"## Training\n\n{table(trained)}\n## Prediction\n\n{table([columns | row for row in predicted])}"
    write(options.output, "throughput", {"training": trained, "prediction": predicted}, markdown)


if __name__ == "__main__":
    main()

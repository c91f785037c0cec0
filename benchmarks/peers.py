"""Peers side by side: anomalib's PatchCore, PaDiM and STFPM and a plain nearest neighbour against adtr, in one run.

Same images, same decoding and resizing, same packaged EfficientNet-Lite2 weights, same metrics code, raw scores.
anomalib lives in an environment of its own:

    python3 -m venv peers-env
    peers-env/bin/pip install -c constraints.txt anomalib==2.7.0 .
    peers-env/bin/python benchmarks/peers.py --data DATA
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr import AnomalyDetector
from adtr.data.folder import Dataset, open_dataset
from adtr.data.images import read_mask
from adtr.data.loading import load_images
from adtr.metrics import Metrics, MetricsAccumulator
from adtr.model.backbones import PACKAGED, import_timm, load_backbone_state, packaged_file, read_state_dict, rename_lite
from common import dataset_folder, parser, spread, table, write

SIZE = (256, 256)
BACKBONE = "tf_efficientnet_lite2"
Scorer = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Normalised images (B, 3, h, w) to image scores (B,) and maps (B, H, W)."""


def load_weights(network: nn.Module) -> None:
    """Put the packaged weights into a timm feature extractor."""
    packaged = PACKAGED[BACKBONE]
    load_backbone_state(network, rename_lite(read_state_dict(packaged_file(packaged)), packaged.repeats), BACKBONE)


def batches(paths: list[Path], size: int = 16) -> Iterator[tuple[Tensor, list[tuple[int, int]]]]:
    """Normalised images and their original sizes."""
    pending = []
    for image in load_images(paths, SIZE):
        pending.append(image)
        if len(pending) == size:
            yield _stack(pending)
            pending = []
    if pending:
        yield _stack(pending)


def _stack(images: list) -> tuple[Tensor, list[tuple[int, int]]]:
    pixels = torch.from_numpy(np.stack([image.pixels for image in images])).permute(0, 3, 1, 2)
    return (pixels.float() / 255 - 0.5) / 0.5, [image.size for image in images]


def score_all(score: Scorer, dataset: Dataset) -> tuple[Metrics, float]:
    """Metrics of a scorer, and its images/s from files."""
    scores: list[float] = []
    maps: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []
    started = time.perf_counter()
    with torch.inference_mode():
        for images, originals in batches([sample.path for sample in dataset.test]):
            image_scores, image_maps = score(images)
            scores += image_scores.double().flatten().tolist()
            maps += list(image_maps.float().reshape(len(images), *image_maps.shape[-2:]).numpy())
            sizes += originals
    rate = len(scores) / (time.perf_counter() - started)
    accumulator = MetricsAccumulator()
    for sample, value, anomaly_map, size in zip(dataset.test, scores, maps, sizes, strict=True):
        resized = functional.interpolate(torch.from_numpy(anomaly_map)[None, None], size=size, mode="bilinear")[0, 0]
        mask = read_mask(sample.mask, size) if sample.mask else None
        accumulator.add(value, resized.numpy(), mask, defect_type=sample.defect_type)
    return accumulator.compute(), rate


def patchcore(paths: list[Path], seed: int) -> Scorer:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    torch.manual_seed(seed)
    model = PatchcoreModel(layers=["blocks.2", "blocks.4"], backbone=BACKBONE, pre_trained=False)
    load_weights(model.feature_extractor.feature_extractor)
    model.train()
    with torch.no_grad():
        for images, _ in batches(paths):
            model(images)
        model.subsample_embedding(0.01)
    model.eval()
    return _inference(model)


def padim(paths: list[Path], seed: int) -> Scorer:
    from anomalib.models.image.padim.torch_model import PadimModel

    torch.manual_seed(seed)
    model = PadimModel(
        layers=["blocks.1", "blocks.2", "blocks.4"], backbone=BACKBONE, pre_trained=False, n_features=100
    )
    load_weights(model.feature_extractor.feature_extractor)
    model.train()
    with torch.no_grad():
        for images, _ in batches(paths):
            model(images)
        model.fit()
    model.eval()
    return _inference(model)


def stfpm(paths: list[Path], seed: int, *, epochs: int = 20) -> Scorer:
    from anomalib.models.image.stfpm.loss import STFPMLoss
    from anomalib.models.image.stfpm.torch_model import STFPMModel

    torch.manual_seed(seed)
    model = STFPMModel(layers=["blocks.1", "blocks.2", "blocks.4"], backbone=BACKBONE)
    load_weights(model.teacher_model.feature_extractor)
    optimizer = torch.optim.SGD(model.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)
    loss = STFPMLoss()
    model.train()
    for epoch in range(epochs):
        order = np.random.default_rng(seed + epoch).permutation(len(paths))
        for images, _ in batches([paths[i] for i in order]):
            optimizer.zero_grad()
            loss(*model(images)).backward()
            optimizer.step()
    model.eval()
    return _inference(model)


def _inference(model: nn.Module) -> Scorer:
    def score(images: Tensor) -> tuple[Tensor, Tensor]:
        result = model(images)
        maps = result.anomaly_map
        scores = result.pred_score if result.pred_score is not None else maps.amax(dim=(-3, -2, -1))
        return scores, maps

    return score


def nearest_neighbour(paths: list[Path], seed: int) -> Scorer:
    """A random 1 % of the features that adtr itself sees (16x16, standardised), Euclidean distance."""
    from adtr.config import load_preset
    from adtr.model.embedding import Embedding

    embedding = Embedding(load_preset("quick").embedding)
    with torch.inference_mode():
        bank = torch.cat([embedding(_as_uint8(images)) for images, _ in batches(paths)]).flatten(0, 1)
    mean, std = bank.mean(0), bank.std(0).clamp_min(1e-6)
    chosen = torch.randperm(len(bank), generator=torch.Generator().manual_seed(seed))[: max(1, len(bank) // 100)]
    bank = (bank[chosen] - mean) / std

    def score(images: Tensor) -> tuple[Tensor, Tensor]:
        features = (embedding(_as_uint8(images)) - mean) / std
        maps = torch.cdist(features, bank.expand(len(features), -1, -1)).amin(-1).unflatten(-1, (16, 16))
        return maps.amax(dim=(-2, -1)), maps

    return score


def _as_uint8(images: Tensor) -> Tensor:
    return (images * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)


PEERS = {
    "PatchCore 1 %": patchcore,
    "PaDiM": padim,
    "STFPM 20 epochs": stfpm,
    "nearest neighbour 1 %": nearest_neighbour,
}


def run_adtr(dataset: Dataset, seed: int, overrides: dict[str, str]) -> dict[str, object]:
    started = time.perf_counter()
    detector = AnomalyDetector(seed=seed, **overrides).fit(dataset)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    count = sum(1 for _ in detector.stream([sample.path for sample in dataset.test]))
    rate = count / (time.perf_counter() - started)
    return _row("adtr", seed, detector.evaluate(dataset), seconds, rate)


def _row(method: str, seed: int, metrics: Metrics, seconds: float, rate: float) -> dict[str, object]:
    values = {key: getattr(metrics, key) for key in ("image_auroc", "pixel_auroc", "aupro")}
    return {"method": method, "seed": seed, **values, "fit_seconds": seconds, "images_per_second": rate}


def arguments() -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--datasets", nargs="+", default=["transistor", "magnetic_tile"])
    made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    made.add_argument("--methods", nargs="+", default=["adtr", *PEERS])
    made.add_argument("--limit", type=int, help="train every method on at most so many images, the same for all")
    made.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="overrides of adtr's preset")
    return made.parse_args()


def main() -> None:
    options = arguments()
    import_timm()  # before anomalib, which would fail where torchvision and torch are of different builds
    results, rows = [], []
    for name in options.datasets:
        dataset = open_dataset(dataset_folder(options.data, name))
        if options.limit and options.limit < len(dataset.train):
            chosen = np.random.default_rng(0).permutation(len(dataset.train))[: options.limit]
            dataset = replace(dataset, train=[dataset.train[i] for i in np.sort(chosen)])
        paths = [sample.path for sample in dataset.train]
        for method in options.methods:
            runs = []
            for seed in options.seeds:
                if method == "adtr":
                    run = run_adtr(dataset, seed, dict(item.split("=", 1) for item in options.set))
                else:
                    started = time.perf_counter()
                    scorer = PEERS[method](paths, seed)
                    seconds = time.perf_counter() - started
                    run = _row(method, seed, *_swap(score_all(scorer, dataset), seconds))
                runs.append(run)
                results.append({"dataset": name, **run})
                print(results[-1], flush=True)
            keys = ("image_auroc", "pixel_auroc", "aupro", "fit_seconds", "images_per_second")
            rows.append(
                {
                    "data": name,
                    "trained on": len(paths),
                    "method": method,
                    **{key: spread([r[key] for r in runs]) for key in keys},
                }
            )
    write(options.output, "peers", results, table(rows))


def _swap(scored: tuple[Metrics, float], seconds: float) -> tuple[Metrics, float, float]:
    return scored[0], seconds, scored[1]


if __name__ == "__main__":
    main()

"""The paper's Figures 3, 4, 5 and A1 to A25, from data and detectors at hand; each as PNG and PDF."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from adtr.config import Config
from adtr.data.images import read_image, resize
from adtr.data.sources import GoodSources
from adtr.data.synthetic import confetti
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError
from adtr.experiments.features import SharedReader, grid_truth
from adtr.experiments.plans import PLANS
from adtr.experiments.plots import new_figure, save_figure
from adtr.experiments.published import published_tables
from adtr.experiments.runs import Request
from adtr.experiments.subjects import Subject, Subjects
from adtr.learning.fit import fit
from adtr.model.comparison import score_map
from adtr.progress import Progress

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ANOMALIES = 9
"""Anomalous images in a panel."""
NORMALS_OF_CIFAR = 5
VECTORS = 300
"""Normal and anomalous difference vectors, each, in Figure 5."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A test image, its truth and its score map."""

    image: NDArray[np.uint8]
    truth: NDArray[np.bool_] | None
    anomaly_map: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Vectors:
    """Feature difference vectors d(:, u) of a category."""

    vectors: NDArray[np.float32]
    """(n, C)."""
    anomalous: NDArray[np.bool_]
    """Whether the position is marked, (n,)."""
    likelihood: NDArray[np.float32]
    """The score between the category's 1st and 99th percentile, 0..1, (n,)."""


def draw(request: Request, cifar: Path | None, *, progress: Progress) -> Iterator[Path]:
    """Draw every figure for which there are data; detectors are kept in `models/` and taken from there the next time.

    Args:
        request: gives the data in MVTec AD's layout, the configuration and the output.
        cifar: CIFAR-10, for Figures A16 to A25.
        progress: told of the stages.

    Yields:
        The PNG file of each figure, once it is written.

    Raises:
        AdtrError: the data cannot be read, a model there is of another configuration, or matplotlib is missing.
    """
    folder, subjects = request.output / "figures", Subjects("mvtec", request.data, request.categories)
    opened = [subjects.open(name) for name in subjects.names]
    yield draw_confetti(opened, folder / "figure-3")
    firsts: list[Sample] = []
    vectors: list[Vectors] = []
    order = published_tables()["table-1"].columns
    for subject in opened:
        detector, reader = _detector(request, subject, progress), SharedReader(progress=progress)
        samples = list(_samples(detector, subject, _chosen(subject)))
        number = f"A{order.index(subject.name) + 1}" if subject.name in order else "A"
        yield draw_panel(samples, folder / f"figure-{number}-{subject.name}", subject.name)
        firsts.append(samples[1])
        vectors.append(difference_vectors(detector, subject, reader, -(-VECTORS // len(opened))))
    yield draw_panel(firsts, folder / "figure-4", "one anomaly of each category")
    yield draw_tsne(vectors, folder / "figure-5")
    if cifar is None:
        return
    request = replace(request, plan=PLANS["cifar10"], data=cifar, categories=())
    classes = Subjects("cifar10", cifar)
    for place, name in enumerate(classes.names, 16):
        subject = classes.open(name)
        detector = _detector(request, subject, progress)
        samples = list(_samples(detector, subject, _chosen_of_class(subject)))
        yield draw_panel(samples, folder / f"figure-A{place}-{name}", name)


def _detector(request: Request, subject: Subject, progress: Progress) -> AnomalyDetector:
    """The kept detector of a category, or a new one."""
    folder = request.output / "models" / subject.name
    config: Config = request.config(request.plan.rows[0], request.seeds[0])
    weights = request.weights_of(config)
    if folder.is_dir():
        detector = AnomalyDetector.load(folder, device=request.device, backbone_weights=weights)
        if detector.config != config:
            raise AdtrError(f"{folder} has another configuration; choose another --output")
        return detector
    learned = fit(
        config,
        GoodSources(subject.train, subject.root),
        device=request.device,
        backbone_weights=weights,
        reader=SharedReader(progress=progress),
        keep_features=False,
        work_folder=None,
        resume=False,
    )
    detector = AnomalyDetector.from_learned(learned, device=request.device, backbone_weights=weights)
    detector.save(folder)
    return detector


def _chosen(subject: Subject) -> list[int]:
    """The first good test image, then anomalous ones, spread over the defect types."""
    good = [i for i, kind in enumerate(subject.types) if kind == "good"][:1]
    marked = [i for i, mask in enumerate(subject.masks) if mask is not None]
    if not good or not marked:
        raise AdtrError(f"{subject.name} has no good or no marked test images to show")
    count = min(ANOMALIES, len(marked))
    return [*good, *(marked[i * len(marked) // count] for i in range(count))]


def _chosen_of_class(subject: Subject) -> list[int]:
    """Good test images, and the first of each other class."""
    first = {kind: i for i, kind in reversed(list(enumerate(subject.types))) if kind != "good"}
    good = [i for i, kind in enumerate(subject.types) if kind == "good"][:NORMALS_OF_CIFAR]
    return [*good, *(first[kind] for kind in sorted(first))]


def _samples(detector: AnomalyDetector, subject: Subject, chosen: Sequence[int]) -> Iterator[Sample]:
    stream = detector.stream([subject.test[i] for i in chosen], keep_images=True)
    for i, (prediction, loaded) in zip(chosen, stream, strict=True):
        assert loaded.image is not None
        image = np.asarray(loaded.image)
        truth = subject.truth(i, prediction.size) if subject.has_masks else None
        yield Sample(image=image, truth=truth, anomaly_map=prediction.anomaly_map)


def draw_panel(samples: Sequence[Sample], stem: Path, title: str) -> Path:
    """Columns of sample, truth (where there is any) and score map, all maps on one scale."""
    with_truth = any(sample.truth is not None for sample in samples)
    rows = 3 if with_truth else 2
    figure = new_figure(figsize=(1.2 * len(samples), 1.2 * rows + 0.3), layout="constrained")
    grid = figure.subplots(rows, len(samples), squeeze=False)
    low, high = np.percentile(np.concatenate([sample.anomaly_map.ravel() for sample in samples]), (1, 99.8))
    for column, sample in enumerate(samples):
        grid[0, column].imshow(sample.image)
        if with_truth:
            truth = np.zeros(sample.image.shape[:2]) if sample.truth is None else sample.truth
            grid[1, column].imshow(truth, cmap="gray", vmin=0, vmax=1)
        grid[-1, column].imshow(sample.anomaly_map, cmap="jet", vmin=low, vmax=high)
    _clear(grid)
    figure.suptitle(title.replace("_", " "), fontsize=9)
    return save_figure(figure, stem)


def draw_confetti(subjects: Sequence[Subject], stem: Path, *, columns: int = 8, size: int = 256) -> Path:
    """Figure 3: good images, the same with confetti, and the masks."""
    rng = np.random.default_rng(0)
    per_subject = -(-columns // len(subjects))
    sources = [source for subject in subjects for source in subject.train[:per_subject]][:columns]
    figure = new_figure(figsize=(1.2 * len(sources), 3.6), layout="constrained")
    grid = figure.subplots(3, len(sources), squeeze=False)
    for column, source in enumerate(sources):
        image = resize(read_image(source), (size, size))
        drawn, mask = confetti(image, image, rng)
        for row, picture in enumerate((image, drawn)):
            grid[row, column].imshow(picture)
        grid[2, column].imshow(mask, cmap="gray", vmin=0, vmax=1)
    _clear(grid)
    return save_figure(figure, stem)


def _clear(grid: NDArray[Any]) -> None:
    axes: Axes
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])


def difference_vectors(detector: AnomalyDetector, subject: Subject, reader: SharedReader, count: int) -> Vectors:
    """Difference vectors of so many normal and so many marked positions of the test images, drawn at random."""
    network = detector.network_
    embedded, rows, truth = grid_truth(network, subject, reader)
    device, parts = network.feature_mean.device, torch.tensor(rows).split(16)
    with torch.no_grad():
        features = (network.target(embedded.cache.on(device, part)) for part in parts)
        difference = torch.cat([network.difference(part).cpu() for part in features])
    scores = score_map(difference, network.config.embedding.grid_size).flatten().numpy()
    low, high = np.percentile(scores, (1, 99))
    rng, inside = np.random.default_rng(0), truth.flatten().numpy()
    places = [np.flatnonzero(inside == wanted) for wanted in (False, True)]
    drawn = np.concatenate([rng.choice(place, min(count, len(place)), replace=False) for place in places])
    reader.forget()
    return Vectors(
        vectors=difference.flatten(0, 1)[torch.from_numpy(drawn)].numpy(),
        anomalous=inside[drawn],
        likelihood=np.clip((scores[drawn] - low) / max(high - low, 1e-12), 0, 1).astype(np.float32),
    )


def draw_tsne(parts: Sequence[Vectors], stem: Path) -> Path:
    """Figure 5: difference vectors in two dimensions; circles are normal, triangles anomalous, colours the scores."""
    from sklearn.manifold import TSNE

    vectors = np.concatenate([part.vectors for part in parts])
    anomalous = np.concatenate([part.anomalous for part in parts])
    likelihood = np.concatenate([part.likelihood for part in parts])
    perplexity = min(30, (len(vectors) - 1) / 3)
    places = TSNE(random_state=0, init="pca", perplexity=perplexity).fit_transform(vectors)
    figure = new_figure(figsize=(5, 4), layout="constrained")
    axes = figure.subplots()
    for wanted, marker, label in ((False, "o", "normal"), (True, "^", "anomalous")):
        chosen = anomalous == wanted
        x, y = places[chosen].T
        dots = axes.scatter(
            x, y, c=likelihood[chosen], marker=marker, cmap="coolwarm", vmin=0, vmax=1, s=14, label=label
        )
    figure.colorbar(dots, label="score, 1st to 99th percentile")
    axes.legend(fontsize=8)
    axes.set(xticks=[], yticks=[])
    return save_figure(figure, stem)

"""The figures of docs/explanation/method.md.

    python benchmarks/explanation.py      # writes runs/network.svg, losses.svg, shortcut.svg and decision.jpg

The network is a drawing and the losses are curves of `adtr.model.losses`. The shortcut is measured on MVTec AD's
transistor (two layers of Section 3.2, Eq. 4 and 5, trained on its features), the decision on the demo's bricks.
"""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from torch import Tensor, nn

from adtr import AnomalyDetector
from adtr.config import EmbeddingConfig, load_preset
from adtr.data.folder import Sample, open_dataset
from adtr.data.images import read_image, read_mask, resize
from adtr.demo.textures import build_demo_dataset
from adtr.experiments.identity import reproduced
from adtr.model.embedding import Embedding
from adtr.model.losses import pseudo_huber, push_term
from adtr.report.pictures import overlay, shown_range
from adtr.training.adaptation import mask_on_grid
from common import dataset_folder, parser

BLUE, RED, GRAY = "#3b6ea8", "#c0392b", "#777777"
FROZEN, LEARNED = "#e8eef5", "#fbeedd"
STEPS = 600


def box(axes: Axes, x: float, y: float, width: float, height: float, text: str, color: str) -> None:
    """A labelled box around (x, y)."""
    place = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(place, width, height, boxstyle="round,pad=0.04", facecolor=color, edgecolor=GRAY))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "") -> None:
    """An arrow, its text below its middle."""
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": GRAY})
    axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 - 0.38, text, ha="center", fontsize=8, color=GRAY)


def draw_network() -> Figure:
    """Embedding, reconstruction and comparison."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 13.2), ylim=(-0.1, 4.5))
    axes.axis("off")
    for left, right, title in ((1.4, 3.9, "embedding"), (4.2, 9.0, "reconstruction"), (9.3, 13.1, "comparison")):
        axes.add_patch(
            FancyBboxPatch((left, 0.1), right - left, 3.6, boxstyle="round,pad=0.05", fill=False, ec="#cccccc")
        )
        axes.text((left + right) / 2, 4.0, title, ha="center", fontsize=10, weight="bold")
    box(axes, 0.55, 2.4, 0.9, 0.7, "image", "white")
    box(axes, 2.6, 2.4, 1.9, 1.6, "backbone,\nfive levels,\nresized to one\ngrid", FROZEN)
    box(axes, 5.5, 2.4, 1.6, 0.9, "encoder", LEARNED)
    box(axes, 7.8, 2.4, 1.6, 0.9, "decoder", LEARNED)
    box(axes, 7.8, 0.75, 1.8, 0.6, "learned queries q", LEARNED)
    box(axes, 5.4, 0.75, 1.9, 0.6, "learned positions", LEARNED)
    box(axes, 10.2, 2.4, 1.0, 0.8, r"$f - \hat f$", "white")
    box(axes, 12.2, 2.4, 1.3, 0.8, "map s(u)", "white")
    box(axes, 12.2, 0.75, 1.3, 0.6, "score", "white")
    arrow(axes, (1.05, 2.4), (1.55, 2.4))
    arrow(axes, (3.65, 2.4), (4.6, 2.4), "tokens f")
    arrow(axes, (6.4, 2.4), (6.9, 2.4))
    arrow(axes, (5.4, 1.1), (5.4, 1.85))
    arrow(axes, (6.4, 0.95), (7.1, 1.85))
    arrow(axes, (7.9, 1.1), (7.9, 1.85))
    arrow(axes, (8.7, 2.4), (9.6, 2.4), r"$\hat f$")
    arrow(axes, (10.8, 2.4), (11.45, 2.4))
    arrow(axes, (12.2, 1.95), (12.2, 1.15))
    axes.annotate(
        "", (10.2, 2.9), (4.1, 2.5), arrowprops={"arrowstyle": "->", "color": GRAY, "connectionstyle": "arc3,rad=-0.16"}
    )
    return figure


def draw_losses() -> Figure:
    """The losses' terms, against a single number each."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    m = torch.linspace(0, 4, 200)
    left.plot(m, m.square(), color=GRAY, label="square (Eq. 1)")
    left.plot(m, pseudo_huber(m[:, None]), color=BLUE, label="pseudo-Huber (Eq. 6)")
    left.set(xlabel="mean absolute difference over the channels", ylim=(0, 6), title="how a difference counts")
    x = torch.linspace(1e-3, 4, 400)
    right.plot(x, x, color=BLUE, label="pull: normal")
    right.plot(x, push_term(x), color=RED, label="push: anomalous, before alpha")
    right.set(xlabel="mean of phi (Eq. 7), or q (Eq. 9)", ylim=(0, 4), title="what the losses ask for")
    left.legend(frameon=False)
    right.legend(frameon=False, loc="upper center")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def embed(embedding: Embedding, paths: list[Path], size: tuple[int, int]) -> Tensor:
    """Feature tokens of image files, (n, N, C)."""
    return torch.cat([embedding(torch.from_numpy(resize(read_image(path), size))[None]) for path in paths])


def marked(sample: Sample, grid: tuple[int, int]) -> Tensor:
    """Which positions of the grid the mask touches, (N,)."""
    image = read_image(sample.path)
    assert sample.mask is not None
    return mask_on_grid(read_mask(sample.mask, (image.height, image.width)), grid).bool()


class Attention(nn.Module):
    """Eq. 5: one attention layer with learned queries."""

    def __init__(self, tokens: int, channels: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(tokens, channels) * 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, C) to (B, K, C)."""
        return (self.query @ x.transpose(1, 2) / x.shape[-1] ** 0.5).softmax(dim=-1) @ x


def measure_shortcut(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Train the layers of Eq. 4 and Eq. 5 on good images, and see what share of other features they reproduce."""
    config: EmbeddingConfig = load_preset("quick").embedding
    embedding = Embedding(config)
    dataset = open_dataset(folder)
    bad = [sample for sample in dataset.test if sample.mask is not None]
    train = embed(embedding, [sample.path for sample in dataset.train], config.image_size)
    mean, std = train.mean(dim=(0, 1)), train.std(dim=(0, 1))
    train = (train - mean) / std
    good, anomalous = (
        (embed(embedding, [sample.path for sample in part], config.image_size) - mean) / std
        for part in ([sample for sample in dataset.test if not sample.is_anomalous][:32], bad)
    )
    inside = torch.stack([marked(sample, config.grid_size) for sample in bad])
    shuffled = torch.stack([image[torch.randperm(len(image))] for image in good])
    results: dict[str, list[dict[str, float]]] = {}
    for name, layer in (
        ("Eq. 4: a linear layer", nn.Linear(train.shape[2], train.shape[2])),
        ("Eq. 5: attention with learned queries", Attention(train.shape[1], train.shape[2])),
    ):
        optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
        points = results.setdefault(name, [])
        for step in range(STEPS + 1):
            if step in {0, 1, 2, 4, 8, 15, 25, 40, 60, 90, 140, 200, 300, 420, STEPS}:
                with torch.no_grad():
                    zero = torch.zeros(train.shape[2])
                    point = {
                        "step": step,
                        "normal": reproduced(good.flatten(0, 1), (good - layer(good)).flatten(0, 1), zero),
                        "anomalous": reproduced(anomalous[inside], (anomalous - layer(anomalous))[inside], zero),
                        "shuffled": reproduced(
                            shuffled.flatten(0, 1), (shuffled - layer(shuffled)).flatten(0, 1), zero
                        ),
                    }
                points.append(point)
            batch = train[torch.randint(len(train), (8,))]
            loss = (batch - layer(batch)).square().sum(dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return results


def draw_shortcut(results: dict[str, list[dict[str, float]]]) -> Figure:
    """What share of the features' variation each layer reproduces while it trains."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for axes, (name, points) in zip(panels, results.items(), strict=True):
        for key, color, style in (("normal", BLUE, "-"), ("anomalous", RED, "--"), ("shuffled", GRAY, ":")):
            axes.plot([p["step"] + 1 for p in points], [p[key] for p in points], style, color=color, label=key)
        axes.set(title=name, xscale="log", xlabel="training step", ylim=(-1, 1.05))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("share reproduced")
    panels[-1].legend(frameon=False)
    return figure


def draw_decision(detector: AnomalyDetector, data: Path, kind: str) -> Figure:
    """From an image to a verdict, and the scores that decide."""
    path = data / "test" / kind / "000.png"
    prediction = detector.predict(path)[0]
    good = detector.predict(sorted((data / "test" / "good").iterdir()))
    bad = detector.predict(sorted((data / "test" / kind).iterdir()))
    low, high = shown_range(prediction.thresholds.pixel)
    image = read_image(path)
    figure = Figure(figsize=(11, 2.7), layout="constrained")
    first, second, third, fourth = figure.subplots(1, 4, width_ratios=[1, 1, 1, 1.7])
    first.imshow(image)
    first.set_title("image")
    second.imshow(prediction.score_map, cmap="inferno", vmin=0, vmax=high)
    second.set_title("s(u) on the token grid")
    threshold = prediction.thresholds.pixel
    third.imshow(overlay(image, prediction.anomaly_map, low=low, high=high, threshold=threshold))
    third.set_title(f"score {prediction.score:.1f}, p = {prediction.p_value:.2f}")
    for axes in (first, second, third):
        axes.set(xticks=[], yticks=[])
    held_out = detector.calibration_.image_scores
    for place, (scores, color, label) in enumerate(
        (([p.score for p in bad], RED, kind), ([p.score for p in good], BLUE, "new good"), (held_out, GRAY, "held out"))
    ):
        fourth.plot(scores, np.full(len(scores), place), "|", color=color, markersize=16)
        fourth.text(0.01, place + 0.3, label, color=color, transform=fourth.get_yaxis_transform(), fontsize=9)
    fourth.axvline(prediction.thresholds.image, color="black", linewidth=1)
    fourth.set(yticks=[], ylim=(-0.6, 2.7), xlabel="score", title="the line is the threshold")
    fourth.spines[["top", "right", "left"]].set_visible(False)
    return figure


def main() -> None:
    options = parser(__doc__).parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    mpl.rcParams["svg.hashsalt"] = "adtr"
    torch.manual_seed(0)

    def save(figure: Figure, name: str) -> None:
        made = {"metadata": {"Date": None}} if name.endswith("svg") else {"pil_kwargs": {"quality": 88}}
        figure.savefig(options.output / name, dpi=110, facecolor="white", **made)

    save(draw_network(), "network.svg")
    save(draw_losses(), "losses.svg")
    results = measure_shortcut(dataset_folder(options.data, "transistor"))
    (options.output / "shortcut.json").write_text(json.dumps(results, indent=2) + "\n")
    save(draw_shortcut(results), "shortcut.svg")
    with TemporaryDirectory() as name:
        data = Path(name) / "data"
        build_demo_dataset(data, train=120, validation=24, test_good=24, test_per_type=9, size=128)
        detector = AnomalyDetector(image_size=128, grid_size=16, max_steps=300).fit(data)
        save(draw_decision(detector, data, "crack"), "decision.jpg")


if __name__ == "__main__":
    main()

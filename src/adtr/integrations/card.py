"""The model card: the page that a repository of models shows, written from what the model knows of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adtr.calibration import Thresholds
from adtr.config import Config
from adtr.report.html import printable

if TYPE_CHECKING:
    from adtr.metrics import Metrics

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro": "AUPRO (0.3)",
}


def model_card(
    config: Config,
    metadata: dict[str, Any],
    thresholds: Thresholds,
    *,
    backbone: str,
    name: str,
    metrics: Metrics | None = None,
) -> str:
    """A card in Markdown with a YAML header, as the Hugging Face hub reads it.

    Args:
        config: of the model.
        metadata: of the model; paths in it are not shown.
        thresholds: by which it decides.
        backbone: the source of the backbone's weights.
        name: of the repository, or what else to put into the example.
        metrics: what `evaluate` gave, if it was called.
    """
    learned = _code(metadata["data"]["folder"] or "images from memory")
    sections = {
        "Use": _use(name),
        "What it learned from": _learned_from(metadata, learned),
        "Decisions": _decisions(thresholds),
        "Evaluation": _evaluation(metrics),
        "Limits": LIMITS,
        "How it was made": _making(config, metadata, backbone),
    }
    lead = f"An anomaly detector for images of one kind, trained on good images of {learned} alone."
    text = "\n".join(f"## {title}\n\n{body}\n" for title, body in sections.items())
    return f"---\n{_header(metadata, name, metrics)}---\n\n# {_plain(name)}\n\n{lead}\n\n{text}"


LIMITS = """\
- It knows one product before one camera. Images of anything else, or taken in another light, look anomalous to it.
- The promise on false alarms holds for images like the held-out ones; `adtr monitor` notices when they are no
  longer alike.
- It says that and where an image differs from good ones, not what the difference is called or whether it matters.
- An anomaly without a trace in the backbone's features at the model's image size cannot be seen."""


def _header(metadata: dict[str, Any], name: str, metrics: Metrics | None) -> str:
    import yaml

    header: dict[str, Any] = {
        "library_name": "adtr",
        "tags": ["adtr", "anomaly-detection", "anomaly-segmentation", "visual-inspection"],
    }
    if metrics is not None:
        folder = _plain(metadata["data"]["folder"] or "own images")
        results = [
            {"type": key, "name": title, "value": round(value, 4)}
            for key, title in METRICS.items()
            if (value := getattr(metrics, key)) is not None
        ]
        header["model-index"] = [
            {
                "name": _plain(name),
                "results": [
                    {
                        "task": {"type": "anomaly-detection", "name": "Anomaly detection"},
                        "dataset": {"type": "images", "name": folder},
                        "metrics": results,
                    }
                ],
            }
        ]
    text: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return text


def _use(name: str) -> str:
    return f'''\
```python
from adtr import AnomalyDetector

detector = AnomalyDetector.from_pretrained("{_plain(name)}")
prediction = detector.predict("image.png")[0]
print(prediction.score, prediction.verdict)
detector.save("model")  # for `adtr predict model image.png`, `adtr serve`, `adtr export`
```

`pip install 'adtr[hub]'` brings what this needs. The files are safetensors and JSON; nothing in them is run.'''


def _learned_from(metadata: dict[str, Any], learned: str) -> str:
    data, training = metadata["data"], metadata["training"]
    skipped = f", {data['skipped']} unreadable ones skipped" if data["skipped"] else ""
    lines = [f"{training['images']} good images of {learned}{skipped}"]
    for past in metadata.get("improvements", []):
        kinds = ", ".join(f"{count} {_plain(kind)}" for kind, count in past["learned"].items())
        lines.append(f"anomalies ({', '.join(past['sources'])})" + (f": {kinds}" if kinds else ""))
    return "\n".join(f"- {line}" for line in lines)


def _decisions(thresholds: Thresholds) -> str:
    return (
        f"An image is anomalous where its score exceeds the {thresholds.describe()}. "
        f"Pixels are marked above {thresholds.pixel:.4g}. "
        "No test image had a part in this; `detector.set_rates(...)` chooses another rate without training."
    )


def _evaluation(metrics: Metrics | None) -> str:
    if metrics is None:
        return "Not evaluated on labelled images."
    rows = [
        f"| {title} | {value:.4f} |" for key, title in METRICS.items() if (value := getattr(metrics, key)) is not None
    ]
    return (
        f"On {metrics.images} test images that it did not learn from, {metrics.anomalous} of them anomalous:\n\n"
        + "\n".join(["| metric | value |", "|---|---|", *rows])
    )


def _making(config: Config, metadata: dict[str, Any], backbone: str) -> str:
    training, embedding = metadata["training"], config.embedding
    facts = {
        "preset": config.preset,
        "backbone": f"{embedding.backbone}, frozen; weights: {backbone}",
        "images": f"{_size(embedding.image_size)} px, {_size(embedding.grid_size)} tokens",
        "training": f"{training['steps']} steps in {training['total_seconds']:.0f} s on {training['device']} in "
        f"{training['precision']}, seed {config.training.seed}",
        "written by": f"adtr {metadata['adtr']}, {metadata['created']}",
    }
    return "\n".join(f"- {title}: {_plain(value)}" for title, value in facts.items())


def _size(size: tuple[int, int]) -> str:
    return "x".join(map(str, size))


def _plain(text: str) -> str:
    """Text that cannot end a line, a string or a table."""
    return printable(str(text)).translate(str.maketrans("", "", '`|"\\<>'))


def _code(text: str) -> str:
    return f"`{_plain(text)}`"

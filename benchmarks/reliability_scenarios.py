"""The commands that `reliability.py` kills: what each is given, and what must be true after a kill and in the end."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 32
NETWORK = {
    "target": "pixels",
    "image_size": SIDE,
    "grid_size": 4,
    "width": 16,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "feedforward": 32,
    "batch_size": 4,
    "max_steps": 5,
    "precision": "fp32",
}
LESSON = {"improve_max_steps": 4, "improve_epochs": 4}
FIT = {**NETWORK, "holdout_min": 4}
IMAGES = 16
IMPORTS = ("lightning_fabric", "sklearn.metrics", "adtr.cli.fit", "adtr.learning.fit", "adtr.training.loop")


def flags(values: dict[str, object]) -> list[str]:
    """As the command line takes them."""
    return [text for name, value in values.items() for text in (f"--{name.replace('_', '-')}", str(value))]


class Scenario:
    """A command, and what is expected of it."""

    name: str
    imports: tuple[str, ...] = ()

    def furnish(self, materials: Path, place: Path, *, older: bool) -> None:  # noqa: ARG002 - some have none
        """Put what the command reads into `place`; with `older`, an earlier output too."""
        (place / "materials").symlink_to(materials)

    def arguments(self, place: Path) -> list[str]:
        """Of the command line."""
        raise NotImplementedError

    def patch(self) -> None:
        """Leave out, in the child, what only takes time."""

    def has_done(self, place: Path) -> bool:  # noqa: ARG002 - only some commands go on until they are stopped
        """Whether a command that does not end has done its work."""
        return False

    def check_whole(self, place: Path) -> None:
        """What is there can be read, and nothing of it is there twice."""
        raise NotImplementedError

    def check_killed(self, place: Path, expected: Path, *, older: bool) -> None:
        """What a killed command left is the old output or the new, or none."""
        raise NotImplementedError

    def check_complete(self, place: Path, expected: Path) -> None:
        """What the last run left is what an uninterrupted run leaves: no file more or less."""
        assert names(place / "out") == names(expected / "out"), f"files differ: {names(place / 'out')}"


class Fit(Scenario):
    """`adtr fit`."""

    name = "fit"

    def furnish(self, materials: Path, place: Path, *, older: bool) -> None:
        super().furnish(materials, place, older=older)
        if older:
            shutil.copytree(materials / "older", place / "out/model")

    def arguments(self, place: Path) -> list[str]:
        data = str((place / "materials/data").resolve())
        return ["fit", data, "-o", str(place / "out/model"), "--resume", "--quiet", "--keep-features", *flags(FIT)]

    def check_whole(self, place: Path) -> None:
        if (place / "out/model").exists():
            model_facts(place / "out/model")

    def check_killed(self, place: Path, expected: Path, *, older: bool) -> None:
        model = place / "out/model"
        if older or model.exists():
            wholes = [model_facts(expected / "out/model"), model_facts(place / "materials/older")]
            assert model_facts(model) in wholes, "the model is neither the old one nor the new"

    def check_complete(self, place: Path, expected: Path) -> None:
        super().check_complete(place, expected)
        assert model_facts(place / "out/model") == model_facts(expected / "out/model"), "another model"


class Improve(Fit):
    """`adtr improve`."""

    name = "improve"
    imports = ("adtr.cli.improve", "adtr.learning.improve")

    def arguments(self, place: Path) -> list[str]:
        base = str((place / "materials/base").resolve())
        lesson = ["--synthetic", "confetti", *flags(LESSON)]
        return ["improve", base, "-o", str(place / "out/model"), "--resume", "--quiet", *lesson]


class Export(Scenario):
    """`adtr export`, the graph's trace aside, which takes seconds and writes nothing."""

    name = "export"
    imports = ("onnxruntime", "adtr.cli.export", "adtr.deploy.export")

    def furnish(self, materials: Path, place: Path, *, older: bool) -> None:
        super().furnish(materials, place, older=older)
        if older:
            shutil.copy(materials / "older.onnx", place / "out/model.onnx")

    def arguments(self, place: Path) -> list[str]:
        base = str((place / "materials/base").resolve())
        return ["export", base, "-o", str(place / "out/model.onnx"), "--quiet"]

    def patch(self) -> None:
        from adtr.deploy import formats

        formats.to_onnx = lambda graph: copy.deepcopy(traced)  # noqa: ARG005

    def check_whole(self, place: Path) -> None:
        if (place / "out/model.onnx").exists():
            export_facts(place / "out/model.onnx")

    def check_killed(self, place: Path, expected: Path, *, older: bool) -> None:
        file = place / "out/model.onnx"
        if older or file.exists():
            assert export_facts(file) == export_facts(expected / "out/model.onnx"), "another file"

    def check_complete(self, place: Path, expected: Path) -> None:
        super().check_complete(place, expected)
        self.check_killed(place, expected, older=True)


class Experiment(Scenario):
    """`adtr experiment`: a category, two seeds, ADTR and ADTR+."""

    name = "experiment"
    imports = (
        "matplotlib.backends.backend_agg",
        "matplotlib.backends.backend_pdf",
        "adtr.cli.experiment",
        "adtr.experiments.report",
        "adtr.experiments.runs",
        "adtr.learning.improve",
    )

    def arguments(self, place: Path) -> list[str]:
        data = str((place / "materials/data").resolve())
        given = ["--data", data, "-o", str(place / "out"), "--preset", "quick", "--seeds", "0,1", "--jobs", "1", "-q"]
        return ["experiment", "mvtec", *given, *flags({**NETWORK, **LESSON})]

    def check_whole(self, place: Path) -> None:
        runs = Counter((run["category"], run["seed"], run["row"]) for run in result_facts(place / "out"))
        assert max(runs.values(), default=1) == 1, "a result twice"

    def patch(self) -> None:
        from adtr.experiments import plots

        plots.RESOLUTION = 20

    def check_killed(self, place: Path, expected: Path, *, older: bool) -> None:  # noqa: ARG002 - there is none
        self.check_whole(place)
        known = result_facts(expected / "out")
        assert all(result in known for result in result_facts(place / "out")), (
            "a result that an uninterrupted run has not"
        )

    def check_complete(self, place: Path, expected: Path) -> None:
        super().check_complete(place, expected)
        self.check_killed(place, expected, older=False)
        assert len(result_facts(place / "out")) == len(result_facts(expected / "out")), "a result is lost"


class Watch(Scenario):
    """`adtr watch` with copies."""

    name = "watch"
    imports = ("adtr.cli.watch", "adtr.serve.models")

    def arguments(self, place: Path) -> list[str]:
        inbox, base = str((place / "materials/inbox").resolve()), str((place / "materials/base").resolve())
        return ["watch", inbox, "-m", base, "-o", str(place / "out"), "--sort", "copy", "--interval", "0.05"]

    def check_whole(self, place: Path) -> None:
        images = Counter(row["path"] for row in row_facts(place / "out"))
        assert max(images.values(), default=1) == 1, "an image twice"

    def has_done(self, place: Path) -> bool:
        log = place / "log.txt"
        if not log.exists() or "watching" not in log.read_text():  # it does not listen yet
            return False
        return len(whole_lines(place / "out/results.jsonl")) >= len(list((place / "materials/inbox").iterdir()))

    def check_killed(self, place: Path, expected: Path, *, older: bool) -> None:  # noqa: ARG002 - there is none
        self.check_whole(place)
        known = row_facts(expected / "out")
        assert all(row in known for row in row_facts(place / "out")), "a row that an uninterrupted watch has not"

    def check_complete(self, place: Path, expected: Path) -> None:
        super().check_complete(place, expected)
        assert sorted(map(str, row_facts(place / "out"))) == sorted(map(str, row_facts(expected / "out"))), "other rows"
        for copied in (place / "out").rglob("*.png"):
            assert copied.read_bytes() == (place / "materials/inbox" / copied.name).read_bytes(), f"{copied} is cut"


SCENARIOS: dict[str, Scenario] = {made.name: made for made in (Fit(), Improve(), Export(), Experiment(), Watch())}
traced: object = None
"""The small model's ONNX graph, where `export` is to be killed."""


def prepare(folder: Path, commands: Sequence[str], in_child: Callable[[Callable[[], None]], None]) -> Path:
    """Images, an inbox, models to start from and to be replaced; all small enough for a command to take a second."""
    from adtr import AnomalyDetector
    from adtr.model.backbones import import_timm

    import_timm()
    for name in (*IMPORTS, *(name for command in commands for name in SCENARIOS[command].imports)):
        import_module(name)  # so that not every child must

    rng = np.random.default_rng(0)
    for name, count, is_dark in (
        ("data/train/good", IMAGES, False),
        ("data/test/good", 4, False),
        ("data/test/dark", 4, True),
        ("inbox", 8, False),
    ):
        (folder / name).mkdir(parents=True)
        for i in range(count):
            image = rng.normal(120, 10, (SIDE, SIDE, 3)) + 60 * np.sin(np.arange(SIDE) / 3)[:, None]
            if is_dark or (name == "inbox" and i % 4 == 0):
                image[8:16, 8:16] = 0
            Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(folder / name / f"{i}.png")

    def fit() -> None:
        for seed, name in ((0, "base"), (9, "older")):
            AnomalyDetector(**{**FIT, "seed": seed}).fit(folder / "data").save(folder / name)

    in_child(fit)
    if "export" in commands:
        import onnx

        from adtr.deploy import formats
        from adtr.deploy.export import export
        from adtr.deploy.graph import DetectorGraph

        def trace() -> None:
            base = AnomalyDetector.load(folder / "base", device="cpu")
            made = formats.to_onnx(DetectorGraph(base.network_).eval())
            onnx.save(made, folder / "traced.onnx")
            formats.to_onnx = lambda graph: copy.deepcopy(made)  # noqa: ARG005
            export(base, folder / "older.onnx")

        in_child(trace)
        globals()["traced"] = onnx.load(folder / "traced.onnx")
    return folder


def names(folder: Path) -> list[str]:
    """Every file and folder below."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def model_facts(folder: Path) -> dict[str, object]:
    """What two equal models have in common: the bits of the weights and features, the thresholds, the losses."""
    from adtr.files import file_sha256
    from adtr.store import FEATURES, WEIGHTS, read_metadata

    _, calibration, metadata = read_metadata(folder)
    features = folder / FEATURES
    losses = [past["losses"] for past in metadata.get("improvements", [])]
    return {
        "weights": file_sha256(folder / WEIGHTS),
        "features": file_sha256(features) if features.exists() else None,
        "calibration": calibration,
        "data": metadata["data"],
        "losses": [metadata["training"]["losses"], *losses],
        "names": names(folder),
    }


def export_facts(file: Path) -> tuple[object, ...]:
    """What two equal exports have in common: the graph, its weights and the thresholds."""
    import onnx

    from adtr.deploy.sealed import read_sealed

    sealed = read_sealed(file)
    model = onnx.load_from_string(sealed.graph)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest(), sealed.calibration


def whole_lines(file: Path) -> list[bytes]:
    """The lines that end."""
    return (
        [line for line in file.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if file.exists() else []
    )


def result_facts(output: Path) -> list[dict[str, object]]:
    """What two equal experiments have in common."""
    records = [json.loads(line) for line in whole_lines(output / "results.jsonl")]
    return [{key: r[key] for key in ("category", "seed", "row", "metrics", "losses")} for r in records]


def row_facts(output: Path) -> list[dict[str, object]]:
    """What two equal watches have in common."""
    rows = [json.loads(line) for line in whole_lines(output / "results.jsonl")]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]

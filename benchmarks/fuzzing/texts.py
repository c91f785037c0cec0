"""Damaged texts: annotations, configurations, rows, states, results."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from random import Random
from typing import Any

from fuzzing.images import SIZE, seeds
from fuzzing.mutate import NASTY, damage, damage_tree, damaged_json, to_text
from fuzzing.target import Files, Target

HEIGHT, WIDTH = SIZE


class Coco(Target):
    """`parse_coco`, and drawing what it found."""

    name = "coco"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged file of polygons, boxes and run lengths."""
        image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
        shapes: list[dict[str, Any]] = [
            {"segmentation": [[1, 1, 30, 2, 20, 40]], "bbox": [1, 1, 29, 39], "area": 500, "iscrowd": 0},
            {"bbox": [3, 4, 10, 12]},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": [100, 50, HEIGHT * WIDTH - 150]}},
            {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "T3b1Zk2"}},
        ]
        annotations = [{"id": i, "image_id": 1, "category_id": 7, **shape} for i, shape in enumerate(shapes)]
        tree = {"images": [image], "annotations": annotations, "categories": [{"id": 7, "name": "scratch"}]}
        return {"coco.json": damaged_json(rng, tree)}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read it and draw."""
        from adtr.data.annotations import parse_coco, read_json

        path = case / "coco.json"
        for annotation in parse_coco(read_json(path), path).values():
            if annotation is not None and annotation.shapes is not None:
                annotation.shapes.draw(SIZE)


class LabelMe(Target):
    """`parse_labelme`, and drawing what it found."""

    name = "labelme"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged file of all shapes."""
        mask = next(data for data in seeds() if data.startswith(b"\x89PNG"))
        if rng.random() < 0.2:
            mask = damage(rng, mask)
        kinds = {"polygon": [[1, 1], [9, 2], [5, 9]], "rectangle": [[2, 2], [9, 9]], "circle": [[9, 9], [12, 9]]}
        kinds |= {"line": [[0, 0], [9, 9]], "linestrip": [[0, 0], [9, 9], [20, 1]], "point": [[4, 4]]}
        shapes: list[dict[str, Any]] = [{"label": k, "shape_type": k, "points": points} for k, points in kinds.items()]
        png = base64.b64encode(mask).decode()
        shapes.append({"label": "m", "shape_type": "mask", "points": [[0, 0], [WIDTH - 1, HEIGHT - 1]], "mask": png})
        tree = {"version": "5", "shapes": shapes, "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
        return {"a.json": damaged_json(rng, tree)}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read it and draw."""
        from adtr.data.annotations import parse_labelme, read_json

        path = case / "a.json"
        annotation = parse_labelme(read_json(path), path)
        if annotation is not None and annotation.shapes is not None:
            annotation.shapes.draw(SIZE)


def alias_bomb(rng: Random) -> bytes:
    """YAML whose few lines mean billions of values."""
    depth, key = (
        rng.choice((8, 12, 30)),
        rng.choice(("epochs", "levels", "preset", "training", "<<", "a0", "learning_rate")),
    )
    if rng.random() < 0.5:
        lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"]
        lines += [f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth)]
    else:
        lines = ["a0: &a0 {x: 1}"]
        lines += [f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 10)}], y{i}: 1}}" for i in range(1, depth)]
    last = f"*a{depth - 1}"
    nested = f"{key}: {last}" if rng.random() < 0.7 else f"b: [{last}]\n{key}: {{epochs: {last}}}"
    if rng.random() < 0.3:  # without names that are unknown
        nested = f"? [{', '.join(line.partition(': ')[2] for line in lines)}, {last}]\n: 1"
        return nested.encode()
    return "\n".join([*lines, nested]).encode()


class Configurations(Target):
    """`--config`: YAML and TOML."""

    name = "config"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged file, or a bomb."""
        from adtr.config import load_preset

        name = rng.choice(("c.yaml", "c.toml"))
        if name == "c.yaml" and rng.random() < 0.1:
            return {name: alias_bomb(rng)}
        flat = {key: list(v) if isinstance(v, tuple) else v for key, v in load_preset("quick").flat().items()}
        chosen = rng.choice(list(flat))
        strange = (
            *(
                "0x" + "f" * 20_000,
                "9" * 10_000,
                "1e400",
                "0o7" + "7" * 9_000,
                "-0b1",
                "nan",
                "-inf",
                "!!python/object:os.x 1",
            ),
            *(
                "2001-01-01",
                "1:60:60",
                "!!binary aGk=",
                "&a [*a]",
                "[" * 20_000,
                "{" * 5_000,
                '"' + "x" * 100_000 + '"',
                "~",
            ),
            *(
                "!!set {a}",
                "!!omap [a: 1]",
                "!!float x",
                "!!int x",
                "!!timestamp x",
                "? a",
                "|\n x",
                "'''\n",
                '"\\ud800"',
            ),
        )
        kind = rng.randrange(4)
        if kind == 0:
            separator = ": " if name == "c.yaml" else " = "
            return {name: f"{chosen}{separator}{rng.choice(strange)}\n".encode("utf-8", "surrogatepass")}
        if kind == 1 and name == "c.yaml":  # JSON is YAML
            return {name: damaged_json(rng, rng.choice((flat, {"training": {"epochs": 3}, "preset": "quick"})))}
        lines = [f"{k} = {json.dumps(v)}" if name == "c.toml" else f"{k}: {json.dumps(v)}" for k, v in flat.items()]
        if kind == 2:
            value = to_text(rng.choice(NASTY)).decode()
            lines[rng.randrange(len(lines))] = f"{chosen}{' = ' if name == 'c.toml' else ': '}{value}"
            return {name: "\n".join(lines).encode()}
        return {name: damage(rng, "\n".join(lines).encode())}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read it, as `fit` does before anything else."""
        from adtr.cli.options import resolve
        from adtr.config import load_preset

        preset, values = resolve(None, next(case.iterdir()), {})
        load_preset(preset).override(**values)


def rows(count: int) -> list[dict[str, Any]]:
    """As `adtr predict` writes them."""
    return [
        {"path": f"{i}.png", "score": 1 + i % 7 / 10, "verdict": "good", "brightness": 100 + i % 5, "sharpness": 0.1}
        for i in range(count)
    ]


class Rows(Target):
    """`adtr monitor` on rows: JSON lines and CSV."""

    name = "rows"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """Rows of which some are damaged."""
        made, name = rows(40), rng.choice(("rows.jsonl", "rows.csv"))
        if name == "rows.jsonl":
            lines = [json.dumps(row).encode() for row in made]
            lines[rng.randrange(40)] = damaged_json(rng, made[0]).replace(b"\n", b" ")
        else:
            lines = [",".join(map(str, row)).encode() for row in (made[0], *(row.values() for row in made))]
            values = [*list(made[0].values())[:-1], to_text(rng.choice(NASTY)).decode()]
            rng.shuffle(values)
            lines[rng.randrange(41)] = ",".join(map(str, values)).encode()
            lines += [] if rng.random() < 0.9 else [b'"' + b"x" * 200_000]
        data = b"\n".join(lines) + b"\n"
        return {name: data if rng.random() < 0.7 else damage(rng, data)}

    def run(self, case: Path, out: Path) -> None:
        """Watch them."""
        from adtr.cli import main

        report = out / "report.json"
        main(["monitor", str(next(case.iterdir())), "--reference", "10", "--output", str(report), "--quiet"])


class State(Target):
    """`adtr monitor --state` on the state of an earlier call."""

    name = "state"

    def make(self, rng: Random, folder: Path) -> Files:
        """A damaged state."""
        state = json.loads((folder / "state.json").read_text())
        return {"state.json": damaged_json(rng, state)}

    def open(self, folder: Path, out: Path) -> None:  # noqa: ARG002
        """Make a state that is whole."""
        if not (folder / "state.json").exists():
            from adtr.cli.monitor import Watch
            from adtr.monitoring import MonitorConfig

            watch = Watch(MonitorConfig(), 10, ("score", "brightness", "sharpness"))
            for row in rows(15):
                watch.update({name: row[name] for name in watch.fields})
            watch.save(folder / "state.json")

    def run(self, case: Path, out: Path) -> None:
        """Go on from it."""
        from adtr.cli import main

        scores, state = out / "rows.jsonl", out / "state.json"
        scores.write_text("".join(json.dumps(row) + "\n" for row in rows(20)))
        state.write_bytes((case / "state.json").read_bytes())
        main(["monitor", str(scores), "--reference", "10", "--state", str(state), "--quiet"])


class Results(Target):
    """`results.jsonl`: the memory of `adtr watch`, and that of `adtr experiment`."""

    name = "results"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """Damaged lines."""
        made: list[dict[str, Any]] = [
            {"path": f"{i}.png", "size": 9, "mtime_ns": i, "verdict": "good"} for i in range(5)
        ]
        if rng.random() < 0.5:
            run = {"experiment": "table-1", "category": "a", "seed": 0, "row": "x", "config": {"epochs": 1}}
            made = [{**run, "seed": i} for i in range(5)]
        lines = [to_text(row) for row in made]
        lines[rng.randrange(5)] = to_text(damage_tree(rng, made[0]))
        data = b"\n".join(lines) + b"\n"
        return {"results.jsonl": data if rng.random() < 0.6 else damage(rng, data)}

    def run(self, case: Path, out: Path) -> None:
        """Go on from them."""
        from adtr.experiments.records import Records
        from adtr.watching import FolderWatch

        folder = out / "results"
        folder.mkdir(exist_ok=True)
        data = (case / "results.jsonl").read_bytes()
        (folder / "results.jsonl").write_bytes(data)
        (out / "in").mkdir(exist_ok=True)
        if b"experiment" in data:
            Records(folder, "table-1")
        else:
            FolderWatch(out / "in", folder)

"""Damaged model folders, backbone weights and checkpoints."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from adtr.store import SEAL, seal
from fuzzing.images import seeds
from fuzzing.mutate import NASTY, damage, damage_tree, damaged_json, to_text
from fuzzing.target import Files, Special, Target

SPECIALS = (
    *(
        Special("link", to)
        for to in ("/etc/passwd", "/dev/zero", "/dev/stdin", "/nowhere", "metadata.json", "..", "/proc/self/mem")
    ),
    *(Special("pipe"), Special("folder")),
)


def parts(data: bytes) -> tuple[Any, bytes]:
    """Header and tensors of a safetensors file."""
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def damaged_tensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file: as bytes, its header as a tree, or its numbers."""
    header, numbers = parts(data)
    kind = rng.randrange(5)
    if kind == 0:
        return damage(rng, data)
    if kind == 1:
        header = damage_tree(rng, header)
    elif kind == 2:
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        size = rng.choice((2**31, 2**62, 10**6, 0, 1))
        entry["shape"] = rng.choice(([size], [size, size], [*entry["shape"], 0], [size] * 60, entry["shape"][::-1]))
    elif kind == 3:
        at = 4 * rng.randrange(len(numbers) // 4 - 4)
        bad = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))) * 4
        numbers = numbers[:at] + bad + numbers[at + 16 :]
    else:
        entry = header[rng.choice([name for name in header if name != "__metadata__"])]
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3", "C64", "X", ""))
    text = to_text(header)
    return struct.pack("<Q", rng.choice((len(text),) * 9 + (2**63,))) + text + numbers


def sealed(metadata: Any) -> bytes:  # noqa: ANN401
    """The text of a model's metadata, with the hash that covers them set right."""
    return to_text({**metadata, SEAL: seal(metadata)} if isinstance(metadata, dict) else metadata)


class Models(Target):
    """A model folder: `adtr info`, and loading and predicting."""

    name = "model"
    needs = ("model",)

    def make(self, rng: Random, folder: Path) -> Files:
        """A folder of which one file is damaged; its hash is set right in most cases."""
        whole: dict[str, bytes] = {path.name: path.read_bytes() for path in (folder / "model").iterdir()}
        files: Files = dict(whole)
        metadata, kind = json.loads(whole["metadata.json"]), rng.randrange(8)
        if kind <= 1:
            files["metadata.json"] = damaged_json(rng, metadata) if kind else sealed(damage_tree(rng, metadata))
            return files
        if kind == 2:
            files[rng.choice(sorted(files))] = rng.choice(SPECIALS)
            return files
        if kind == 3:
            name = rng.choice(
                ("../x", "/etc/passwd", "../model.safetensors", "", ".", "metadata.json", "a\0b", "x" * 5000)
            )
            metadata["files"][name] = rng.choice(("0" * 64, *metadata["files"].values(), None, [], 1))
        elif kind <= 5:
            tree = json.loads(whole["config.json"])
            if rng.random() < 0.5:
                section = rng.choice([value for value in tree.values() if isinstance(value, dict)])
                section[rng.choice(list(section))] = rng.choice(
                    (*NASTY, 8192, 65536, 512, 64, "all", "last", "1,2", "9")
                )
            else:
                tree = damage_tree(rng, tree)
            files["config.json"] = to_text(tree)
        elif kind == 6:
            files["model.safetensors"] = damaged_tensors(rng, whole["model.safetensors"])
        else:
            metadata = damage_tree(rng, metadata)
            files["features.safetensors"] = rng.choice((b"", whole["model.safetensors"], b"\xff" * 64))
            if isinstance(metadata, dict):
                metadata["features"] = rng.choice((None, [1, 2, 3], [2**40, 9, 9], "x", rng.choice(NASTY)))
        if isinstance(metadata, dict) and isinstance(metadata.get("files"), dict):
            for name in ("config.json", "model.safetensors"):
                if name in metadata["files"] and rng.random() < 0.95:
                    metadata["files"][name] = hashlib.sha256(files[name]).hexdigest()  # type: ignore[arg-type]
        files["metadata.json"] = sealed(metadata)
        return files

    def run(self, case: Path, out: Path) -> None:
        """Show it; load it and predict."""
        from adtr.detector import AnomalyDetector

        image = out / "image.png"
        image.write_bytes(seeds()[1])
        detector = AnomalyDetector.load(case, device="cpu")
        detector.predict([image])[0].to_dict()
        detector.save(out / "saved")


class Info(Models):
    """`adtr info`, as a command."""

    name = "info"

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Show it."""
        from adtr.cli import main

        main(["info", str(case)])


class Weights(Target):
    """`--backbone-weights`: safetensors and state dicts."""

    name = "weights"

    def __init__(self) -> None:
        self._seeds: dict[str, bytes] = {}

    def open(self, folder: Path, out: Path) -> None:  # noqa: ARG002
        """Make small whole files."""
        import io
        import pickle

        import torch
        from safetensors.torch import save

        state = {f"layer{i}.weight": torch.ones(8, 8) * i for i in range(5)}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        old = io.BytesIO()
        torch.save(state, old, _use_new_zipfile_serialization=False)
        self._seeds = {"w.safetensors": save(state), "w.pth": buffer.getvalue(), "old.pth": old.getvalue()}
        self._seeds["p.pth"] = pickle.dumps({"a": print})

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged file."""
        name = rng.choice(list(self._seeds))
        if name == "w.safetensors":
            return {name: damaged_tensors(rng, self._seeds[name])}
        return {name: damage(rng, self._seeds[name])}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read it."""
        from adtr.model.backbones import read_state_dict

        read_state_dict(next(case.iterdir()))


class Checkpoints(Target):
    """`fit --resume` from a damaged checkpoint."""

    name = "checkpoint"

    def __init__(self) -> None:
        self._seed = b""

    def open(self, folder: Path, out: Path) -> None:  # noqa: ARG002
        """Make a whole one."""
        from adtr.training.checkpoint import FILE, Checkpoint, save_checkpoint

        network, optimizers = self._training()
        state = Checkpoint(step=3, losses=[1.0, 0.5], epoch_loss=0.1, seconds=2.0)
        save_checkpoint(out, network, optimizers, state, "abc")
        self._seed = (out / FILE).read_bytes()

    @staticmethod
    def _training() -> tuple[Any, list[Any]]:
        import torch

        network = torch.nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(network.parameters())
        network(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        return network, [optimizer]

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged one."""
        header, numbers = parts(self._seed)
        if rng.random() < 0.5:
            record = header["__metadata__"]
            key = rng.choice(list(record))
            record[key] = damaged_json(rng, json.loads(record[key]) if key in ("state", "plain") else 1).decode(
                "latin-1"
            )
            text = json.dumps(header).encode()
            data = struct.pack("<Q", len(text)) + text + numbers
        else:
            data = damaged_tensors(rng, self._seed)
        return {"checkpoint.safetensors": _signed(data) if rng.random() < 0.9 else data}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Go on from it."""
        from adtr.training.checkpoint import load_checkpoint

        load_checkpoint(case, *self._training(), "abc")


def _signed(data: bytes) -> bytes:
    """A checkpoint with the right hash, where it can be read so far."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from adtr.training.checkpoint import _digest

    try:
        header, numbers = parts(data)
        header["__metadata__"]["sha256"] = _digest(header["__metadata__"], load(data))
        text = json.dumps(header).encode()
        load(struct.pack("<Q", len(text)) + text + numbers)
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, struct.error):
        return data
    return struct.pack("<Q", len(text)) + text + numbers

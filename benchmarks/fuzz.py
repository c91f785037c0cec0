"""Hostile inputs in thousands: each must be taken, or refused in one line, soon and in bounded memory.

Nothing may be written but where it was told to, no process started, no connection made.

Each input is made from its name (target, seed, number), so that it can be made again. Inputs that were neither taken
nor refused are kept under OUTPUT/fuzz/inputs.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import parser, table, write

SECONDS, MEBIBYTES = 20.0, 4096
GOOD = ("taken", "refused", "taken, noisy", "refused, noisy")


@dataclass
class Campaign:
    """What came of the inputs to one target."""

    target: str
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)
    noise: list[dict[str, Any]] = field(default_factory=list)
    """The first inputs at which a library wrote to stderr by itself."""
    slowest: float = 0.0
    """Seconds of an input."""
    mebibytes: float = 0.0
    """Largest resident set of a worker."""
    seconds: float = 0.0

    def add(self, record: dict[str, Any]) -> None:
        """Count what came of an input."""
        self.outcomes[record["outcome"]] += 1
        self.slowest = max(self.slowest, record["seconds"])
        self.mebibytes = max(self.mebibytes, record["mebibytes"])
        if record["outcome"] not in GOOD:
            self.failures.append(record)
        elif record["outcome"].endswith("noisy") and len(self.noise) < 5:
            self.noise.append(record)

    def row(self) -> dict[str, object]:
        """Of the table."""
        noisy = sum(count for name, count in self.outcomes.items() if name.endswith("noisy"))
        return {
            "target": self.target,
            "seed": self.seed,
            "inputs": self.outcomes.total(),
            "taken": self.outcomes["taken"] + self.outcomes["taken, noisy"],
            "refused": self.outcomes["refused"] + self.outcomes["refused, noisy"],
            "failures": len(self.failures),
            "noisy": noisy,
            "slowest, s": self.slowest,
            "most memory, MiB": self.mebibytes,
            "seconds": self.seconds,
        }


def campaign(
    target: str,
    count: int,
    *,
    seed: int,
    models: Path,
    folder: Path,
    seconds: float = SECONDS,
    mebibytes: int = MEBIBYTES,
    first: int = 0,
    minutes: float = math.inf,
) -> Campaign:
    """Give so many inputs to a target, in a process that is started anew where an input ends it.

    Args:
        target: its name.
        count: number of inputs.
        seed: of the inputs, together with their numbers.
        models: folder of whole models, see `make_models`.
        folder: receives the inputs that failed, and is worked in.
        seconds: limit of an input.
        mebibytes: limit of the memory that inputs may take, beyond what the process has when it begins.
        first: number of the first input.
        minutes: ends the campaign before its count is reached.
    """
    result, started, at, end = Campaign(target, seed), time.perf_counter(), first, first + count
    folder.mkdir(parents=True, exist_ok=True)
    while at < end:
        work = folder / f"work-{target}-{os.getpid()}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        job = {
            "target": target,
            "seed": seed,
            "first": at,
            "count": end - at,
            "models": str(models),
            "folder": str(work),
        }
        job |= {"seconds": seconds, "mebibytes": mebibytes}
        benchmarks = Path(__file__).parent
        path = os.pathsep.join(filter(None, [str(benchmarks), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        environment["TMPDIR"] = str(work / "may")
        command = [sys.executable, "-m", "fuzzing.worker", json.dumps(job)]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, env=environment
        ) as worker:
            begun = None
            assert worker.stdout is not None
            killer = threading.Timer(120, worker.kill)
            killer.start()
            for line in worker.stdout:
                killer.cancel()
                killer = threading.Timer(60 + seconds, worker.kill)  # what no signal interrupts
                killer.start()
                record = json.loads(line)
                begun = record.get("begin")
                if "end" in record:
                    result.add(record)
                    at = record["end"] + 1
                    if time.perf_counter() - started > 60 * minutes:
                        worker.kill()
                        begun, end = None, at
                        break
            killer.cancel()
        if worker.wait() and begun is None and at < end:
            sys.exit(f"the worker of {target} ended with {worker.returncode} before input {at}")
        if begun is not None:
            name = f"{target}-{seed}-{begun}"
            shutil.copytree(work / "case", folder / "inputs" / name, symlinks=True, dirs_exist_ok=True)
            told = (work / "told").read_text(errors="replace")[-1500:]
            detail = f"the process ended with {worker.returncode}: {told}"
            result.add({"name": name, "outcome": "died", "detail": detail, "seconds": 0.0, "mebibytes": 0.0})
            at = begun + 1
        shutil.rmtree(work, ignore_errors=True)
    result.seconds = time.perf_counter() - started
    return result


def make_models(folder: Path, needs: set[str]) -> None:
    """Whole models to damage: `model`, `model.onnx`, `model.xml`; what is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    if not needs or all((folder / name).exists() for name in needs):
        return
    import numpy as np

    from adtr.deploy.export import export
    from adtr.detector import AnomalyDetector

    rng = np.random.default_rng(0)
    images = [rng.integers(0, 60, (64, 64, 3), dtype=np.uint8) + np.uint8(100) for _ in range(16)]
    sizes = {"image_size": 64, "grid_size": 8, "width": 32, "heads": 4, "feedforward": 64}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "epochs": 2, "precision": "fp32"}
    detector = AnomalyDetector(**sizes, **layers).fit(images)
    detector.save(folder / "model")
    for name, kind in (("model.onnx", "onnx"), ("model.xml", "openvino")):
        if name in needs:
            export(detector, folder / name, format=kind)


def main() -> None:
    from fuzzing.targets import TARGETS

    made = parser(__doc__ or "")
    made.add_argument("--target", action="append", choices=[*TARGETS], help="several can be given; all without it")
    made.add_argument("--count", type=int, default=1000, help="inputs to each target")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--first", type=int, default=0, help="number of the first input")
    made.add_argument("--minutes", type=float, default=math.inf, help="for each target at most, however few inputs")
    made.add_argument("--seconds", type=float, default=SECONDS, help="limit of an input")
    made.add_argument("--mebibytes", type=int, default=MEBIBYTES, help="limit of the memory of an input")
    arguments = made.parse_args()
    names = arguments.target or list(TARGETS)
    folder = arguments.output / "fuzz"
    make_models(folder / "models", {need for name in names for need in TARGETS[name].needs})
    failed = False
    for name in names:
        result = campaign(
            name,
            arguments.count,
            seed=arguments.seed,
            models=folder / "models",
            folder=folder,
            seconds=arguments.seconds,
            mebibytes=arguments.mebibytes,
            first=arguments.first,
            minutes=arguments.minutes,
        )
        failed = failed or bool(result.failures)
        text = "".join(f"\n- {f['name']}: {f['outcome']}\n\n```\n{f['detail']}\n```\n" for f in result.failures[:20])
        found = {"row": result.row(), "failures": result.failures, "noise": result.noise}
        write(arguments.output, f"fuzz-{name}", found, table([result.row()]) + text)
    sys.exit(failed)


if __name__ == "__main__":
    main()

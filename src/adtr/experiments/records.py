"""`results.jsonl`: one line for each run that has ended, so that a run that was cut goes on with the others."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adtr.config import Config
from adtr.errors import AdtrError
from adtr.files import append_line, check_writable, open_lines, parse_json

FILE = "results.jsonl"
Record = dict[str, Any]


class Records:
    """The runs of one experiment with one configuration, in the order in which they ended.

    Args:
        folder: holds the file.
        experiment: its name.

    Raises:
        AdtrError: the file is of another experiment or unreadable, or the folder cannot be written.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        check_writable(folder)
        self.path, self.experiment = folder / FILE, experiment
        self.records: list[Record] = list(self._read())
        others = {record["experiment"] for record in self.records} - {experiment}
        if others:
            raise AdtrError(f"{self.path} holds results of {min(map(str, others))[:100]}; choose another --output")

    def _read(self) -> Iterator[Record]:
        for number, line in enumerate(open_lines(self.path), 1):
            try:
                record = parse_json(line)
                {record["experiment"], record["category"], record["seed"], record["row"]}, dict(record["config"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise AdtrError(f"line {number} of {self.path} is no result; remove it") from error
            yield record

    def check(self, row: str, config: Config) -> None:
        """Refuse to put runs of another configuration beside those at hand.

        Raises:
            AdtrError: they differ in more than the seed.
        """
        flat = plain_config(config)
        for record in self.records:
            if record["row"] == row:
                for name, value in flat.items():
                    if name != "seed" and record["config"].get(name) != value:
                        was = record["config"].get(name)
                        raise AdtrError(
                            f"{self.path} holds results of {row} with {name} {was}, not {value}; "
                            "choose another --output"
                        )

    def find(self, category: str, seed: int, row: str) -> Record | None:
        """The run, if it has ended."""
        key = (category, seed, row)
        return next((r for r in self.records if (r["category"], r["seed"], r["row"]) == key), None)


def append_record(path: Path, record: Record) -> None:
    """Add a run to the file, which several processes may do at a time."""
    append_line(path, json.dumps(_finite(record)))


def plain_config(config: Config) -> dict[str, Any]:
    """Every field as JSON has it."""
    flat: dict[str, Any] = json.loads(json.dumps({"preset": config.preset, **config.flat()}))
    return flat


def machine() -> dict[str, Any]:
    """What a run's seconds depend on, and the versions of what computed it."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("adtr", "torch", "timm", "numpy", "pillow")},
    }


def peak_memory() -> float | None:
    """Largest resident set of this process so far, MiB; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(largest / (1024 if sys.platform != "darwin" else 1 << 20))


def _finite(value: Any) -> Any:  # noqa: ANN401 - JSON has no NaN
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return value

"""A small part of `benchmarks/reliability.py`: commands that are killed or refused a write lose nothing.

How much memory the libraries need at least differs from machine to machine; those trials are left to the campaign.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[1] / "benchmarks/reliability.py"

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and looks into /proc"),
    pytest.mark.skipif(not CAMPAIGN.is_file(), reason="the benchmarks are not at hand"),
]


def campaign(output: Path, *arguments: object) -> dict[str, dict[str, int]]:
    """What happened to each command; a problem fails."""
    command = [sys.executable, CAMPAIGN, "--output", output, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-5000:]
    results = json.loads((output / "reliability.json").read_text())["results"]
    assert results["problems"] == []
    return {row["command"]: row for row in results["rows"]}


def test_fit_and_watch_lose_nothing(tmp_path: Path) -> None:
    few = ("--count", 2, "--points", 2, "--errors", 2, "--memory", 0)
    found = campaign(tmp_path, "--commands", "fit", "watch", "--seed", 1, *few)
    assert {name: (row["trials"], row["kills at writes"]) for name, row in found.items()} == {
        "fit": (5, 2),
        "watch": (5, 2),
    }
    assert sum(row["writes refused"] for row in found.values()) > 0


@pytest.mark.slow
def test_no_command_loses_anything(tmp_path: Path) -> None:
    found = campaign(tmp_path, "--count", 6, "--points", 5, "--errors", 4, "--memory", 0, "--seed", 2)
    assert set(found) == {"fit", "improve", "export", "experiment", "watch"}
    assert all(row["kills at writes"] == 5 for row in found.values())

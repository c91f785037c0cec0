"""What an experiment's `results.jsonl` may hold."""

from pathlib import Path

import pytest

from adtr.errors import AdtrError
from adtr.experiments.records import FILE, Records

GOOD = b'{"experiment": "table-1", "category": "a", "seed": 0, "row": "x", "config": {}}\n'


@pytest.mark.parametrize(
    "line", [b"\xff\xfe\n", b"[" * 100_000 + b"\n", GOOD.replace(b'"table-1"', b"[]"), b"5\n", b"{}\n"]
)
def test_what_is_no_result_is_one_line(line: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(line + GOOD)
    with pytest.raises(AdtrError) as caught:
        Records(tmp_path, "table-1")
    assert str(tmp_path / FILE) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_results_are_read(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(GOOD)
    assert len(Records(tmp_path, "table-1").records) == 1

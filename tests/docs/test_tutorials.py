"""The tutorials, done one after the other as a reader would; what they show is what is seen."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, Block, blocks

ORDER = ("first-inspection", "learning-from-defects", "from-model-to-line")
NUMBER = r"-?\d+(?:\.\d+)?(?:e-?\d+)?"


def pattern(shown: str) -> str:
    """An expression for what a page shows: numbers may be others, `...` is anything."""

    def expression(part: str) -> str:
        if re.fullmatch(NUMBER, part):
            return NUMBER
        return ".*" if part == "..." else r"\s+" if part.isspace() else re.escape(part)

    return "".join(map(expression, re.findall(rf"{NUMBER}|\.\.\.|\s+|.", shown.strip())))


@pytest.mark.parametrize(
    ("shown", "seen", "same"),
    [
        ("found 3 of 4 (2.5e-06)", "found 17  of 4 (0.1)\n", True),
        ('{"a": 1, ..., "z": 2}', '{"a": 5, "b": [], "z": 7}', True),
        ("found 3", "lost 3", False),
        ("one\ntwo", "one\nthree", False),
    ],
)
def test_what_is_seen_may_differ_in_its_numbers_alone(shown: str, seen: str, same: bool) -> None:
    assert bool(re.search(pattern(shown), seen, re.DOTALL)) == same


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl")
def test_the_tutorials_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {page.stem for page in (DOCS / "tutorials").iterdir()} == set(ORDER)
    for folder in ("bin", "work"):
        (tmp_path / folder).mkdir()
    script = tmp_path / "bin" / "adtr"
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m adtr "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path / "work")
    for name in ORDER:
        for place, block, seen in follow(DOCS / "tutorials" / f"{name}.md", tmp_path):
            assert re.search(pattern(block.text), seen, re.DOTALL), f"{place} shows something else than\n{seen}"


def follow(page: Path, outputs: Path) -> Iterator[tuple[str, Block, str]]:
    """Run a page's blocks; yields what it shows, each with the output of the block before. Ends what it started."""
    seen, names, groups = "", {}, []
    port = str(_free_port())
    try:
        for block in blocks(page):
            place = f"{page.name}:{block.line}"
            text = block.text.replace("8000", port)
            if block.language == "sh":
                output = outputs / f"{page.stem}-{block.line}.txt"  # a pipe would stay open with what goes on running
                with output.open("w") as file:
                    process = subprocess.Popen(["bash", "-ec", text], stdout=file, stderr=file, start_new_session=True)
                groups.append(process.pid)
                code = process.wait(timeout=300)
                seen = output.read_text()
                assert code == 0, f"{place} ended with {code}\n{seen}"
            elif block.language == "python":
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    exec(compile(text, place, "exec"), names)
                seen = printed.getvalue()
            elif block.language:
                yield place, block, seen
    finally:
        for group in groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

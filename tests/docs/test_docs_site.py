"""The documentation site: it is complete, and neither making nor reading it asks anybody else for anything."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import DOCS, ROOT

from adtr.cli import COMMANDS
from adtr.config import settings
from browser import open_browser

pytestmark = pytest.mark.slow
PAGES = ("", "tutorials/first-inspection/", "explanation/method/", "reference/cli/", "reference/api/adtr.model/")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; the tests are skipped where the extra `docs` is not installed."""
    for module in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where the site is served."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def text(site: Path, page: str) -> str:
    return (site / page / "index.html").read_text("utf-8")


def test_references_are_made_from_the_code(site: Path) -> None:
    commands = text(site, "reference/cli")
    assert all(f"adtr {name} [OPTIONS]" in commands for name in COMMANDS)
    assert all(f"--{name.replace('_', '-')} " in commands for name in settings())
    configuration = text(site, "reference/configuration")
    assert all(f"<code>{name}</code>" in configuration for name in settings())
    for name in ("detector.AnomalyDetector.fit", "calibration.Calibration.p_value"):
        assert f'id="adtr.{name}"' in text(site, "reference/api/adtr")
    assert 'id="adtr.model.losses.pixel_loss"' in text(site, "reference/api/adtr.model")


def test_equations_are_drawn_without_a_script(site: Path) -> None:
    method = text(site, "explanation/method")
    written = (DOCS / "explanation" / "method.md").read_text().count("$$") // 2
    assert method.count('display="block"') == written > 10
    assert "arithmatex" not in method


def test_no_page_asks_another_server_for_anything(address: str, tmp_path: Path) -> None:
    with open_browser(tmp_path / "profile") as browser:
        for page in PAGES:
            browser.open(f"{address}{page}")
        browser.run("document.querySelector('[data-md-component=search-query]').focus()")
        browser.run("new Promise((done) => setTimeout(done, 1000))")  # the search's worker and index come now
        assert any("search_index" in request for request in browser.requested)
        assert all(request.startswith((address, "data:", "blob:")) for request in browser.requested), browser.requested
        assert browser.errors == []

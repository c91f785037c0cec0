"""The report in a real browser, where there is one: nothing fetched, nothing complained of, and it prints."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from darkness import SCORES, Darkness, write_parts
from PIL import Image

from adtr.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # nor does the browser itself call anybody
]
DARK = "--blink-settings=preferredColorScheme=0"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    bad = "<img src=x onerror=alert(1)>"
    path = folder / "report.html"
    write_report(Darkness(), write_parts(folder / "parts", {**SCORES, bad: [30.0]}, masks=["crack"]), path)
    return path


def browse(address: str, folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    command = [BROWSER, *FLAGS, f"--user-data-dir={folder / 'profile'}", *flags, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture
def server(page: Path) -> Iterator[tuple[str, list[str]]]:
    """The page over HTTP, and what was asked of the server."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(page.parent))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}/", asked
        running.shutdown()


def requests(log: Path, address: str) -> set[str]:
    """Addresses that the page asked for, whether or not it got an answer; not those of the browser's own."""
    events = [event.get("params", {}) for event in json.loads(log.read_text("utf-8"))["events"]]
    return {str(params["url"]) for params in events if params.get("initiator") == address.rstrip("/")}


def test_nothing_is_fetched_and_nothing_complained_of(server: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = server
    log = tmp_path / "net.json"
    done = browse(f"{address}report.html", tmp_path, "--dump-dom", f"--log-net-log={log}")
    assert "What is not known" in done.stdout
    assert done.stdout.count("<svg") == 4
    assert "CONSOLE" not in done.stderr
    assert "/report.html" in asked
    assert set(asked) <= {"/report.html", "/favicon.ico"}  # the browser looks for an icon by itself
    assert requests(log, address) <= {f"{address}favicon.ico"}


def test_the_policy_stops_what_should_not_be_there(server: tuple[str, list[str]], page: Path, tmp_path: Path) -> None:
    address, asked = server
    foreign = '<img src="/elsewhere.png"><script>console.error("ran")</script></main>'
    text = page.read_text("utf-8").replace("</main>", foreign)
    (page.parent / "held.html").write_text(text, "utf-8")
    (page.parent / "free.html").write_text(re.sub(r"<meta http-equiv[^>]*>", "", text), "utf-8")

    done = browse(f"{address}held.html", tmp_path, "--dump-dom")
    assert "Content Security Policy" in done.stderr
    assert '"ran"' not in done.stderr
    assert "/elsewhere.png" not in asked

    log = tmp_path / "net.json"
    done = browse(f"{address}free.html", tmp_path, "--dump-dom", f"--log-net-log={log}")
    assert '"ran"' in done.stderr
    assert "/elsewhere.png" in asked
    assert f"{address}elsewhere.png" in requests(log, address)


@pytest.mark.parametrize(("width", "flags"), [(1300, []), (1300, [DARK]), (390, [])], ids=["light", "dark", "phone"])
def test_it_looks_as_it_should(page: Path, tmp_path: Path, width: int, flags: list[str]) -> None:
    picture = tmp_path / "page.png"
    browse(page.as_uri(), tmp_path, f"--window-size={width},2400", f"--screenshot={picture}", *flags)
    with Image.open(picture) as image:
        gray = np.asarray(image.convert("L")).astype(int)
    assert gray.shape == (2400, width)
    ground, ink = np.median(gray), (gray.min() if np.median(gray) > 128 else gray.max())
    assert (ground < 60) == bool(flags)
    assert abs(ground - ink) > 150
    assert (abs(gray[:, -15:] - gray[0, -1]) < 8).all()  # nothing runs out of the window
    rows = (abs(gray - ground) > 40).any(axis=1)
    assert rows.mean() > 0.3


def test_it_prints_on_several_light_pages(page: Path, tmp_path: Path) -> None:
    pdf = tmp_path / "report.pdf"
    browse(page.as_uri(), tmp_path, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", DARK)
    data = pdf.read_bytes()
    assert data.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", data)) <= 20

"""A headless Chromium, driven over its debugging pipe: no driver and no websocket are needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_FLAGS = [
    f"--{name}"
    for name in (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
        "remote-debugging-pipe",
    )
]
_SECONDS = 60


class Browser:
    """One page.

    Attributes:
        requested: addresses that the page has asked for.
        errors: what the page did wrong, as the browser's console tells it.
    """

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._number, self._buffer, self._session = 0, b"", ""
        self.requested: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """The result of a command of the DevTools protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        os.write(
            self._to,
            json.dumps({**message, **({"sessionId": self._session} if self._session else {})}).encode() + b"\0",
        )
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]  # type: ignore[no-any-return]

    def run(self, script: str) -> Any:  # noqa: ANN401 - whatever it is
        """The value of a script, or of the promise that it makes."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, script: str) -> Any:  # noqa: ANN401
        """The value of a script once it is true."""
        end = time.monotonic() + _SECONDS
        while not (value := self.run(script)):
            assert time.monotonic() < end, (script, self.errors)
            time.sleep(0.05)
        return value

    def open(self, address: str) -> None:
        """Go to a page."""
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({json.dumps(address)})")

    def drop(self, images: dict[str, bytes]) -> None:
        """Drop files on the page."""
        files = {name: base64.b64encode(data).decode() for name, data in images.items()}
        self.run(
            f"""(() => {{
              const transfer = new DataTransfer();
              for (const [name, data] of Object.entries({json.dumps(files)}))
                transfer.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name,
                  {{ type: name.endsWith("txt") ? "text/plain" : "image/png" }}));
              const options = {{ dataTransfer: transfer, bubbles: true, cancelable: true }};
              document.body.dispatchEvent(new DragEvent("drop", options));
            }})()"""
        )

    def key(self, key: str) -> None:
        """Press a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def screen(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Change the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, **options: object) -> bytes:
        """What is to be seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", **options)["data"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser has gone"
            self._buffer += chunk
        message, self._buffer = self._buffer.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        if answer.get("method") == "Network.requestWillBeSent":
            self.requested.append(answer["params"]["request"]["url"])
        entry = answer.get("params", {}).get("entry", {})
        if answer.get("method") == "Runtime.exceptionThrown" or entry.get("level") == "error":
            self.errors.append(json.dumps(answer["params"]))
        return answer


@contextmanager
def open_browser(folder: Path) -> Iterator[Browser]:
    """A browser with a fresh profile; the test is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs chromium")
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    line = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    command = ["bash", "-c", line, chromium, *_FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=(to_read, from_write), stderr=subprocess.DEVNULL)
    os.close(to_read)
    os.close(from_write)
    try:
        yield Browser(to_write, from_read)
    finally:
        process.terminate()
        process.wait(timeout=_SECONDS)
        os.close(to_write)
        os.close(from_read)

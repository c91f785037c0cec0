"""Requests that are no HTTP, or that break off in the middle of it."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from adtr.detector import AnomalyDetector
from adtr.serve.app import create_app
from adtr.serve.models import Models
from adtr.serve.service import Settings
from conftest import listening

HEAD = b"%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n%s\r\n\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        HEAD % (b"GET /nowhere", b"Transfer-Encoding: chunked") + b"g\r\n",
        HEAD % (b"POST /v1/models/discs/predict", b"Transfer-Encoding: chunked") + b"f" * 30 + b"\r\nx",
        HEAD % (b"POST /v1/models/discs/predict", b"Content-Length: -1"),
        HEAD % (b"POST /v1/models/discs/predict", b"Content-Length: " + b"9" * 5000),
        HEAD % (b"GET /", b"Host: other"),
        b"\x16\x03\x01\x02\x00\x01\x00",
    ],
    ids=["bad chunk", "endless chunk", "negative length", "long length", "two hosts", "tls"],
)
def test_a_client_s_mistake_is_no_failure_of_the_server(
    request_bytes: bytes, model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = create_app(Models({"discs": model}, AnomalyDetector.load), Settings())
    with caplog.at_level(logging.INFO), listening(app) as base:
        with socket.create_connection((urlsplit(base).hostname, urlsplit(base).port), timeout=10) as client:
            client.sendall(request_bytes)
            assert client.recv(1000).split(b"\r\n")[0] == b"HTTP/1.1 400 Bad Request"
        assert httpx.get(f"{base}/healthz").status_code == 200
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []

"""What every request and every answer carries: an id, protective headers, a log line, its place in the metrics."""

from __future__ import annotations

import ipaddress
import json
import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import urlsplit

from h11 import LocalProtocolError
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adtr.serve.metrics import ServerMetrics

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")
_METHODS = ("GET", "POST")  # a client may send any word
_QUIET = ("/healthz", "/readyz", "/metrics")  # asked every few seconds by machines
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = logging.getLogger("adtr.serve")


class Envelope:
    """ASGI middleware around the whole application.

    Args:
        app: what answers.
        metrics: counts requests.
        local: whether only browsers' own pages of this very machine or network address may ask: no other site's page
            (`Origin`), and none that had a name of its own point here (`Host`).
    """

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics, local: bool) -> None:
        self._app, self._metrics, self._local = app, metrics, local

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        told: dict[str, Any] = {}
        scope.setdefault("state", {}).update(request_id=request_id, told=told)
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                sent = MutableHeaders(scope=message)
                sent["X-Request-Id"] = request_id
                for name, value in _HEADERS.items():
                    sent.setdefault(name, value)
            try:
                await send(message)
            except LocalProtocolError as error:
                if message["type"] != "http.response.start":
                    raise
                status = 0
                told["error"] = "the request broke off HTTP"  # uvicorn has answered it with 400 and closes
                while (await receive())["type"] != "http.disconnect":
                    pass
                raise ClientDisconnect from error

        try:
            if self._local and (problem := _foreign(headers)):
                self._metrics.rejected.labels("foreign").inc()
                await _answer(send_on, 403, problem, request_id)
            else:
                await self._app(scope, receive, send_on)
        except ClientDisconnect:
            status = status or 499  # nobody is there to see it
        except Exception:
            log.exception("failed", extra={"fields": {"request_id": request_id, "path": scope["path"]}})
            if not status:
                await _answer(send_on, 500, "the server failed; its log tells why", request_id)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if route != "other" and scope["method"] in _METHODS else "any"
            self._metrics.requests.labels(method, route, status).inc()
            self._metrics.latency.labels(route).observe(seconds)
            fields = {
                "request_id": request_id,
                "client": scope["client"][0] if scope.get("client") else None,
                "method": scope["method"],
                "path": scope["path"],
                "status": status,
                "milliseconds": round(1000 * seconds, 1),
                **told,
            }
            log.log(
                logging.DEBUG if route in _QUIET and status < 400 else logging.INFO, "request", extra={"fields": fields}
            )


def _foreign(headers: Headers) -> str | None:
    """Why a request without a token is not taken, or None."""
    host = headers.get("host", "")
    try:
        name = urlsplit(f"//{host}").hostname or ""
        origin = urlsplit(headers.get("origin", f"//{host}")).netloc
        if name != "localhost":
            ipaddress.ip_address(name)
    except ValueError:
        return "without a token, this server is only reached as localhost or by its address; give it a --token"
    return "pages of other sites may not use this server" if origin != host else None


async def _answer(send: Send, status: int, message: str, request_id: str) -> None:
    body = json.dumps({"error": message, "request_id": request_id}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

"""The process around the application: its socket, its signals, its end."""

from __future__ import annotations

import signal
import socket

import uvicorn
from fastapi import FastAPI

from adtr.errors import AdtrError

STOP_SECONDS = 30
"""What is in work when the server is told to stop has so long to end."""


def listen(host: str, port: int) -> socket.socket:
    """A socket on this address, before anything slow is done.

    Raises:
        AdtrError: the address is not of this machine, or taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise AdtrError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from error
    return listener


def run(app: FastAPI, listener: socket.socket) -> None:
    """Answer until SIGTERM or SIGINT; then take nothing new, finish what was accepted, and return."""
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=512,
        )
    )

    def stop(*_: object) -> None:  # before uvicorn listens to signals, and when it raises them again at its end
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    server.run(sockets=[listener])

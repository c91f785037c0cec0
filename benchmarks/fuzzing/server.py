"""Damaged requests, byte by byte, to a server that listens."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from pathlib import Path
from random import Random

from fuzzing.images import damaged_png, seeds
from fuzzing.mutate import damage
from fuzzing.target import Files, Target

PREDICT = b"/v1/models/m/predict"
PATHS = (
    *(
        PREDICT,
        PREDICT + b"?map=png",
        PREDICT + b"?map=float",
        PREDICT + b"?map=" + b"x" * 5000,
        b"/",
        b"/metrics",
        b"/openapi.json",
    ),
    *(
        b"/v1/models",
        b"/v1/models/m",
        b"/v1/models/m/feedback?label=good",
        b"/v1/models/m/feedback?label=bad&defect=../x",
    ),
    *(
        b"/v1/models/m/feedback?label=anomalous&defect=%2e%2e%2fx",
        b"/v1/models/..%2f..%2fetc%2fpasswd",
        b"//x",
        b"*",
        b"/%00",
    ),
    *(
        b"/page/../../pyproject.toml",
        b"/%ff%fe",
        b"http://other.example/",
        b"/" + b"a" * 70_000,
        b"\xff",
        b"/v1/models/%s%n",
    ),
)
KINDS = (
    *(b"image/png", b"image/x", b"application/octet-stream", b"multipart/form-data; boundary=b", b"text/html", b""),
    *(b"multipart/form-data", b"multipart/form-data; boundary=", b"multipart/form-data; boundary=" + b"b" * 5000),
    *(
        b"multipart/form-data; boundary=b; charset=nope",
        b"multipart/form-data; boundary=\xff",
        b"multipart/form-data; boundary=b;b=",
    ),
)
HEADERS = (
    *(b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: " + b"9" * 30, b"Content-Length: " + b"9" * 5000),
    *(
        b"Content-Length: 1\r\nContent-Length: 2",
        b"Content-Length: \xb2",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: x",
    ),
    *(
        b"Host: evil.example",
        b"Host: [::",
        b"Host: a b",
        b"Host:",
        b"Origin: null",
        b"Origin: http://[",
        b"X-Request-Id: a\tb",
    ),
    *(b"X-Request-Id: " + b"x" * 5000, b"X-Request-Id: \xff", b"Authorization: Bearer \xff", b"Authorization: Bearer"),
    *(
        b"Authorization: Basic Og==",
        b"Expect: 100-continue",
        b"Upgrade: websocket\r\nConnection: Upgrade",
        b"Upgrade: h2c",
    ),
    *(
        b"Accept-Encoding: gzip",
        b"Content-Encoding: gzip",
        b"Range: bytes=0-1",
        b"Cookie: " + b"a=b;" * 5000,
        b": x",
        b"a b: c",
    ),
    *(b"X: " + b"y" * 70_000, b"X\x00: y", b"X: \x00", b" folded: x", b"Connection: close", b"Connection: \xff"),
)


def form(rng: Random, image: bytes) -> bytes:
    """A body of parts that are oddly named, nested, cut or without end."""
    names = (
        b'"a"',
        b'"../../etc/passwd"',
        b'"a\\"b"',
        b"\xff\xfe",
        b'"' + b"n" * 5000 + b'"',
        b'""',
        b'"a\r\nX: y"',
        b"*=utf-8''%ff",
    )
    fields = (
        *(
            b"Content-Type: image/png",
            b"Content-Type: multipart/mixed; boundary=c",
            b"Content-Transfer-Encoding: base64",
        ),
        *(b"X: " + b"y" * 20_000, b"no colon", b": nothing", b"", b"Content-Disposition: form-data"),
    )
    body = b""
    for _ in range(rng.choice((0, 1, 1, 2, 3, 70))):
        disposition = rng.choice((b"form-data", b"attachment", b"", b"form-data" * 100))
        name = rng.choice((b"; name=", b"; name*=", b"; nam=")) + rng.choice(names)
        file = rng.choice((b"; filename=" + rng.choice(names), b"; filename*=utf-8''%ff%00", b""))
        head = b"Content-Disposition: " + disposition + name + file
        heads = b"\r\n".join([head, *(rng.choice(fields) for _ in range(rng.randrange(3)))])
        body += b"--b\r\n" + heads + b"\r\n\r\n" + rng.choice((image, b"x", b"")) + b"\r\n"
    return body + rng.choice((b"--b--\r\n", b"--b", b"", b"--b--\r\n--b\r\n", b"--c--"))


class Server(Target):
    """The HTTP server."""

    name = "server"
    needs = ("model",)
    allowed = ("socket.connect", "socket.bind", "socket.getaddrinfo")

    def __init__(self) -> None:
        self._seeds = seeds()
        self._problems: list[str] = []

    def open(self, folder: Path, out: Path) -> None:
        """Start it in a thread of this process."""
        import uvicorn

        from adtr.detector import AnomalyDetector
        from adtr.serve.app import create_app
        from adtr.serve.models import Models
        from adtr.serve.server import listen
        from adtr.serve.service import Settings

        problems = self._problems

        class Problems(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                text = self.format(record)
                if record.name == "asyncio" and "send_400_response" in text:  # uvicorn's own, while it refuses
                    print(text.splitlines()[0], file=sys.stderr)
                else:
                    problems.append(text)

        handler = Problems(logging.ERROR)
        logging.getLogger().addHandler(handler)
        load = lambda path: AnomalyDetector.load(path, device="cpu")  # noqa: E731
        settings = Settings(feedback=out / "feedback", stall_seconds=0.5, max_upload=2_000_000)
        app = create_app(Models({"m": folder / "model"}, load), settings)
        listener = listen("127.0.0.1", 0)
        self._address = listener.getsockname()
        server = uvicorn.Server(uvicorn.Config(app, http="h11", ws="none", log_config=None, access_log=False))
        threading.Thread(target=server.run, args=([listener],), daemon=True).start()
        while not server.started:
            time.sleep(0.01)

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """The bytes of a request, or of several."""
        image = rng.choice(self._seeds)
        if image.startswith(b"\x89PNG") and rng.random() < 0.3:
            image = damaged_png(rng, image)[:1_000_000]
        kind = rng.choice(KINDS)
        body = form(rng, image) if kind.startswith(b"multipart") else rng.choice((image, image[:100], b""))
        path = PREDICT if rng.random() < 0.6 else rng.choice(PATHS)
        heads = [b"Host: localhost", b"Content-Type: " + kind]
        if rng.random() < 0.6:
            heads.append(b"Content-Length: " + str(len(body)).encode())
        elif rng.random() < 0.5:
            heads.append(b"Transfer-Encoding: chunked")
            size = rng.choice((b"%x" % len(body), b"-1", b"f" * 30, b"0", b"%x;%s" % (len(body), b"e" * 20_000), b"g"))
            body = size + b"\r\n" + body + rng.choice((b"\r\n0\r\n\r\n", b"\r\n0\r\nX: y\r\n\r\n", b""))
        for _ in range(rng.choice((0, 0, 1, 2))):
            heads.insert(rng.randrange(len(heads) + 1), rng.choice(HEADERS))
        method = (
            b"POST"
            if rng.random() < 0.7
            else rng.choice((b"GET", b"PUT", b"HEAD", b"OPTIONS", b"CONNECT", b"\xff", b"x" * 9000))
        )
        version = (
            b"HTTP/1.1" if rng.random() < 0.9 else rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"", b"HTTP/1.1 x"))
        )
        data = method + b" " + path + b" " + version + b"\r\n" + b"\r\n".join(heads) + b"\r\n\r\n" + body
        return {"request": data if rng.random() < 0.6 else damage(rng, data)}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Send it; whatever is answered, no failure is, nothing is logged as one, and the next request is answered."""
        self._problems.clear()
        answer = self._ask((case / "request").read_bytes())
        if answer:
            status = answer.split(b" ", 2)[1]
            assert answer.startswith(b"HTTP/1.1 "), answer[:200]
            assert status.isdigit(), answer[:200]
            assert int(status) < 500 or int(status) in (503, 507), answer[:500]
            assert b"Traceback" not in answer, answer[:500]
        assert b" 200 " in self._ask(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")[:20]
        assert not self._problems, self._problems[0]

    def _ask(self, data: bytes) -> bytes:
        """What comes back until the server closes or waits for more."""
        with socket.create_connection(self._address[:2], timeout=5) as client:
            answer = b""
            try:
                client.sendall(data)
                client.shutdown(socket.SHUT_WR)
                while part := client.recv(65536):
                    answer += part
            except TimeoutError as error:
                message = "the server neither answered nor closed within 5 s"
                raise AssertionError(message) from error
            except OSError:  # it has closed already
                pass
            return answer

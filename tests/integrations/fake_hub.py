"""A hub of models small enough for a test: what huggingface_hub asks for when it pushes and pulls, in memory."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


class FakeHub:
    """Repositories as `{name: {path: bytes}}`, and the requests that came in."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def commit(self, name: str) -> str:
        """The name of a repository's state."""
        files = sorted(self.repositories[name].items())
        return hashlib.sha1(repr([(path, _oid(data)) for path, data in files]).encode()).hexdigest()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content."""
        parts = [part for part in urlsplit(path).path.split("/") if part]
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
            existed = name in self.repositories
            self.repositories.setdefault(name, {})
            return _json({"url": f"{self.address}/{name}"}, 409 if existed else 200)
        if parts == ["api", "validate-yaml"]:
            return _json({"warnings": [], "errors": []})
        if parts[:2] == ["api", "models"]:
            name, what = "/".join(parts[2:4]), (parts[4] if len(parts) > 4 else "revision")
        elif parts[0] == "api":
            return _json({"error": "Not found"}, 404)
        else:
            name, what = "/".join(parts[:2]), parts[2]
        if name not in self.repositories:
            return _json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        files = self.repositories[name]
        if what == "preupload":
            modes = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return _json({"files": modes})
        if what == "commit":
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    files.pop(line["value"]["path"], None)
            commit = self.commit(name)
            return _json({"commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit})
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            return _json({"id": name, "sha": self.commit(name), "siblings": siblings, "private": False, "tags": []})
        if what == "tree":
            rows = [{"type": "file", "path": p, "size": len(d), "oid": _oid(d)} for p, d in files.items()]
            return _json(rows)
        data = files.get("/".join(parts[4:]))
        if data is None:
            return _json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": self.commit(name), "Content-Length": str(len(data))}
        return 200, headers, b"" if method == "HEAD" else data


def _oid(data: bytes) -> str:
    """As git names it."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    data = json.dumps(value).encode()
    return status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})}, data


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """A hub that answers on a port of this machine."""
    hub = FakeHub()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            if self.headers.get("Transfer-Encoding") == "chunked":
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                body = self.rfile.read(length)
            hub.requests.append((self.command, self.path))
            status, headers, data = hub.answer(self.command, self.path, body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_POST = do_HEAD = respond  # noqa: N815 - http.server's names

        def log_message(self, *arguments: object) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()

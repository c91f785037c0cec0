"""Request bodies: read as they come, never beyond their limits, and never into a file."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

STALL_SECONDS = 10.0
"""How long a client may send nothing."""
BODY_SECONDS = 300.0
"""How long a whole body may take."""
MAX_IMAGES = 64
"""In one request."""
_TOGETHER = 16
"""All bodies in memory together are at most this many times as large as one may be."""
_NAME_LENGTH = 200


class RefusedError(Exception):
    """A request that is not answered as asked, with its HTTP status and one sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


@dataclass(frozen=True)
class Upload:
    """A file as a client sent it; its name is for people only."""

    name: str
    data: bytes


class _Parser(MultiPartParser):
    spool_max_size = 1 << 62  # files stay in memory, whose limit is ours


class Uploads:
    """Reads the images of requests.

    Args:
        limit: bytes of one body.
        stall_seconds: see `STALL_SECONDS`.
    """

    def __init__(self, limit: int, *, stall_seconds: float = STALL_SECONDS) -> None:
        self._limit, self._stall_seconds = limit, stall_seconds
        self.held = 0
        """Bytes of all bodies that are in memory now."""

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[list[Upload]]:
        """The images of a request: the files of a form, or its whole body.

        Raises:
            RefusedError: wrong type (415), too large (413), too slow (408), malformed or empty (400), or there is no
                memory for it now (503).
            ClientDisconnect: the client has gone.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "multipart/form-data" and kind != "application/octet-stream" and not kind.startswith("image/"):
            raise RefusedError(
                415, "send images as multipart/form-data, or one as the body with a Content-Type such as image/png"
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limit:
            raise self._too_large()
        taken = [0]
        try:
            stream = self._chunks(request, taken)
            if kind == "multipart/form-data":
                uploads = await _read_form(request, stream)
            else:
                uploads = [Upload("", b"".join([chunk async for chunk in stream]))]
            if not uploads:
                raise RefusedError(400, "the form holds no file")
            yield uploads
        finally:
            self.held -= taken[0]

    async def _chunks(self, request: Request, taken: list[int]) -> AsyncGenerator[bytes, None]:
        end = time.monotonic() + BODY_SECONDS
        stream = request.stream()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream, b""), self._stall_seconds)
            except asyncio.TimeoutError as error:
                message = f"nothing was sent for {self._stall_seconds:g} s"
                raise RefusedError(408, message, {"Connection": "close"}) from error
            if not chunk:
                return
            if time.monotonic() > end:
                raise RefusedError(408, f"the upload took more than {BODY_SECONDS:g} s", {"Connection": "close"})
            taken[0] += len(chunk)
            self.held += len(chunk)
            if taken[0] > self._limit:
                raise self._too_large()
            if self.held > _TOGETHER * self._limit:
                raise RefusedError(503, "too many uploads at once; try again in 1 s", {"Retry-After": "1"})
            yield chunk

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the upload exceeds the limit of {self._limit} bytes")


async def _read_form(request: Request, stream: AsyncGenerator[bytes, None]) -> list[Upload]:
    try:
        form = await _Parser(request.headers, stream, max_files=MAX_IMAGES, max_fields=MAX_IMAGES).parse()
    except MultiPartException as error:
        raise RefusedError(400, f"the form cannot be read: {error.message.rstrip('.')}") from error
    files = [file for _, file in form.multi_items() if isinstance(file, UploadFile)]
    uploads = [Upload(_plain(file.filename or ""), await file.read()) for file in files]
    await form.close()
    return uploads


def _plain(name: str) -> str:
    """A client's file name without folders and control characters, and not endless."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(character for character in last if character.isprintable())[:_NAME_LENGTH]

"""What the routes share: models, queue, limits, threads, metrics."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from adtr.data.loading import LoadedImage
from adtr.serve.answers import check_maps, decode, describe
from adtr.serve.batching import Batcher
from adtr.serve.feedback import Feedback
from adtr.serve.metrics import ServerMetrics
from adtr.serve.models import LoadedModel, Models
from adtr.serve.schemas import ImageVerdict, MapFormat
from adtr.serve.uploads import STALL_SECONDS, RefusedError, Upload, Uploads

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the command line decides."""

    token: str | None = None
    """Clients must show it; None lets everybody in."""
    local: bool = True
    """Without a token, see `Envelope`."""
    max_upload: int = 20_000_000
    """Bytes of a request's body."""
    max_pixels: int = 25_000_000
    """Of an image."""
    queue: int = 128
    """Images in work at once."""
    batch_size: int = 8
    """Images in a forward pass, at most."""
    workers: int = 1
    """Threads that run forward passes."""
    feedback: Path | None = None
    """Folder of the images that users mark."""
    stall_seconds: float = STALL_SECONDS
    """How long a client may send nothing."""


class Service:
    """What the routes share."""

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings = models, settings
        self.metrics = ServerMetrics(lambda: self.batcher.reserved)
        self.batcher = Batcher(
            capacity=settings.queue,
            batch_size=settings.batch_size,
            workers=settings.workers,
            on_batch=self.metrics.count_batch,
        )
        self.uploads = Uploads(settings.max_upload, stall_seconds=settings.stall_seconds)
        self.feedback = Feedback(settings.feedback) if settings.feedback is not None else None
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="adtr-image")
        self._stop = threading.Event()
        self._caretaker = threading.Thread(target=models.look_after, args=(self._stop,), daemon=True)
        for model in models:
            self.metrics.loaded.labels(model.name).set_function(partial(self._loaded_at, model.name))

    def start(self) -> None:
        """Look after the models from now on."""
        self._caretaker.start()

    def close(self) -> None:
        """Finish what is in work and end the threads."""
        self._stop.set()
        self.batcher.close()
        self._pool.shutdown()
        self._caretaker.join()

    def model(self, name: str) -> LoadedModel:
        """The newest of this name.

        Raises:
            RefusedError: there is none (404).
        """
        model = self.models.get(name)
        if model is None:
            raise RefusedError(404, "no such model; GET /v1/models lists them")
        return model

    def _loaded_at(self, name: str) -> float:
        return self.model(name).loaded_at

    async def in_thread(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The result of work with an image; so many run at once as there are cores, and memory is bounded."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *arguments)

    async def judge(
        self, model: LoadedModel, uploads: list[Upload], map_format: MapFormat | None
    ) -> list[ImageVerdict]:
        """The verdicts on images, all or none.

        Raises:
            RefusedError: one cannot be read (400), or the answer would be too large (413).
            QueueFullError: there is no place for so many.
        """
        detector = model.detector

        async def answer(upload: Upload, image: LoadedImage) -> ImageVerdict:
            prediction = await asyncio.wrap_future(self.batcher.submit(detector, image))
            self.metrics.count(model.name, prediction)
            return await self.in_thread(describe, prediction, upload.name, map_format)

        with self.batcher.reserve(len(uploads)):
            images = await _all([self.in_thread(decode, u, detector, self.settings.max_pixels) for u in uploads])
            check_maps(images, map_format)
            return await _all([answer(upload, image) for upload, image in zip(uploads, images, strict=True)])


async def _all(tasks: list[Coroutine[object, object, Result]]) -> list[Result]:
    """The results of all; an error only once none of them is at work any more."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]

"""Dynamic batching: what arrives while the network works is its next batch."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from adtr.data.loading import LoadedImage
from adtr.prediction import Prediction
from adtr.predictor import Predictor

_MEMORY = 0.8  # weight of the past in the running mean of the time that an image takes

log = logging.getLogger("adtr.batching")


class QueueFullError(Exception):
    """There is no place for more images now."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after} s")
        self.retry_after = retry_after
        """Seconds until there should be."""


@dataclass(frozen=True, eq=False)
class _Job:
    detector: Predictor
    image: LoadedImage
    answer: Future[Prediction] = field(default_factory=Future)


class Batcher:
    """A bounded queue of images and the threads that judge them, several in a forward pass.

    An image alone is judged at once; the busier the server, the larger the batches, without any waiting for others.

    Args:
        capacity: images that may be in work at once, from their reservation to its end.
        batch_size: images in a forward pass, at most.
        workers: threads that each run a pass of their own, with their share of the cores.
        on_batch: is told the number of images of each pass and its seconds.
    """

    def __init__(
        self,
        *,
        capacity: int,
        batch_size: int = 8,
        workers: int = 1,
        on_batch: Callable[[int, float], None] = lambda _images, _seconds: None,
    ) -> None:
        self.capacity, self.reserved = capacity, 0
        self._batch_size, self._workers, self._on_batch = batch_size, workers, on_batch
        self._seconds = 0.05  # per image, a guess until the first is done
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"adtr-judge-{i}", daemon=True) for i in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether images can be judged."""
        return not self._closed and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """Images that no pass has taken yet."""
        return len(self._jobs)

    def check(self, images: int = 1) -> None:
        """Raise `QueueFullError` where there is no place for so many more images."""
        if self.reserved + images > self.capacity:
            raise QueueFullError(max(1, math.ceil(self.reserved * self._seconds / self._workers)))

    @contextmanager
    def reserve(self, images: int) -> Iterator[None]:
        """Hold places in the queue for the time of the block.

        Raises:
            QueueFullError: there are not so many.
        """
        with self._changed:
            self.check(images)
            self.reserved += images
        try:
            yield
        finally:
            with self._changed:
                self.reserved -= images

    def submit(self, detector: Predictor, image: LoadedImage) -> Future[Prediction]:
        """Put an image in the queue, to be judged by this detector whatever replaces it meanwhile."""
        job = _Job(detector, image)
        with self._changed:
            if self._closed:
                raise RuntimeError("the queue is closed")
            self._jobs.append(job)
            self._changed.notify()
        return job.answer

    def close(self) -> None:
        """Judge what is in the queue, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        if self._workers > 1 and "torch" in sys.modules:
            import torch

            torch.set_num_threads(max(1, torch.get_num_threads() // self._workers))  # of this thread alone
        while batch := self._take():
            started = time.perf_counter()
            try:
                predictions = batch[0].detector.judge([job.image for job in batch])
            except Exception as error:  # noqa: BLE001 - whoever waits for the answer gets it
                for job in batch:
                    job.answer.set_exception(error)
                continue
            seconds = time.perf_counter() - started
            self._seconds = _MEMORY * self._seconds + (1 - _MEMORY) * seconds / len(batch)
            for job, prediction in zip(batch, predictions, strict=True):
                job.answer.set_result(prediction)
            self._on_batch(len(batch), seconds)

    def _take(self) -> list[_Job]:
        """The oldest job and those after it that are for the same detector; none once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._closed)
            batch: list[_Job] = []
            others: deque[_Job] = deque()
            while self._jobs and len(batch) < self._batch_size:
                job = self._jobs.popleft()
                (batch if not batch or job.detector is batch[0].detector else others).append(job)
            self._jobs.extendleft(reversed(others))
            return batch

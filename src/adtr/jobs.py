"""Several trainings at a time on one machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from adtr.config import EmbeddingConfig

Result = TypeVar("Result")
Task = tuple[Any, ...]


def in_processes(
    function: Callable[..., Result], tasks: Sequence[Task], jobs: int
) -> Iterator[tuple[Task, Future[Result]]]:
    """Each task in a new process with its share of the cores, so that one that dies takes no other with it.

    Args:
        function: of a module; gets a task's parts as arguments.
        tasks: can be pickled.
        jobs: processes at a time.

    Yields:
        Each task with its future, as they end; that of a process that died holds a `BrokenProcessPool`.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def alone(task: Task) -> Result:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _set_threads, (threads,)) as process:
            return process.submit(function, *task).result()

    with ThreadPoolExecutor(jobs) as pool:
        work = {pool.submit(alone, task): task for task in tasks}
        try:
            for future in as_completed(work):
                yield work[future], future
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def affordable_jobs(embedding: EmbeddingConfig, images: int, device: str) -> int:
    """How many trainings the machine has room for at a time: one on an accelerator; by cores and memory on a CPU.

    Args:
        embedding: of the detectors.
        images: of the largest training, with those that are evaluated.
        device: by name; see `choose_device`.
    """
    from adtr.device import choose_device
    from adtr.training.feature_cache import MEMORY_SHARE, machine_memory

    if choose_device(device).type != "cpu":
        return 1
    channels, bytes_each = 1500, 4  # more than any of the usual backbones has
    one = (2 << 30) + images * embedding.grid_size[0] * embedding.grid_size[1] * channels * bytes_each
    by_memory = int(MEMORY_SHARE * machine_memory() / one)
    return max(1, min((os.cpu_count() or 1) // 4, by_memory))

"""Dynamic batching: order, bounds, several models, failures, the end."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from adtr.serve.batching import Batcher, QueueFullError

SECONDS = 20


class Judge:
    """Stands for a detector: answers with its own name and the image, once it is let go."""

    def __init__(self, name: str = "judge") -> None:
        self.name, self.batches = name, []  # type: tuple[str, list[list[int]]]
        self.may_go, self.is_busy = threading.Event(), threading.Event()

    def judge(self, images: Sequence[int]) -> list[Any]:
        self.is_busy.set()
        assert self.may_go.wait(SECONDS)
        self.batches.append(list(images))
        if -1 in images:
            raise ValueError("no such image")
        return [SimpleNamespace(text=f"{self.name} {image}") for image in images]


@contextmanager
def batching(**options: int) -> Iterator[Batcher]:
    batcher = Batcher(**{"capacity": 100, **options})
    try:
        yield batcher
    finally:
        batcher.close()


def submit(batcher: Batcher, judge: Judge, images: Sequence[int]) -> list[Any]:
    return [batcher.submit(judge, image) for image in images]  # type: ignore[arg-type]


def test_what_arrives_during_a_pass_is_the_next_batch() -> None:
    judge, seen = Judge(), []
    with batching(batch_size=4, on_batch=lambda images, _: seen.append(images)) as batcher:  # type: ignore[arg-type]
        answers = submit(batcher, judge, [0])
        assert judge.is_busy.wait(SECONDS)
        answers += submit(batcher, judge, range(1, 7))
        assert batcher.waiting == 6
        judge.may_go.set()
        assert [answer.result(SECONDS).text for answer in answers] == [f"judge {i}" for i in range(7)]
    assert judge.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert seen == [1, 4, 2]


def test_a_batch_is_of_one_detector_and_others_keep_their_order() -> None:
    old, new = Judge("old"), Judge("new")
    new.may_go.set()
    with batching(batch_size=3) as batcher:
        answers = submit(batcher, old, [0])
        assert old.is_busy.wait(SECONDS)
        for judge, image in [(new, 1), (old, 2), (new, 3), (old, 4), (new, 5), (new, 6)]:
            answers += submit(batcher, judge, [image])
        old.may_go.set()
        told = [answer.result(SECONDS).text for answer in answers]
    assert told == ["old 0", "new 1", "old 2", "new 3", "old 4", "new 5", "new 6"]
    assert new.batches == [[1, 3, 5], [6]]
    assert old.batches == [[0], [2, 4]]


def test_a_failure_reaches_those_who_wait_and_nobody_else() -> None:
    judge = Judge()
    judge.may_go.set()
    with batching(batch_size=1) as batcher:
        bad, good = submit(batcher, judge, [-1, 1])
        with pytest.raises(ValueError, match="no such image"):
            bad.result(SECONDS)
        assert good.result(SECONDS).text == "judge 1"
        assert batcher.is_alive


def test_places_are_bounded_and_given_back() -> None:
    with batching(capacity=3) as batcher:
        with batcher.reserve(2), batcher.reserve(1):
            with pytest.raises(QueueFullError) as full, batcher.reserve(1):
                pass
            assert full.value.retry_after >= 1
        with pytest.raises(RuntimeError, match="in the block"), batcher.reserve(3):
            raise RuntimeError("in the block")
        assert batcher.reserved == 0
        batcher.check(3)


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_finishes_what_was_accepted(workers: int) -> None:
    judge = Judge()
    batcher = Batcher(capacity=100, batch_size=2, workers=workers)
    answers = submit(batcher, judge, range(9))
    closing = threading.Thread(target=batcher.close)
    closing.start()
    judge.may_go.set()
    closing.join(SECONDS)
    assert all(answer.done() for answer in answers)
    assert sorted(image for batch in judge.batches for image in batch) == list(range(9))
    assert not batcher.is_alive
    with pytest.raises(RuntimeError, match="closed"):
        submit(batcher, judge, [1])

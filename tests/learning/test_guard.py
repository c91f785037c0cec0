"""The guard: what is held out, how both detectors are judged, and what is said of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adtr.data.anomalies import Anomaly
from adtr.learning.guard import FEW, Improvement, Judgement, judge
from adtr.learning.improve import hold_out

# What is held out.


@given(
    counts=st.dictionaries(st.sampled_from("abc"), st.integers(1, 20), min_size=1),
    share=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    seed=st.integers(0, 3),
)
def test_a_part_of_each_type_is_held_out(counts: dict[str, int], share: float, seed: int) -> None:
    samples = [Anomaly(path=Path(f"{t}{i}"), defect_type=t) for t, count in counts.items() for i in range(count)]
    learned, held_out = hold_out(samples, share, seed)
    assert sorted(str(sample.path) for sample in learned + held_out) == sorted(str(sample.path) for sample in samples)
    assert hold_out(samples, share, seed) == (learned, held_out)
    for name, count in counts.items():
        held = sum(sample.defect_type == name for sample in held_out)
        assert held == (0 if share == 0 or count < FEW else max(1, min(count - 1, round(share * count))))


# How it is judged.


def judged(good: list[float], anomalous: list[float], types: list[str]) -> Judgement:
    """The judgement on scores that are given."""
    scores = np.array(good, np.float32)
    return judge(scores, np.ones((len(good), 2, 2), np.float32), np.array(anomalous, np.float32), types, 0.01)


def test_each_half_of_the_good_images_judges_the_other() -> None:
    result = judged([1.0, 1.0, 1.1, 1.0, 9.0, 1.0], [], [])  # 1.1 and 9 exceed all of the other half
    assert (result.good, result.false_alarms) == (6, 2)
    assert (result.anomalies, result.missed, result.image_auroc) == (0, 0, None)
    assert judged([1.0] * 6, [], []).false_alarms == 0


def test_missed_anomalies_are_counted_by_type() -> None:
    result = judged([1.0, 2.0, 3.0, 4.0], [3.5, 9.0, 0.5], ["dent", "dent", "scratch"])
    assert result.missed == 2
    assert result.missed_by_type == {"dent": 1, "scratch": 1}
    assert result.anomalies_by_type == {"dent": 2, "scratch": 1}
    assert result.image_auroc == pytest.approx((3 + 4 + 0) / 12)


# Its words.


def judgement(false_alarms: int, missed: int, auroc: float | None = 0.9) -> Judgement:
    return Judgement(
        good=40,
        false_alarms=false_alarms,
        anomalies=10,
        missed=missed,
        image_auroc=auroc,
        missed_by_type={"scratch": missed},
        anomalies_by_type={"scratch": 10},
    )


def improvement(before: Judgement, after: Judgement) -> Improvement:
    return Improvement(
        sources=["labelled"],
        learned={"scratch": 30},
        with_mask=30,
        external=0,
        before=before,
        after=after,
        hashes=[],
        losses=[],
        seconds=1,
        notes=[],
    )


@pytest.mark.parametrize(
    ("before", "after", "better", "word"),
    [
        (judgement(1, 5), judgement(1, 2), True, ""),
        (judgement(1, 5), judgement(2, 2), False, "WORSE on good images"),
        (judgement(1, 5), judgement(0, 6), False, "WORSE on the anomalies held out"),
        (judgement(1, 5, 0.9), judgement(1, 5, 0.95), True, ""),
        (judgement(1, 5, 0.9), judgement(1, 5, 0.85), False, ""),
    ],
)
def test_the_guard_says_plainly_what_is_worse(before: Judgement, after: Judgement, better: bool, word: str) -> None:
    told = improvement(before, after)
    assert told.is_better == better
    text = "\n".join(told.describe())
    assert word in text
    assert ("WORSE" in text) == bool(word)
    assert f"{before.missed}/10" in text

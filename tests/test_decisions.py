from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from adtr.calibration import Calibration
from adtr.decisions import POINTS, Proportion, decide, trade_off

SCORES = st.lists(st.floats(0, 10, width=32), max_size=20)


def calibration(images: int) -> Calibration:
    scores = tuple(np.linspace(1, 5, images).tolist())
    return Calibration(image_scores=scores, pixel_maxima=scores)


@pytest.mark.parametrize(("count", "total"), [(0, 10), (3, 10), (10, 10), (1, 200)])
def test_the_interval_is_clopper_and_pearsons(count: int, total: int) -> None:
    low, high = Proportion(count=count, total=total).interval
    # At its ends the observed count becomes just too unlikely, on either side.
    assert count == 0 or binom.sf(count - 1, total, low) == pytest.approx(0.025)
    assert count == total or binom.cdf(count, total, high) == pytest.approx(0.025)
    assert low <= count / total <= high
    assert (low == 0) == (count == 0)
    assert (high == 1) == (count == total)


def test_nothing_tells_nothing() -> None:
    nothing = Proportion(count=0, total=0)
    assert (nothing.rate, nothing.interval, nothing.describe()) == (None, (0, 1), "0 of 0")


def test_a_proportion_reads_well() -> None:
    assert Proportion(count=2, total=60).describe() == "2 of 60 (3.3%; 95 % interval 0.4% to 11.5%)"
    assert Proportion(count=1, total=4).to_dict() == {
        "count": 1,
        "total": 4,
        "rate": 0.25,
        "low": pytest.approx(0.0063, abs=1e-4),
        "high": pytest.approx(0.8059, abs=1e-4),
    }


@given(SCORES, SCORES, st.floats(0, 10, width=32))
@settings(deadline=None)
def test_decisions_are_counts(good: list[float], bad: list[float], threshold: float) -> None:
    types = ["crack" if i % 3 else "dent" for i in range(len(bad))]
    decisions = decide(threshold, 0.1, good, bad, types)
    assert decisions.false_alarms == Proportion(count=sum(s > threshold for s in good), total=len(good))
    assert decisions.missed == Proportion(count=sum(s <= threshold for s in bad), total=len(bad))
    assert sum(p.count for p in decisions.missed_per_type.values()) == decisions.missed.count
    assert {name: p.total for name, p in decisions.missed_per_type.items()} == {n: types.count(n) for n in set(types)}


@pytest.mark.parametrize("images", [1, 2, 10, 43, 5000])
def test_the_trade_off_goes_from_the_lowest_promise_to_one_half(images: int) -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.random(50) * 6, rng.random(40) * 8
    curve = trade_off(calibration(images), good.tolist(), bad.tolist(), ["dent"] * 40)
    assert curve[0].promised_rate == pytest.approx(1 / (images + 1))
    assert curve[-1].promised_rate <= 0.5
    assert len(curve) <= POINTS
    for before, after in pairwise(curve):
        assert after.promised_rate > before.promised_rate
        assert after.threshold <= before.threshold
        assert after.false_alarms.count >= before.false_alarms.count
        assert after.missed.count <= before.missed.count

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from adtr.errors import AdtrError, ConfigError, DataError
from adtr.monitoring import BETS, REFINING, Alarm, Bet, DriftMonitor, MonitorConfig

Stream = Callable[[np.random.Generator, int], np.ndarray]


def watch(monitor: DriftMonitor, scores: np.ndarray) -> Alarm | None:
    for score in scores:
        monitor.update(score)
    return monitor.alarm


def after(change: Stream, *, reference: int = 150, before: int = 300, images: int = 150, seed: int = 0) -> Alarm | None:
    """The alarm of a monitor on normal scores and then changed ones."""
    rng = np.random.default_rng(seed)
    monitor = DriftMonitor(rng.normal(size=reference), MonitorConfig(seed=seed))
    assert watch(monitor, rng.normal(size=before)) is None
    return watch(monitor, change(rng, images))


@pytest.mark.parametrize("expected", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("bet", BETS)
def test_a_bet_wins_nothing_on_average_while_nothing_changes(bet: Bet, expected: float) -> None:
    def mean(low: float, high: float) -> float:
        return quad(lambda p: math.exp(bet.log_factor(p, expected)), low, high)[0] / (high - low)

    in_tail, in_bulk = mean(0, bet.tail), mean(bet.tail, 1)
    # The expected anomalies lie in the tail, and the good images share what is left.
    for anomalies in (expected, expected / 2, 0.0):
        share = bet.tail + (1 - bet.tail) * anomalies
        average = share * in_tail + (1 - share) * in_bulk
        assert average == pytest.approx(1, abs=1e-6) if anomalies == expected else average <= 1 + 1e-6


@given(st.integers(0, 2**31), st.sampled_from(["continuous", "ties", "constant"]))
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_statistic_is_the_literal_shiryaev_roberts_sum(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    scores = {"continuous": rng.normal(size=30), "ties": rng.integers(0, 4, 30) * 1.0, "constant": np.ones(30)}[kind]
    monitor = DriftMonitor(scores[:10], MonitorConfig(horizon=7, seed=seed))
    factors = []
    for image in range(1, 21):
        seen, score = scores[: 9 + image], scores[9 + image]
        chance = np.random.default_rng((seed, image)).random()
        p = (np.sum(seen > score) + chance * (np.sum(seen == score) + 1)) / (len(seen) + 1)
        factors.append([math.exp(bet.log_factor(p, 0.0)) for bet in BETS])
        monitor.update(score)
        products = [np.prod(factors[start:], axis=0) for start in range(image)]
        assert monitor.statistic == pytest.approx(np.mean(np.sum(products, axis=0) + 7 * products[0]))


def test_good_images_raise_no_more_alarms_than_promised() -> None:
    streams, length, rate, alarms = 300, 200, 0.2, 0
    for seed in range(streams):
        rng = np.random.default_rng(seed)
        config = MonitorConfig(false_alarm_rate=rate, horizon=length, seed=seed)
        alarms += watch(DriftMonitor(rng.gamma(2, size=20), config), rng.gamma(2, size=length)) is not None
    assert 0 < alarms / streams <= rate


@pytest.mark.slow
def test_ten_thousand_good_images_are_in_control() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        assert watch(DriftMonitor(rng.gamma(2, size=40)), rng.gamma(2, size=10_000)) is None


@pytest.mark.parametrize("distribution", ["ties", "constant"])
def test_equal_scores_are_no_change(distribution: str) -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, 1050) if distribution == "ties" else np.ones(1050)
    assert watch(DriftMonitor(scores[:50]), scores[50:]) is None


@pytest.mark.parametrize(
    ("change", "kind", "within"),
    [
        (lambda rng, n: rng.normal(6, 1, n), "conditions", 10),
        (lambda rng, n: rng.normal(2, 1, n), "conditions", 25),
        (lambda rng, n: rng.normal(-2, 1, n), "conditions", 30),
        (lambda rng, n: np.full(n, rng.normal(-9)), "conditions", 20),
        (lambda rng, n: rng.normal(size=n) + 6 * (rng.random(n) < 0.3), "anomalies", 70),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_a_change_is_found_soon_and_told_apart(change: Stream, kind: str, within: int, seed: int) -> None:
    alarm = after(change, seed=seed)
    assert alarm is not None
    assert 300 < alarm.image <= 300 + within
    assert abs(alarm.since - 301) <= 30
    assert alarm.kind == kind
    assert alarm.odds >= 1
    assert alarm.images == alarm.image + REFINING - alarm.since + 1


def test_a_change_before_the_first_image_is_found_sooner() -> None:
    alarms = [after(lambda rng, n: rng.normal(2, 1, n), before=before, seed=4) for before in (0, 300)]
    assert alarms[0] is not None
    assert alarms[1] is not None
    assert alarms[0].image < alarms[1].image - 300
    assert alarms[0].since == 1


def test_expected_anomalies_are_no_alarm_and_more_of_them_are() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=400), MonitorConfig(expected_anomalies=0.05))
    assert watch(monitor, rng.normal(size=1500) + 9 * (rng.random(1500) < 0.05)) is None
    alarm = watch(monitor, rng.normal(size=150) + 9 * (rng.random(150) < 0.4))
    assert alarm is not None
    assert alarm.kind == "anomalies"
    strict = DriftMonitor(rng.normal(size=400))
    assert watch(strict, rng.normal(size=1500) + 9 * (rng.random(1500) < 0.05)) is not None


def test_the_diagnosis_is_refined_and_then_settled() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=100))
    while not monitor.update(rng.normal(7)):
        pass
    first = monitor.alarm
    assert not monitor.settled
    watch(monitor, rng.normal(7, size=REFINING))
    assert monitor.settled
    settled = monitor.alarm
    assert first is not None
    assert settled is not None
    assert (settled.image, settled.since) == (first.image, first.since) == (monitor.images - REFINING, 1)
    assert settled.images == first.images + REFINING
    assert settled.odds > first.odds
    assert watch(monitor, rng.normal(size=30)) == settled


def test_the_sentences() -> None:
    facts = {
        "quantity": "score",
        "image": 132,
        "since": 121,
        "images": 12,
        "reference_median": 9.3,
        "median": 14.12,
        "high_share": 0.75,
    }
    moved = Alarm(kind="conditions", odds=5000, **facts)
    assert moved.describe() == (
        "alarm at image 132: since about image 121 the conditions changed (camera, light or product): the bulk of the "
        "scores moved, median score 9.3 -> 14.12, 75% of 12 images score above 95% of the earlier ones (odds above "
        "1000:1)"
    )
    assert "since about image 121 probably there are more anomalies: 75% of 12 images" in (
        Alarm(kind="anomalies", odds=3, **facts).describe()
    )
    light = Alarm(kind="conditions", odds=3, **{**facts, "quantity": "brightness"})
    assert light.describe() == (
        "alarm at image 132: since about image 121 the brightness moved, median brightness 9.3 -> 14.12"
    )


def test_what_is_no_score_tells_of_conditions_only() -> None:
    rng = np.random.default_rng(0)
    monitor = DriftMonitor(rng.normal(size=200), MonitorConfig(quantity="brightness"))
    alarm = watch(monitor, rng.normal(size=200) + 9 * (rng.random(200) < 0.4))
    assert alarm is not None
    assert alarm.kind == "conditions"


@given(st.integers(0, 120), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_a_monitor_that_was_kept_goes_on_as_if_it_had_not_been(cut: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, stream = rng.normal(size=30), np.concatenate([rng.normal(size=60), rng.normal(4, size=60)])
    config = MonitorConfig(false_alarm_rate=0.05, horizon=500, seed=seed)
    whole, part = DriftMonitor(reference, config), DriftMonitor(reference, config)
    watch(whole, stream)
    watch(part, stream[:cut])
    again = DriftMonitor.from_dict(json.loads(json.dumps(part.to_dict())))
    assert again.alarm == part.alarm
    watch(again, stream[cut:])
    assert (again.alarm, again.images, again.config) == (whole.alarm, whole.images, whole.config)
    assert again.statistic == whole.statistic
    assert again.reference_images == 30


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format", 9),
        ("bets", []),
        ("scores", [1.0] * 3),
        ("scores", ["x"] * 30),
        ("raised", [1]),
        ("config", {"rate": 1}),
        ("evidence", None),
    ],
)
def test_an_altered_state_is_refused(field: str, value: object) -> None:
    monitor = DriftMonitor(np.arange(20))
    with pytest.raises(AdtrError):
        DriftMonitor.from_dict({**monitor.to_dict(), field: value})
    with pytest.raises(AdtrError, match="begin anew"):
        DriftMonitor.from_dict({})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("false_alarm_rate", 0.0),
        ("false_alarm_rate", 0.6),
        ("false_alarm_rate", math.nan),
        ("horizon", 0),
        ("expected_anomalies", -0.1),
        ("expected_anomalies", 0.2),
        ("seed", -1),
    ],
)
def test_values_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        MonitorConfig(**{field: value})


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_must_be_finite(score: float) -> None:
    with pytest.raises(DataError, match="finite"):
        DriftMonitor(np.arange(20)).update(score)
    with pytest.raises(DataError, match="finite"):
        DriftMonitor([*range(20), score])
    with pytest.raises(DataError, match="9 reference scores are too few; at least 10"):
        DriftMonitor(range(9))

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adtr.calibration import ROUNDING, Calibration, Thresholds, exceeds, split_holdout
from adtr.config import CalibrationConfig
from adtr.errors import ConfigError, DataError

RATES = st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5])
SCORES = st.lists(st.floats(0, 100, width=32), min_size=1, max_size=60)


def config(**values: float) -> CalibrationConfig:
    fields = {"holdout": 0.2, "holdout_min": 10, "folds": 0, "false_alarm_rate": 0.01, "unsure_rate": 0.0}
    return CalibrationConfig(**{**fields, **values})  # type: ignore[arg-type]


def calibrate(image_scores: NDArray[np.floating], pixel_maxima: NDArray[np.floating], rate: float) -> Thresholds:
    scores, maxima = (tuple(np.sort(values).tolist()) for values in (image_scores, pixel_maxima))
    return Calibration(image_scores=scores, pixel_maxima=maxima).thresholds(rate)


def brute_force(scores: list[float], rate: float) -> float:
    """The smallest held-out score that a new exchangeable one exceeds with at most the rate; else the largest."""
    n = len(scores)
    for candidate in sorted(scores):
        # The new score has n + 1 equally likely ranks; above the candidate lie those of the larger scores, and one.
        larger = n - sum(s <= candidate for s in scores)
        if (larger + 1) / (n + 1) <= rate + 1e-12:
            return candidate
    return max(scores)


@given(SCORES, RATES)
@settings(deadline=None)
def test_the_threshold_is_the_conformal_one(scores: list[float], rate: float) -> None:
    array = np.array(scores, np.float32)
    assert calibrate(array, array, rate).image == pytest.approx(brute_force(array.tolist(), rate), abs=0)


@pytest.mark.parametrize(
    ("images", "rate", "rank"),
    [
        (9, 0.1, 9),
        (10, 0.1, 10),
        (19, 0.1, 18),
        (20, 0.1, 19),
        (99, 0.01, 99),
        (199, 0.01, 198),
        (3, 0.5, 2),
        (1, 0.5, 1),
    ],
)
def test_known_ranks(images: int, rate: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, images + 1))
    thresholds = calibrate(scores, scores * 10, rate)
    assert (thresholds.image, thresholds.pixel) == (rank, 10 * rank)
    assert thresholds.promised_rate == pytest.approx(1 - rank / (images + 1))


def test_images_and_pixels_have_thresholds_of_their_own() -> None:
    scores = np.arange(19.0)
    thresholds = calibrate(scores, scores**2, 0.1)
    assert (thresholds.image, thresholds.pixel) == (17, 17**2)
    assert type(thresholds.image) is type(thresholds.pixel) is float


@given(SCORES, RATES)
@settings(deadline=None)
def test_the_promise_is_honest(scores: list[float], rate: float) -> None:
    n = len(scores)
    promised = calibrate(np.array(scores), np.array(scores), rate).promised_rate
    assert promised >= 1 / (n + 1) - 1e-12
    assert promised <= max(rate, 1 / (n + 1)) + 1e-12
    assert promised > min(rate, 0.5) - 1 / (n + 1) - 1e-12  # no stricter than it must be


@given(st.integers(0, 2**31), st.integers(1, 40), RATES, st.sampled_from(["continuous", "ties", "constant"]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_new_good_images_exceed_the_threshold_at_most_as_often_as_promised(
    seed: int, images: int, rate: float, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    draw = {
        "continuous": lambda shape: rng.gamma(2, 1, shape),
        "ties": lambda shape: rng.integers(0, 5, shape).astype(float),
        "constant": np.ones,
    }[kind]
    trials = 3000
    held_out, new = draw((trials, images)), draw(trials)
    alarms = 0
    for old, score in zip(held_out, new, strict=True):
        thresholds = calibrate(old, old, rate)
        alarms += bool(exceeds(score, thresholds.image))
    promised = thresholds.promised_rate
    assert alarms / trials <= promised + 4.5 * math.sqrt(promised * (1 - promised) / trials)
    if kind == "continuous":
        assert alarms / trials >= promised - 4.5 * math.sqrt(promised * (1 - promised) / trials)


def test_only_strictly_above_the_threshold_is_anomalous() -> None:
    assert not exceeds(2.0, 2.0)
    assert exceeds(np.nextafter(2.0, 3.0), 2.0)
    assert exceeds(np.array([1.0, 2.0, 3.0]), 2.0).tolist() == [False, False, True]


def test_tied_scores_raise_no_alarm() -> None:
    same = np.full(20, 3.5, np.float32)
    threshold = calibrate(same, same, 0.5).image
    assert not exceeds(same, threshold).any()


def describe(scores: int, rate: float) -> str:
    values = np.arange(1.0, scores + 1)
    return calibrate(values, values, rate).describe()


def test_the_sentence_tells_what_is_promised_and_what_would_be_needed() -> None:
    assert describe(199, 0.01) == (
        "threshold 198 from 199 held-out good images; promises a false-alarm rate of at most 1.0%"
    )
    assert describe(10, 0.01).endswith("at most 9.1% (for 1.0% hold out at least 99)")
    assert describe(10, 0.0).endswith("at most 9.1% (no number of images promises 0)")


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.3])
def test_the_number_of_images_asked_for_is_just_enough(rate: float) -> None:
    needed = int(describe(1, rate).rsplit("least ", 1)[1].rstrip(")"))
    enough, too_few = (calibrate(np.arange(n), np.arange(n), rate).promised_rate for n in (needed, needed - 1))
    assert enough <= rate + 1e-12 < too_few


@given(st.integers(3, 400), st.floats(0, 0.9), st.integers(1, 20), st.integers(0, 2**31 - 1))
@settings(deadline=None)
def test_the_split_is_a_partition(images: int, share: float, least: int, seed: int) -> None:
    options = config(holdout=share, holdout_min=least)
    if images - max(least, round(share * images)) < 2:
        with pytest.raises(DataError, match=r"^.* good images are too few: .*$"):
            split_holdout(images, options, seed)
        return
    training, held_out = split_holdout(images, options, seed)
    assert sorted([*training, *held_out]) == list(range(images))
    assert len(training) >= 2
    assert len(held_out) == max(least, round(share * images))
    assert (np.diff(training) > 0).all()
    assert (np.diff(held_out) > 0).all()


def test_the_split_depends_on_the_seed_alone() -> None:
    def held_out(seed: int) -> list[int]:
        np.random.seed(seed + 7)  # noqa: NPY002 - the global state must not matter
        return split_holdout(100, config(), seed)[1].tolist()

    assert held_out(3) == held_out(3)
    assert held_out(3) != held_out(4)
    np.random.seed(0)  # noqa: NPY002
    first = split_holdout(100, config(), 3)[1].tolist()
    assert first == held_out(3)


def test_too_few_images_say_what_to_do() -> None:
    with pytest.raises(DataError, match=r"11 good images are too few: 10 are held out.*lower --holdout-min"):
        split_holdout(11, config(), 0)
    training, held_out = split_holdout(12, config(), 0)
    assert (len(training), len(held_out)) == (2, 10)


def test_thresholds_are_frozen() -> None:
    thresholds = calibrate(np.ones(3), np.ones(3), 0.1)
    assert isinstance(thresholds, Thresholds)
    with pytest.raises(AttributeError):
        thresholds.image = 0.0  # type: ignore[misc]


@given(SCORES, RATES, st.floats(0, 110, width=32))
@settings(deadline=None)
def test_a_score_exceeds_the_threshold_just_where_its_p_value_keeps_the_promise(
    scores: list[float], rate: float, new: float
) -> None:
    calibration = Calibration(image_scores=tuple(sorted(scores)), pixel_maxima=tuple(sorted(scores)))
    thresholds = calibration.thresholds(rate)
    assert bool(exceeds(new, thresholds.image)) == (calibration.p_value(new) <= thresholds.promised_rate + 1e-12)


@given(SCORES, st.floats(0, 110, width=32))
@settings(deadline=None)
def test_the_p_value_is_the_share_of_scores_at_least_as_high(scores: list[float], new: float) -> None:
    calibration = Calibration(image_scores=tuple(sorted(scores)), pixel_maxima=tuple(sorted(scores)))
    literal = (sum(score >= new for score in scores) + 1) / (len(scores) + 1)
    assert calibration.p_value(new) == pytest.approx(literal)
    assert calibration.lowest_rate <= calibration.p_value(new) <= 1


def test_p_values_of_good_images_are_as_rare_as_they_say() -> None:
    rng = np.random.default_rng(0)
    values = []
    for _ in range(4000):
        scores = np.sort(rng.gamma(2, 1, 30))
        calibration = Calibration(image_scores=tuple(scores.tolist()), pixel_maxima=tuple(scores.tolist()))
        values.append(calibration.p_value(rng.gamma(2, 1)))
    for rate in (0.05, 0.1, 0.2, 0.5):
        assert np.mean(np.array(values) <= rate) <= rate + 4.5 * math.sqrt(rate * (1 - rate) / 4000)
    assert np.mean(np.array(values) <= 0.5) == pytest.approx(15 / 31, abs=0.04)


def test_severity_counts_robust_deviations_above_a_typical_good_score() -> None:
    scores = (1.0, 2.0, 3.0, 4.0, 100.0)
    calibration = Calibration(image_scores=scores, pixel_maxima=scores)
    assert calibration.severity(3.0) == calibration.severity(0.5) == 0
    assert calibration.severity(3 + 1.4826) == pytest.approx(1)  # the median deviation is 1: the outlier counts no more
    assert Calibration(image_scores=(5.0,) * 4, pixel_maxima=(5.0,) * 4).severity(6.0) == pytest.approx(200)


@given(SCORES, RATES, st.floats(0, 110, width=32))
@settings(deadline=None)
def test_severity_knows_no_threshold(scores: list[float], rate: float, new: float) -> None:
    calibration = Calibration(image_scores=tuple(sorted(scores)), pixel_maxima=tuple(sorted(scores)))
    before = calibration.severity(new)
    calibration.thresholds(rate)
    assert calibration.severity(new) == before >= 0
    assert calibration.severity(new + 1) >= before


def test_unsure_lies_between_two_rates() -> None:
    scores = tuple(np.arange(1.0, 20))
    thresholds = Calibration(image_scores=scores, pixel_maxima=scores).thresholds(0.05, 0.2)
    assert (thresholds.unsure, thresholds.image) == (16, 19)
    assert [thresholds.verdict(score) for score in (16, 16.5, 19, 19.5)] == ["good", "unsure", "unsure", "anomalous"]
    assert thresholds.describe().endswith("; unsure above 16 (20.0%)")
    sure = Calibration(image_scores=scores, pixel_maxima=scores).thresholds(0.05)
    assert [sure.verdict(score) for score in (16.5, 19, 19.5)] == ["good", "good", "anomalous"]


def test_a_calibration_lies_above_the_scores_by_a_margin() -> None:
    scores, maps = np.array([3.0, 1.0, 2.0]), np.arange(12.0).reshape(3, 2, 2)
    calibration = Calibration.of(scores, maps)
    assert calibration.image_scores == pytest.approx([ROUNDING, 2 * ROUNDING, 3 * ROUNDING])
    assert calibration.pixel_maxima == pytest.approx([3 * ROUNDING, 7 * ROUNDING, 11 * ROUNDING])
    assert calibration.p_value(3.0) == 2 / 4


def test_a_calibration_needs_images() -> None:
    for scores, maxima in (((), ()), ((1.0,), (1.0, 2.0))):
        with pytest.raises(ValueError, match="a calibration needs"):
            Calibration(image_scores=scores, pixel_maxima=maxima)


def test_folds_let_every_image_serve_both() -> None:
    training, judged = split_holdout(7, config(folds=5), 0)
    assert training.tolist() == judged.tolist() == list(range(7))
    with pytest.raises(DataError, match="4 good images are too few for 5 folds"):
        split_holdout(4, config(folds=5), 0)


def test_folds_promise_nothing_proven() -> None:
    scores = tuple(np.arange(1.0, 100))
    text = Calibration(image_scores=scores, pixel_maxima=scores, folds=5).thresholds(0.01).describe()
    assert text == "threshold 99 from 99 good images in 5 folds; expects (no proof) a false-alarm rate of at most 1.0%"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"folds": 1}, "folds must be 0 or at least 2"),
        ({"unsure_rate": 0.01}, "unsure_rate 0.01 must be above false_alarm_rate 0.01, or 0"),
        ({"unsure_rate": 0.05, "false_alarm_rate": 0.1}, "must be above false_alarm_rate 0.1"),
    ],
)
def test_rates_that_contradict_each_other_are_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_a_choice_is_kept_whatever_the_shares_say() -> None:
    for seed in (0, 1):
        training, held_out = split_holdout(6, config(holdout=0.5, holdout_min=4), seed, [4, 1])
        assert (training.tolist(), held_out.tolist()) == ([0, 2, 3, 5], [1, 4])
    training, held_out = split_holdout(3, config(), 0, [2])
    assert (training.tolist(), held_out.tolist()) == ([0, 1], [2])


@pytest.mark.parametrize(("images", "chosen", "counts"), [(3, [1, 2], "1 good.* 2"), (5, [], "5 good.* 0")])
def test_a_choice_that_leaves_too_few_is_refused(images: int, chosen: list[int], counts: str) -> None:
    with pytest.raises(DataError, match=rf"^{counts} held-out ones are too few; at least 2 and 1 are needed$"):
        split_holdout(images, config(), 0, chosen)


def test_folds_hold_nothing_out() -> None:
    with pytest.raises(ConfigError, match=r"^5 folds hold nothing out, but 3 images are given to be held out; leave "):
        split_holdout(20, config(folds=5), 0, [1, 2, 3])

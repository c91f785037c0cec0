"""Plain words for what was found."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from darkness import SCORES, Darkness, write_parts

from adtr.report.gather import Findings, gather
from adtr.report.verdict import alarms_are_plausible, percent, summary, unknowns

Write = dict[str, Sequence[float]]


def findings(folder: Path, scores: Write = SCORES, *, masks: Sequence[str] = (), **options: float) -> Findings:
    parts = write_parts(folder / "parts", scores, masks=masks)
    return gather(Darkness(**options), parts, panels=0)  # type: ignore[arg-type]


def test_promise_and_observation_stand_side_by_side(tmp_path: Path) -> None:
    told = summary(findings(tmp_path))
    assert told.startswith("Of 9 good images the model called 2 anomalous: 22.2%, and the true share lies between 2.8%")
    assert "It promises at most 2.5%. The excess can be chance: the 39 good images" in told
    assert "Of 9 images with a defect it missed 3: 33.3%, and the true share lies between 7.5% and 70.1%" in told
    assert "Missed were dent (2 of 4), crack (1 of 5)." in told
    assert "unsure" not in told


def test_a_broken_promise_is_called_one(tmp_path: Path) -> None:
    broken = findings(tmp_path, {"good": [10.0] * 20 + [50.0] * 20})
    assert not alarms_are_plausible(broken)
    assert "That is more than chance explains" in summary(broken)


def test_a_kept_promise_is_called_one(tmp_path: Path) -> None:
    kept = findings(tmp_path, {"good": [10.0] * 20, "dent": [50.0]})
    assert alarms_are_plausible(kept)
    assert "The two agree." in summary(kept)
    assert "Of 1 image with a defect it missed 0: 0.0%" in summary(kept)


def test_unsure_verdicts_are_told_beside_the_misses(tmp_path: Path) -> None:
    assert "It called 1 of those 3 unsure" in summary(findings(tmp_path, unsure_rate=0.1))


def test_folds_promise_nothing(tmp_path: Path) -> None:
    folded = findings(tmp_path, folds=5)
    assert "It expects at most" in summary(folded)
    assert any("expected, not promised" in sentence for sentence in unknowns(folded))


@pytest.mark.parametrize(
    ("scores", "told", "unknown"),
    [
        ({"dent": [50.0]}, "no good image was tested. It promises one on at most 2.5%", "Without good test images"),
        ({"good": [10.0]}, "no image of a defect was tested", "Without images of defects"),
    ],
)
def test_what_was_not_tested_is_said(scores: Write, told: str, unknown: str, tmp_path: Path) -> None:
    half = findings(tmp_path, scores)
    assert told in summary(half)
    assert unknown in unknowns(half)[0] + unknowns(half)[1]


def test_few_images_and_missing_masks_are_named(tmp_path: Path) -> None:
    some = " ".join(unknowns(findings(tmp_path, masks=["crack"])))
    assert "9 good images are few: with 2 false alarms, a true share of 60.0% is possible." in some
    assert "Fewer than 30 images show crack, dent" in some
    assert "Of 4 images with a defect nobody marked where it is" in some
    none = " ".join(unknowns(findings(tmp_path / "none")))
    assert "whether the model points at them was not measured" in none


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        (
            [20.0, 21, 22, 23, 24, 22, 23],
            "score higher on the whole than those that set the threshold (rank-sum test, p =",
        ),
        ([5.0, 6, 6, 7, 5, 6, 7], "expect fewer false alarms"),
        ([6.0, 9, 12, 15, 18, 21, 24], None),
    ],
)
def test_good_images_unlike_the_held_out_ones_are_noticed(
    scores: list[float], said: str | None, tmp_path: Path
) -> None:
    told = " ".join(unknowns(findings(tmp_path / "sure", {"good": scores})))
    assert ("rank-sum" in told) == (said is not None)
    assert said is None or said in told
    assert "rank-sum" not in " ".join(unknowns(findings(tmp_path / "folds", {"good": scores}, folds=5)))


def test_many_images_leave_little_to_say(tmp_path: Path) -> None:
    many = findings(tmp_path, {"good": range(30), "dent": [50.0] * 30}, masks=["dent"])
    assert len(unknowns(many)) == 1


def test_a_rate_that_cannot_be_promised_is_told(tmp_path: Path) -> None:
    parts = write_parts(tmp_path / "parts", SCORES)
    detector = Darkness()
    detector.set_rates(0.01)
    told = " ".join(unknowns(gather(detector, parts, panels=0)))
    assert "A rate of 1.0% was asked for; 39 good images that set the threshold cannot promise less than 2.5%" in told


def test_small_shares_keep_their_digits() -> None:
    assert [percent(rate) for rate in (0, 0.0004, 0.01, 1)] == ["0.0%", "0.040%", "1.0%", "100.0%"]

"""A report's findings in plain words: what was observed, what was promised, and what nobody knows yet."""

from __future__ import annotations

from adtr.decisions import Proportion, plausible_alarms
from adtr.report.gather import Findings

FEW = 30
"""With fewer images an interval is so wide that it decides little."""
UNLIKELY = 0.01
"""A p-value below which two sets of images are said to differ."""
NAMED = 8
"""Defect types that a sentence lists, at most."""


def percent(rate: float) -> str:
    """A share in percent; small ones with more digits."""
    return f"{rate:.3%}" if 0 < rate < 0.001 else f"{rate:.1%}"


def summary(findings: Findings) -> str:
    """False alarms and misses, promised and observed, in one paragraph."""
    return " ".join([*_alarms(findings), *_misses(findings)])


def alarms_are_plausible(findings: Findings) -> bool:
    """Whether the number of false alarms is one that a kept promise leads one to expect; not too many of them."""
    observed = findings.decisions.false_alarms
    _, most = plausible_alarms(findings.thresholds.promised_rate, findings.thresholds.images, observed.total)
    return observed.count <= most


def _alarms(findings: Findings) -> list[str]:
    thresholds, observed = findings.thresholds, findings.decisions.false_alarms
    promise = "expects" if thresholds.folds else "promises"
    rate = percent(thresholds.promised_rate)
    if not observed.total:
        unseen = "How often the model raises a false alarm was not observed: no good image was tested."
        return [unseen, f"It {promise} one on at most {rate} of good images."]
    good = _count(observed.total, "good image")
    sentences = [
        f"Of {good} the model called {observed.count} anomalous: {_share(observed)}.",
        f"It {promise} at most {rate}.",
    ]
    if not alarms_are_plausible(findings):
        sentences.append(
            "That is more than chance explains: these good images are not like those that set the threshold. Look at "
            "the false alarms below; where those parts are truly good, fit the model anew with such images too."
        )
    elif observed.count > thresholds.promised_rate * observed.total:
        sentences.append(
            f"The excess can be chance: the {thresholds.images} good images that set the threshold are a sample too."
        )
    else:
        sentences.append("The two agree.")
    return sentences


def _misses(findings: Findings) -> list[str]:
    missed = findings.decisions.missed
    if not missed.total:
        return ["How many defects it misses was not observed: no image of a defect was tested."]
    sentences = [f"Of {_count(missed.total, 'image')} with a defect it missed {missed.count}: {_share(missed)}."]
    per_type = {name: of for name, of in findings.decisions.missed_per_type.items() if of.count}
    if len(findings.decisions.missed_per_type) > 1 and per_type:
        worst = sorted(per_type, key=lambda name: -(per_type[name].rate or 0))
        shares = [f"{name} ({per_type[name].count} of {per_type[name].total})" for name in worst[:NAMED]]
        more = f" and {len(worst) - NAMED} more types" if len(worst) > NAMED else ""
        sentences.append(f"Missed were {', '.join(shares)}{more}.")
    unsure = sum(image.verdict == "unsure" for image in findings.anomalous)
    if unsure:
        sentences.append(f"It called {unsure} of those {missed.count} unsure, which leaves them to somebody's eyes.")
    return sentences


def unknowns(findings: Findings) -> list[str]:
    """What the test cannot tell, a sentence each; the least known first."""
    thresholds, decisions = findings.thresholds, findings.decisions
    sentences = []
    if not decisions.false_alarms.total:
        sentences.append(
            "Without good test images nothing tells false alarms, AUROC or average precision. Good images that were "
            "not learned from can be added to test/good."
        )
    elif decisions.false_alarms.total < FEW:
        sentences.append(_few(decisions.false_alarms, "good images", "false alarms"))
    sentences += _likeness(findings)
    if not decisions.missed.total:
        sentences.append(
            "Without images of defects nothing tells what the model finds. A folder of each kind of defect can be "
            "added beside the good images."
        )
    elif decisions.missed.total < FEW:
        sentences.append(_few(decisions.missed, "images with a defect", "misses"))
    rare = [name for name, of in decisions.missed_per_type.items() if of.total < FEW]
    if len(decisions.missed_per_type) > 1 and rare:
        which = ", ".join(rare) if len(rare) <= NAMED else f"{len(rare)} types"
        sentences.append(f"Fewer than {FEW} images show {which}: mind the intervals in the table.")
    if thresholds.folds:
        sentences.append(
            f"The false-alarm rate is expected, not promised: the threshold comes from {thresholds.images} good images "
            f"in {thresholds.folds} folds, which proves nothing."
        )
    if thresholds.promised_rate > thresholds.false_alarm_rate + 1e-12:
        sentences.append(
            f"A rate of {percent(thresholds.false_alarm_rate)} was asked for; {thresholds.images} good images that set "
            f"the threshold cannot promise less than {percent(findings.calibration.lowest_rate)}."
        )
    unmarked = sum(image.sample.mask is None for image in findings.anomalous)
    if unmarked and unmarked == decisions.missed.total:
        sentences.append("Nobody marked where the defects are; whether the model points at them was not measured.")
    elif unmarked:
        sentences.append(
            f"Of {_count(unmarked, 'image')} with a defect nobody marked where it is; the measures of pixels leave "
            f"{'it' if unmarked == 1 else 'them'} out."
        )
    if findings.skipped:
        sentences.append(f"{_count(len(findings.skipped), 'image')} could not be read and count nowhere; see Data.")
    sentences.append(
        "All this holds for images like those tested, as long as part, camera and light stay as they are; and for "
        "defects like those tested."
    )
    return sentences


def _likeness(findings: Findings) -> list[str]:
    """Whether good test images are like the held-out ones, which is what every promise takes for granted."""
    from scipy.stats import mannwhitneyu

    good, held_out = [image.score for image in findings.good], findings.calibration.image_scores
    if not good or findings.thresholds.folds:
        return []
    test = mannwhitneyu(good, held_out)
    if test.pvalue >= UNLIKELY:
        return []
    where, what = ("higher", "more") if test.statistic > len(good) * len(held_out) / 2 else ("lower", "fewer")
    told = (
        f"The good test images score {where} on the whole than those that set the threshold (rank-sum test, p = "
        f"{test.pvalue:.1g}). They do not seem alike, so expect {what} false alarms than promised on images like "
        "the tested ones."
    )
    return [told]


def _few(observed: Proportion, images: str, what: str) -> str:
    _, high = observed.interval
    return (
        f"{observed.total} {images} are few: with {observed.count} {what}, a true share of {percent(high)} is possible."
    )


def _share(observed: Proportion) -> str:
    low, high = observed.interval
    return (
        f"{percent(observed.rate or 0)}, and the true share lies between {percent(low)} and {percent(high)} with 95 % "
        "confidence"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"

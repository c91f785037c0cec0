"""Drift: whether the scores of a stream still look like those of the reference, and if not, why.

Each new score is ranked among the reference and all earlier scores of the stream. While all of them are exchangeable,
these ranks, with ties broken at random, are independent and uniform whatever the distribution of the scores and however
small the reference (Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line", 2003). Ranks against a fixed
reference are not: its own chance deviations add up to a false alarm. Bets against uniformity multiply to martingales;
the sum of those that start at each image (Shiryaev-Roberts; Vovk et al., "Retrain or not retrain", 2021) finds a late
change as soon as an early one.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from adtr.errors import AdtrError, ConfigError, DataError

Kind = Literal["conditions", "anomalies"]

FORMAT = 1
LEAST_REFERENCE = 10
REFINING = 30
"""Images after the alarm that refine its diagnosis."""


@dataclass(frozen=True, kw_only=True)
class MonitorConfig:
    """What is promised, and what is taken for granted.

    Raises:
        ConfigError: a value out of its range.
    """

    false_alarm_rate: float = 0.01
    """Greatest probability of any alarm within `horizon` images while nothing changes, above 0, at most 0.5."""
    horizon: int = 10_000
    """Images that the false-alarm rate is stated for, at least 1."""
    expected_anomalies: float = 0.0
    """Share of the stream that may be anomalous without an alarm, from 0 to 0.1."""
    seed: int = 0
    """Of the random numbers that break ties, at least 0."""
    quantity: str = "score"
    """What is watched. Only the score tells more anomalies from other conditions; all else tells of the latter."""

    def __post_init__(self) -> None:
        if not 0 < self.false_alarm_rate <= 0.5:
            raise ConfigError(f"false_alarm_rate must be above 0 and at most 0.5, not {self.false_alarm_rate}")
        if self.horizon < 1:
            raise ConfigError(f"horizon must be at least 1, not {self.horizon}")
        if not 0 <= self.expected_anomalies <= 0.1:
            raise ConfigError(f"expected_anomalies must be from 0 to 0.1, not {self.expected_anomalies}")
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, not {self.seed}")

    @property
    def threshold(self) -> float:
        """The statistic at which the alarm is raised.

        The statistic starts at `horizon`, and its mean grows by 1 with each image, so that by Doob's inequality it
        reaches c within n images with probability at most (horizon + n) / c.
        """
        return 2 * self.horizon / self.false_alarm_rate


@dataclass(frozen=True)
class Bet:
    """A density of the p-value, and what it would mean if it were the true one.

    With p <= `tail` the image is in the upper tail of the scores; above, (p - tail) / (1 - tail) is its place in the
    bulk, from 0 for the high scores to 1 for the low ones. Where anomalies are the only deviation they are in the tail,
    and the place in the bulk stays uniform, however many they are.
    """

    kind: Kind
    tail: float
    share: float | None = None
    """Of the images that are in the tail; None: as many as in the reference."""
    rise: float = 1.0
    """k of the bulk's density k v**(k-1): below 1 where scores rise."""
    fall: float = 1.0
    """k of the bulk's density k (1-v)**(k-1): below 1 where scores fall."""

    def log_factor(self, p: float, expected_anomalies: float) -> float:
        """Logarithm of the density at p in (0, 1), against the one while nothing changes.

        Where the expected anomalies score above all good images, the tail holds at most the share `expected`, and the
        factor's mean is at most 1.
        """
        expected = self.tail + (1 - self.tail) * expected_anomalies
        if p <= self.tail:
            return 0.0 if self.share is None else math.log(max(self.share, expected) / expected)
        factor = 0.0 if self.share is None else math.log((1 - max(self.share, expected)) / (1 - expected))
        place = (p - self.tail) / (1 - self.tail)
        if self.rise != 1:
            factor += math.log(self.rise) + (self.rise - 1) * math.log(place)
        if self.fall != 1:
            factor += math.log(self.fall) + (self.fall - 1) * math.log1p(-place)
        return factor


BETS = (
    Bet("anomalies", tail=0.01, share=0.1),
    Bet("anomalies", tail=0.01, share=0.3),
    Bet("anomalies", tail=0.05, share=0.2),
    Bet("anomalies", tail=0.05, share=0.4),
    Bet("anomalies", tail=0.2, share=0.5),
    Bet("conditions", tail=0.1, rise=0.5),
    Bet("conditions", tail=0.1, share=0.3, rise=0.6),
    Bet("conditions", tail=0.1, share=0.6, rise=0.5),
    Bet("conditions", tail=0.1, share=0.95, rise=0.5),
    Bet("conditions", tail=0.02, share=0.95, rise=0.5),
    Bet("conditions", tail=0.1, fall=0.5),
    Bet("conditions", tail=0.1, fall=0.2),
)
"""Each has the same share of the stake. More than half of the images in the tail are no longer taken for anomalies."""


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """That something changed, since when, and what it looks like."""

    quantity: str
    """What was watched."""
    image: int
    """The image of the stream that raised the alarm, counted from 1."""
    since: int
    """The first image after the change, estimated."""
    kind: Kind
    """"conditions": camera, light or product changed, all scores moved; "anomalies": more images score high."""
    odds: float
    """How many times likelier the scores are under this kind of change than under the other."""
    images: int
    """Since the change, that the diagnosis rests on."""
    reference_median: float
    """Of the scores before the change."""
    median: float
    """Of the scores since the change."""
    high_share: float
    """Of the images since the change that score above 95 % of those before."""

    def describe(self) -> str:
        """One sentence for people."""
        medians = f"median {self.quantity} {self.reference_median:.4g} -> {self.median:.4g}"
        if self.quantity != "score":
            return f"alarm at image {self.image}: since about image {self.since} the {self.quantity} moved, {medians}"
        high = f"{self.high_share:.0%} of {self.images} images score above 95% of the earlier ones"
        if self.kind == "conditions":
            cause = (
                f"the conditions changed (camera, light or product): the bulk of the scores moved, {medians}, {high}"
            )
        else:
            cause = f"there are more anomalies: {high}, the others score as before, {medians}"
        trust = f"odds {self.odds:.0f}:1" if self.odds < 1000 else "odds above 1000:1"
        certainty = "" if self.odds >= 20 else "probably "
        return f"alarm at image {self.image}: since about image {self.since} {certainty}{cause} ({trust})"


class DriftMonitor:
    """Watches a stream of image scores and raises one alarm.

    While the reference and the stream are exchangeable, the probability of an alarm within the first `horizon` images
    is at most `false_alarm_rate`, and within n images at most `false_alarm_rate` * (1 + n / horizon) / 2. Half of it is
    spent on changes before the first image. The same holds where up to `expected_anomalies` of the stream are anomalous
    and score above all that is good.

    Args:
        reference: scores of images that training never saw, such as those that set a model's thresholds; at least 10.
        config: what is promised.

    Attributes:
        images: of the stream, seen so far.

    Raises:
        DataError: too few scores, or one that is no finite number.
    """

    def __init__(self, reference: Iterable[float], config: MonitorConfig | None = None) -> None:
        self.config = config or MonitorConfig()
        self._scores = [_finite(score) for score in reference]
        if len(self._scores) < LEAST_REFERENCE:
            raise DataError(f"{len(self._scores)} reference scores are too few; at least {LEAST_REFERENCE} are needed")
        self._sorted = sorted(self._scores)
        self._reference = len(self._scores)
        self._evidence = [float(self.config.horizon)] * len(BETS)
        self._gains = [0.0] * len(BETS)
        self._starts = [0] * len(BETS)
        self._raised: tuple[int, int] | None = None
        self._alarm: Alarm | None = None
        self.images = 0

    @property
    def reference_images(self) -> int:
        """Scores that the monitor began with."""
        return self._reference

    @property
    def statistic(self) -> float:
        """The evidence of a change; the alarm is raised at `config.threshold`."""
        return sum(self._evidence) / len(BETS)

    @property
    def alarm(self) -> Alarm | None:
        """The alarm, once it is raised; the next `REFINING` images refine its diagnosis, then it stays.

        What comes after an alarm needs a new monitor, with a reference of its own.
        """
        if self._alarm is None and self._raised is not None:
            self._alarm = self._diagnose(*self._raised)
        return self._alarm

    @property
    def settled(self) -> bool:
        """Whether the alarm will not change any more."""
        return self._raised is not None and self.images >= self._raised[0] + REFINING

    def update(self, score: float) -> bool:
        """Take the next score; whether there is an alarm.

        Raises:
            DataError: no finite number.
        """
        score = _finite(score)
        settled = self.settled
        self.images += 1
        if self._raised is None:
            p = self._p_value(score, self._sorted, self.images)
            bisect.insort(self._sorted, score)
            self._scores.append(score)
            self._bet(p)
            if self.statistic >= self.config.threshold:
                leading = max(range(len(BETS)), key=lambda i: self._evidence[i])
                self._raised = (self.images, self._starts[leading])
        elif not settled:
            self._scores.append(score)
            self._alarm = None
        return self._raised is not None

    def _p_value(self, score: float, ordered: Sequence[float], image: int) -> float:
        """Share of the scores that are at least as high, itself among them, ties broken at random; in (0, 1)."""
        above = len(ordered) - bisect.bisect_right(ordered, score)
        ties = len(ordered) - above - bisect.bisect_left(ordered, score) + 1
        # Seeded by the image's number, so that a monitor that was saved goes on as if it had not been.
        chance = np.random.default_rng((self.config.seed, image)).random()
        return min(max((above + ties * chance) / (len(ordered) + 1), 1e-12), 1 - 1e-12)

    def _bet(self, p: float) -> None:
        for i, bet in enumerate(BETS):
            gain = bet.log_factor(p, self.config.expected_anomalies)
            self._evidence[i] = (self._evidence[i] + 1) * math.exp(gain)
            if self._gains[i] <= 0:  # as in CUSUM: the change is where the run of gains began
                self._gains[i], self._starts[i] = 0.0, self.images - 1
            self._gains[i] += gain

    def _diagnose(self, image: int, start: int) -> Alarm:
        """Compare what the two kinds of bets would have won by now, against the scores before the change.

        Each bet is averaged over its beginnings from `start` on, which is only roughly where the change was; where the
        best bet would best have begun is the estimate.
        """
        before, since = self._scores[: self._reference + start], self._scores[self._reference + start :]
        ordered = sorted(before)
        places = [self._p_value(score, ordered, start + i + 1) for i, score in enumerate(since)]
        won: dict[Kind, list[NDArray[np.float64]]] = {"conditions": [], "anomalies": []}
        for bet in BETS:
            gains = np.array([bet.log_factor(p, self.config.expected_anomalies) for p in places])
            won[bet.kind].append(np.cumsum(gains[::-1])[::-1])
        evidence = {kind: _log_mean_exp(np.array(values)) for kind, values in won.items()}
        kind: Kind = "conditions"
        if self.config.quantity == "score" and evidence["anomalies"] > evidence["conditions"]:
            kind = "anomalies"
        shown = won[kind] if self.config.quantity == "score" else won["conditions"] + won["anomalies"]
        first = int(np.argmax(np.max(shown, axis=0)))
        before, since = before + since[:first], since[first:]
        high = np.quantile(before, 0.95)
        return Alarm(
            quantity=self.config.quantity,
            image=image,
            since=start + first + 1,
            kind=kind,
            odds=math.exp(min(abs(evidence["conditions"] - evidence["anomalies"]), 100)),
            images=len(since),
            reference_median=float(np.median(before)),
            median=float(np.median(since)),
            high_share=float(np.mean(np.array(since) > high)),
        )

    # Keeping it, so that a stream can be watched in parts.

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON values; `from_dict` goes on exactly where this monitor is."""
        return {
            "format": FORMAT,
            "config": asdict(self.config),
            "bets": [asdict(bet) for bet in BETS],
            "reference": self._reference,
            "images": self.images,
            "raised": self._raised,
            "scores": self._scores,
            "evidence": self._evidence,
            "gains": self._gains,
            "starts": self._starts,
        }

    @classmethod
    def from_dict(cls, state: dict[str, Any]) -> DriftMonitor:
        """The monitor of which `to_dict` told.

        Raises:
            AdtrError: the values are of another version, or of something else.
        """
        try:
            if state["format"] != FORMAT or state["bets"] != [asdict(bet) for bet in BETS]:
                raise AdtrError("the monitor was kept by another version of adtr; begin anew")
            scores, reference = list(state["scores"]), int(state["reference"])
            monitor = cls(scores[:reference], MonitorConfig(**state["config"]))
            monitor._scores += [_finite(score) for score in scores[reference:]]
            monitor._sorted = sorted(monitor._scores)
            monitor.images = int(state["images"])
            monitor._evidence, monitor._gains = list(map(float, state["evidence"])), list(map(float, state["gains"]))
            monitor._starts = list(map(int, state["starts"]))
            if state["raised"] is not None:
                image, start = map(int, state["raised"])
                monitor._raised = (image, start)
            monitor._check()
        except AdtrError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AdtrError(f"this is not the state of a monitor ({error}); begin anew") from error
        return monitor

    def _check(self) -> None:
        """Whether numbers that were read belong together.

        Raises:
            ValueError: they do not.
        """
        image, start = self._raised or (self.images, 0)
        kept = len(self._scores) - self._reference
        if (
            not 0 <= start <= image <= kept <= self.images
            or (self._raised is None and kept < self.images)
            or (self._raised is not None and start == kept)
            or any(len(values) != len(BETS) for values in (self._evidence, self._gains, self._starts))
            or not np.isfinite([*self._evidence, *self._gains]).all()
        ):
            raise ValueError("its numbers do not belong together")


def _finite(score: float) -> float:
    number = float(score)
    if not math.isfinite(number):
        raise DataError(f"a score must be a finite number, not {score}")
    return number


def _log_mean_exp(values: NDArray[np.float64]) -> float:
    largest = values.max()
    return float(largest + np.log(np.mean(np.exp(values - largest))))

"""Whether this machine repeats a training to the bit: a short one, twice, each time in a process of its own."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.config import Config
from adtr.errors import AdtrError, OnError

IMAGES, STEPS = 64, 10
"""Of the short training."""

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """What two short trainings with one configuration and one seed had in common."""

    images: int
    """That were embedded; a quarter of them was scored by the trained network, the others trained it."""
    steps: int
    numbers: int
    """Compared: features, weights, remembered patches, image scores and the maxima of score maps."""
    different: dict[str, int]
    """How many numbers of which kind differ in any bit; empty where none does."""
    largest_difference: float
    sha256: str
    """Of all numbers of the first training."""

    def describe(self) -> str:
        """One line for people."""
        what = f"two trainings of {self.steps} steps on {self.images} images, in processes of their own,"
        if not self.different:
            return f"verified: {what} agree in every bit of {self.numbers} numbers (SHA-256 {self.sha256[:12]})"
        counts = ", ".join(f"{count} {kind}" for kind, count in self.different.items())
        return f"{what} differ in {counts} of {self.numbers} numbers, by at most {self.largest_difference:.2g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def repeat(
    config: Config,
    sources: Sequence[object],
    *,
    device: str,
    backbone_weights: str | os.PathLike[str] | None,
    on_error: OnError = "raise",
) -> Repetition:
    """Train twice with the same configuration, seed and images, a few steps each, and compare all that comes of it.

    Args:
        config: of the training that is meant; the short one differs in its number of steps and in what it holds out.
        sources: good images, in any form that can be sent to another process; up to `IMAGES` of them are used.
        device: see `adtr.device.choose_device`.
        backbone_weights: see `adtr.model.backbones.create_backbone`.
        on_error: see `AnomalyDetector.fit`.

    Raises:
        DataError: too few images, or unreadable ones.
        AdtrError: a process was killed.
    """
    chosen = [sources[i] for i in np.unique(np.linspace(0, len(sources) - 1, IMAGES).astype(int))]
    short = config.override(epochs=STEPS, max_steps=STEPS, folds=0, holdout=0.25, holdout_min=2)
    runs = [_in_fresh_process(short, chosen, device, backbone_weights, on_error) for _ in range(2)]
    return compare(*(arrays for arrays, _ in runs), steps=runs[0][1])


def compare(first: Arrays, second: Arrays, *, steps: int) -> Repetition:
    """Bit by bit, the arrays of two calls of `short_fit`."""
    different: dict[str, int] = {}
    largest = 0.0
    digest = hashlib.sha256()
    for name in first:
        a, b = np.atleast_1d(first[name]), np.atleast_1d(second[name])
        digest.update(np.ascontiguousarray(a).data)
        kind = name.partition(".")[0]
        unequal = _bits(a) != _bits(b)
        if unequal.any():
            different[kind] = different.get(kind, 0) + int(unequal.sum())
            difference = np.abs(a.astype(np.float64) - b.astype(np.float64))[unequal]
            largest = max(largest, float(np.nan_to_num(difference, nan=np.inf).max()))
    return Repetition(
        images=len(first["features"]),
        steps=steps,
        numbers=sum(a.size for a in first.values()),
        different=different,
        largest_difference=largest,
        sha256=digest.hexdigest(),
    )


def short_fit(
    config: Config,
    sources: Sequence[object],
    device: str,
    backbone_weights: str | os.PathLike[str] | None,
    on_error: OnError,
) -> tuple[Arrays, int]:
    """Train, and give all numbers that came of it ("features", "weights.*", "scores.*"), and the steps."""
    from adtr.data.sources import GoodSources
    from adtr.learning.fit import fit
    from adtr.learning.learned import Reader

    learned = fit(
        config,
        GoodSources(sources),
        device=device,
        backbone_weights=backbone_weights,
        reader=Reader(on_error=on_error),
        keep_features=True,
        work_folder=None,
        resume=False,
    )
    assert learned.features is not None
    weights = {f"weights.{n}": t.detach().cpu().numpy() for n, t in learned.network.reconstruction.state_dict().items()}
    weights |= {f"weights.memory.{n}": t.cpu().numpy() for n, t in learned.network.memory.stored().items()}
    weights |= {f"weights.mahalanobis.{n}": t.cpu().numpy() for n, t in learned.network.mahalanobis.stored().items()}
    scores = {
        "scores.image": np.array(learned.calibration.image_scores),
        "scores.pixel": np.array(learned.calibration.pixel_maxima),
    }
    return {"features": learned.features.numpy(), **weights, **scores}, learned.metadata["training"]["steps"]


def _in_fresh_process(*arguments: Any) -> tuple[Arrays, int]:  # noqa: ANN401 - those of short_fit
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(short_fit, *arguments).result()
        except BrokenProcessPool as error:
            raise AdtrError(
                "the short training was killed, perhaps for want of memory; fit without --verify"
            ) from error


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(f"u{array.itemsize}")

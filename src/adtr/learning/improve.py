"""ADTR+ (Section 3.3): a fitted detector goes on to learn from anomalies."""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from adtr.calibration import Calibration
from adtr.config import Config, find_setting, settings
from adtr.data.anomalies import Anomalies, Anomaly, mask_notes, open_anomalies
from adtr.data.sources import external_sources
from adtr.data.synthetic import SYNTHETIC
from adtr.errors import ConfigError, DataError
from adtr.learning.good import gather_good
from adtr.learning.guard import FEW, Improvement, Judgement, judge
from adtr.learning.learned import Learned, Reader
from adtr.model.network import ADTR
from adtr.training.adaptation import (
    AnomalySource,
    GoodAndAnomalousImages,
    KnownAnomalies,
    SyntheticAnomalies,
    mask_on_grid,
)
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import score_cached
from adtr.training.gaussian import fit_gaussian
from adtr.training.loop import train
from adtr.training.remembering import remember

if TYPE_CHECKING:
    from adtr.detector import AnomalyDetector
    from adtr.tracking import Tracker

Labels = Literal["auto", "pixel", "image"]


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What to learn from; see `AnomalyDetector.improve`."""

    anomalies: str | os.PathLike[str] | Anomalies | None
    annotations: str | os.PathLike[str] | None
    labels: Labels
    synthetic: Sequence[str]
    external: object
    good: object

    def __post_init__(self) -> None:
        if self.anomalies is None and not self.synthetic and self.external is None:
            raise ConfigError("nothing to learn from: give labelled anomalies, a synthetic kind or external images")
        if self.labels not in ("auto", "pixel", "image"):
            raise ConfigError(f"labels must be auto, pixel or image, not {self.labels!r}")
        for kind in self.synthetic:
            if kind not in SYNTHETIC:
                raise ConfigError(f"unknown synthetic kind {kind!r} (known: {', '.join(SYNTHETIC)})")

    def labelled(self) -> tuple[list[Anomaly], list[str]]:
        """The labelled anomalies, and remarks on them.

        Raises:
            DataError: there are none in the folder, or masks are missing that `labels` asks for.
        """
        if self.anomalies is None:
            return [], []
        opened = self.anomalies
        if not isinstance(opened, Anomalies):
            opened = open_anomalies(opened, annotations=Path(self.annotations) if self.annotations else None)
        without = [sample.path for sample in opened.samples if sample.mask is None]
        if without and self.labels == "pixel":
            raise DataError(
                f"{len(without)} of {len(opened.samples)} anomalies have no mask, the first is {without[0]}; "
                "mark them, or let --labels be auto"
            )
        return opened.samples, list(opened.notes)


def improve(
    detector: AnomalyDetector,
    lesson: Lesson,
    config: Config,
    *,
    reader: Reader,
    work_folder: Path | None,
    resume: bool,
    tracker: Tracker | None = None,
) -> tuple[Learned, Improvement]:
    """Train a copy of a detector's network on, set its thresholds anew, and judge it before and after.

    Raises:
        DataError: no good images at hand, a mask is missing, or a folder holds nothing.
        ImageError: an unreadable image or mask.
        ModelError: the checkpoint belongs to another run.
    """
    started = time.perf_counter()
    seed, rate = config.training.seed, config.calibration.false_alarm_rate
    samples, notes = lesson.labelled()
    network = copy.deepcopy(detector.network_)
    network.config = config
    learned, held_out = hold_out(samples, config.improvement.anomaly_holdout, seed)

    known, judged, external = None, None, None
    if learned:
        known, learned, remarks = embed_anomalies(network, "labelled", learned, lesson.labels, reader)
        notes += remarks
    if held_out:
        judged, held_out, _ = embed_anomalies(network, "held-out", held_out, "image", reader)
    marked = {digest for source in (known, judged) if source for digest in source.hashes}
    good, remarks = gather_good(detector, network, lesson.good, marked, reader, pictures=bool(lesson.synthetic))
    notes += remarks
    if lesson.external is not None:
        external, remarks = embed_external(network, lesson.external, len(good.training), seed, reader)
        notes += remarks
    made = [SyntheticAnomalies(kind, network, good.picture, len(good.training)) for kind in lesson.synthetic]
    sources: list[AnomalySource] = [source for source in (known, *made, external) if source]

    def judgement() -> tuple[Judgement, Calibration]:
        scores, maps = score_cached(network, good.cache, good.held_out, reader.fabric)
        anomaly_scores = np.empty(0, np.float32)
        if judged:
            everything = torch.arange(len(judged))
            anomaly_scores, _ = score_cached(network, FeatureCache.of(judged.features), everything, reader.fabric)
        types = [sample.defect_type for sample in held_out]
        return judge(scores, maps, anomaly_scores, types, rate), Calibration.of(scores, maps)

    before, _ = judgement()
    origin = (detector.metadata_["training"]["losses"], detector.metadata_.get("improvements"))
    described = (origin, config, good.hashes, [source.fingerprint for source in sources])
    record = train(
        network,
        GoodAndAnomalousImages(GoodImages(network, good.cache, good.training), sources, config.improvement, seed),
        config.improvement_training(),
        device=network.feature_mean.device,
        fingerprint=hashlib.sha256(repr(described).encode()).hexdigest(),
        checkpoint=work_folder,
        resume=resume,
        progress=reader.progress,
        fabric=reader.fabric,
        tracker=tracker,
    )
    remember(network, good.cache, good.training, seed)  # some may be labelled as anomalies now, others new
    fit_gaussian(network, good.cache, good.training, seed)
    after, calibration = judgement()
    improvement = Improvement(
        sources=[source.name for source in sources],
        learned=dict(sorted(Counter(sample.defect_type for sample in learned).items())),
        with_mask=int(known.has_mask.sum()) if known else 0,
        external=len(external) if external else 0,
        before=before,
        after=after,
        hashes=known.hashes if known else [],
        losses=record.losses,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
    metadata = {
        **detector.metadata_,
        "data": {**detector.metadata_["data"], **good.record(), "earlier_hashes": _earlier(detector, good.hashes)},
        "improvements": [*detector.metadata_.get("improvements", []), improvement.to_dict()],
    }
    features = good.cache.features[: len(good.cache)] if detector.keeps_features_ else None
    return Learned(network=network, calibration=calibration, metadata=metadata, features=features), improvement


def _earlier(detector: AnomalyDetector, hashes: Sequence[str]) -> list[str]:
    """Hashes of good images that the network learned from once, and that are not among the present ones."""
    return sorted(detector.learned_hashes()[0].difference(hashes))


OF_THE_FIT = ("holdout", "holdout_min", "folds", "precision")
"""Fields of the sections that `improve` reads, which it cannot change."""


def improved_config(config: Config, overrides: dict[str, Any]) -> Config:
    """The detector's configuration with changes that leave its network as it is.

    Raises:
        ConfigError: a field shapes the network, is unknown, or out of range.
    """
    for name in overrides:
        setting = find_setting(name)
        if f"improve_{setting.name}" in settings():
            raise ConfigError(f"{setting.name} belongs to fit; improve takes improve_{setting.name}")
        if setting.section not in ("training", "improvement", "calibration") or setting.name in OF_THE_FIT:
            value = config.flat()[setting.name]
            raise ConfigError(f"{setting.name} is {value} in this model and cannot change now; fit a new one")
    return config.override(**overrides)


def hold_out(samples: Sequence[Anomaly], share: float, seed: int) -> tuple[list[Anomaly], list[Anomaly]]:
    """Which of the labelled anomalies are learned from and which judge, type by type; none of a type with few."""
    learned: list[Anomaly] = []
    held_out: list[Anomaly] = []
    for name in sorted({sample.defect_type for sample in samples}):
        of_type = [sample for sample in samples if sample.defect_type == name]
        wanted = max(1, min(len(of_type) - 1, round(share * len(of_type))))
        held = wanted if share > 0 and len(of_type) >= FEW else 0
        order = np.random.default_rng(seed).permutation(len(of_type))
        held_out += [of_type[i] for i in np.sort(order[:held])]
        learned += [of_type[i] for i in np.sort(order[held:])]
    return learned, held_out


def embed_anomalies(
    network: ADTR, name: str, samples: list[Anomaly], labels: Labels, reader: Reader
) -> tuple[KnownAnomalies, list[Anomaly], list[str]]:
    """Features and grid masks of labelled images, those of them that could be read, and remarks on their masks."""
    embedded = reader.embed(network, [sample.path for sample in samples], stage=f"{name} anomalies")
    samples = [samples[i] for i in embedded.indices]
    grid = network.config.embedding.grid_size
    masks = torch.zeros(len(samples), grid[0] * grid[1])
    has_mask = torch.zeros(len(samples), dtype=torch.bool)
    shares: dict[Path, float] = {}
    for i, (sample, size) in enumerate(zip(samples, embedded.sizes, strict=True)):
        if labels == "image" or sample.mask is None:
            continue
        mask = sample.read_mask(size)
        shares[sample.path] = 0.0 if mask is None else float(mask.mean())
        if mask is not None:
            masks[i], has_mask[i] = mask_on_grid(mask, grid), True
    features = embedded.cache.features[: len(samples)]
    return KnownAnomalies(name, network, features, masks, has_mask, embedded.hashes), samples, mask_notes(shares)


def embed_external(
    network: ADTR, images: object, wanted: int, seed: int, reader: Reader
) -> tuple[KnownAnomalies, list[str]]:
    """As many images of an irrelevant data set as there are good ones, or all of a smaller one with a remark."""
    sources = external_sources(images)
    notes = []
    if len(sources) < wanted:
        notes.append(f"the external data set has {len(sources)} images for {wanted} good ones; each is used more often")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sources))[:wanted])
    embedded = reader.embed(network, [sources[i] for i in chosen], stage="external images")
    features = embedded.cache.features[: len(embedded.cache)]
    masks, has_mask = torch.zeros(features.shape[:2]), torch.zeros(len(features), dtype=torch.bool)
    return KnownAnomalies("external", network, features, masks, has_mask, embedded.hashes), notes

"""ADTR+ (Section 3.3): a fitted detector goes on to learn from anomalies, and is judged before and after."""

from __future__ import annotations

import copy
import hashlib
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from adtr.calibration import calibrate_detector, exceeds
from adtr.config import Config, find_setting
from adtr.data.anomalies import Anomalies, Anomaly, mask_notes, open_anomalies
from adtr.data.folder import content_hash
from adtr.data.images import read_image, resize
from adtr.data.loading import SkippedImage
from adtr.data.sources import external_sources, training_sources
from adtr.data.synthetic import SYNTHETIC
from adtr.errors import ConfigError, DataError
from adtr.progress import Progress, Silent
from adtr.training.adaptation import (
    AnomalySource,
    GoodAndAnomalousImages,
    KnownAnomalies,
    SyntheticAnomalies,
    mask_on_grid,
)
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.features import embed_images, score_cached
from adtr.training.loop import train

if TYPE_CHECKING:
    from adtr.detector import AnomalyDetector
    from adtr.model.network import ADTR

Labels = Literal["auto", "pixel", "image"]

FEW = 4
"""Of a defect type with fewer images than this, none is held out."""
_MEMORY = 512 << 20
"""Bytes of decoded good images that are kept for the synthetic anomalies."""


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a detector does on images that it did not learn from."""

    good: int
    false_alarms: int
    """Good images above the threshold that the other half of them sets: each half judges the other."""
    anomalies: int
    missed: int
    """Anomalies at or below the threshold that all good images set."""
    image_auroc: float | None
    """None where no anomaly was held out."""
    missed_by_type: dict[str, int]
    anomalies_by_type: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What a detector learned anomalies from, and what came of it."""

    sources: list[str]
    """Where the anomalies came from: "labelled", the synthetic kinds, "external"."""
    learned: dict[str, int]
    """Labelled images that were learned from, by defect type."""
    with_mask: int
    """How many of them had masks."""
    external: int
    """Images of the external data set."""
    before: Judgement
    after: Judgement
    hashes: list[str]
    """Contents of the labelled images that were learned from."""
    losses: list[float]
    seconds: float
    notes: list[str]
    """Remarks for people."""

    @property
    def is_worse_on_good(self) -> bool:
        """Whether more good images raise an alarm than before."""
        return self.after.false_alarms > self.before.false_alarms

    @property
    def is_better(self) -> bool:
        """Not worse on good images, and no more anomalies missed; by AUROC where both counts are the same."""
        before, after = self.before, self.after
        if self.is_worse_on_good or after.missed > before.missed:
            return False
        if (after.false_alarms, after.missed) == (before.false_alarms, before.missed):
            return (after.image_auroc or 0) >= (before.image_auroc or 0)
        return True

    def describe(self) -> list[str]:
        """Lines for people: a small table, and a plain word where the new detector is worse."""
        b, a = self.before, self.after
        rows = [("", "before", "after"), ("false alarms", f"{b.false_alarms}/{b.good}", f"{a.false_alarms}/{a.good}")]
        if b.anomalies:
            rows.append(("missed defects", f"{b.missed}/{b.anomalies}", f"{a.missed}/{a.anomalies}"))
            rows += [
                (f"  {name}", f"{b.missed_by_type[name]}/{count}", f"{a.missed_by_type[name]}/{count}")
                for name, count in b.anomalies_by_type.items()
            ]
            rows.append(("image AUROC", f"{b.image_auroc:.4f}", f"{a.image_auroc:.4f}"))
        width = max(len(name) for name, _, _ in rows)
        lines = [f"{name:<{width}}  {before:>8}  {after:>8}" for name, before, after in rows]
        if not b.anomalies:
            lines.append(f"no labelled anomalies were held out (a type needs {FEW}), so missed defects are not known")
        if self.is_worse_on_good:
            lines.append("WORSE on good images: more of them raise an alarm than before")
        if a.missed > b.missed:
            lines.append("WORSE on the anomalies held out: more of them are missed than before")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def improve(
    detector: AnomalyDetector,
    anomalies: str | os.PathLike[str] | Anomalies | None,
    *,
    labels: Labels,
    synthetic: Sequence[str],
    external: object,
    good: object,
    annotations: str | os.PathLike[str] | None,
    on_error: Literal["raise", "skip"],
    work_folder: str | os.PathLike[str] | None,
    resume: bool,
    progress: Progress | None,
    overrides: dict[str, Any],
) -> tuple[ADTR, Config, Any, dict[str, Any], Improvement, list[SkippedImage]]:
    """See `AnomalyDetector.improve`, which gives the result its form."""
    progress = progress or Silent()
    started = time.perf_counter()
    config = improved_config(detector.config, overrides)
    _check_request(anomalies, synthetic, external, labels)
    labelled = _open(anomalies, annotations)
    if labels == "pixel":
        _require_masks(labelled)
    notes = list(labelled.notes) if labelled else []
    skipped: list[SkippedImage] = []

    network = copy.deepcopy(detector.network_)
    network.config = config
    samples = labelled.samples if labelled else []
    good_images = _good_images(detector, network, good, samples, notes, on_error, skipped, progress, bool(synthetic))
    learned, held_out = _hold_out(samples, config.improvement.anomaly_holdout, config.training.seed)

    sources: list[AnomalySource] = []
    known = _embed_anomalies(network, "labelled", learned, labels, on_error, skipped, progress, notes)
    if known is not None:
        sources.append(known)
    judged = _embed_anomalies(network, "held out", held_out, "image", on_error, skipped, progress, [])
    sources += [SyntheticAnomalies(k, network, good_images.picture, len(good_images.training)) for k in synthetic]
    outside = None
    if external is not None:
        outside = _external(network, external, len(good_images.training), config, on_error, skipped, progress, notes)
        sources.append(outside)
    if not sources:
        raise DataError("there is nothing to learn from: every labelled anomaly was unreadable")

    types = [sample.defect_type for sample in held_out]
    before = _judge(network, good_images, judged, types, config)
    hashes = [content_hash(sample.path) for sample in learned]
    base = detector.metadata_["training"]["losses"][-1]
    described = f"{base}{config}{good_images.hashes}{hashes}{list(synthetic)}{len(outside) if outside else 0}{labels}"
    record = train(
        network,
        GoodAndAnomalousImages(
            GoodImages(network, good_images.cache, good_images.training),
            sources,
            config.improvement,
            config.training.seed,
        ),
        config.improvement_training(),
        device=network.feature_mean.device,
        fingerprint=hashlib.sha256(described.encode()).hexdigest(),
        checkpoint=Path(work_folder) if work_folder is not None else None,
        resume=resume,
        progress=progress,
    )
    after = _judge(network, good_images, judged, types, config)
    scores, maps = score_cached(network, good_images.cache, good_images.held_out)
    thresholds = calibrate_detector(scores, maps, config.calibration.false_alarm_rate)
    good_images.close()
    improvement = Improvement(
        sources=[source.name for source in sources],
        learned=dict(sorted(Counter(sample.defect_type for sample in learned).items())),
        with_mask=int(known.has_mask.sum()) if known else 0,
        external=len(outside) if outside else 0,
        before=before,
        after=after,
        hashes=hashes,
        losses=record.losses,
        seconds=time.perf_counter() - started,
        notes=notes,
    )
    data = {
        **detector.metadata_["data"],
        "image_hashes": good_images.hashes,
        "held_out_hashes": [good_images.hashes[i] for i in good_images.held_out.tolist()],
        "images": len(good_images.hashes),
        "held_out": len(good_images.held_out),
    }
    metadata = {
        **detector.metadata_,
        "data": data,
        "improvements": [*detector.metadata_.get("improvements", []), improvement.to_dict()],
    }
    return network, config, thresholds, metadata, improvement, skipped


def improved_config(config: Config, overrides: dict[str, Any]) -> Config:
    """The detector's configuration with changes that leave its network as it is.

    Raises:
        ConfigError: a field shapes the network, is unknown, or out of range.
    """
    for name in overrides:
        setting = find_setting(name)
        if setting.section not in ("training", "improvement", "calibration") or setting.name == "holdout":
            value = config.flat()[setting.name]
            raise ConfigError(
                f"{setting.name} is {value} in this model and cannot change now; fit a new model for that"
            )
    return config.override(**overrides)


def _check_request(anomalies: object, synthetic: Sequence[str], external: object, labels: str) -> None:
    if anomalies is None and not synthetic and external is None:
        raise ConfigError("nothing to learn from: give labelled anomalies, a synthetic kind, or an external data set")
    if labels not in ("auto", "pixel", "image"):
        raise ConfigError(f"labels must be auto, pixel or image, not {labels!r}")
    for kind in synthetic:
        if kind not in SYNTHETIC:
            raise ConfigError(f"unknown synthetic kind {kind!r} (known: {', '.join(SYNTHETIC)})")


def _open(
    anomalies: str | os.PathLike[str] | Anomalies | None, annotations: str | os.PathLike[str] | None
) -> Anomalies | None:
    if anomalies is None or isinstance(anomalies, Anomalies):
        return anomalies
    return open_anomalies(anomalies, annotations=Path(annotations) if annotations is not None else None)


def _require_masks(labelled: Anomalies | None) -> None:
    without = [sample.path for sample in (labelled.samples if labelled else []) if sample.mask is None]
    if without:
        raise DataError(
            f"{len(without)} of {len(labelled.samples) if labelled else 0} anomalies have no mask, the first is "
            f"{without[0]}; mark them, or let --labels be auto"
        )


def _hold_out(samples: Sequence[Anomaly], share: float, seed: int) -> tuple[list[Anomaly], list[Anomaly]]:
    """Which of the labelled anomalies are learned from and which judge, type by type."""
    learned: list[Anomaly] = []
    held_out: list[Anomaly] = []
    for name in sorted({sample.defect_type for sample in samples}):
        of_type = [sample for sample in samples if sample.defect_type == name]
        held = max(1, round(share * len(of_type))) if share > 0 and len(of_type) >= FEW else 0
        order = np.random.default_rng(seed).permutation(len(of_type))
        held_out += [of_type[i] for i in np.sort(order[:held])]
        learned += [of_type[i] for i in np.sort(order[held:])]
    return learned, held_out


# Good images.


@dataclass(frozen=True, kw_only=True)
class _GoodImages:
    """The good images: features, which of them train and which are held out, and the pictures themselves."""

    cache: FeatureCache
    hashes: list[str]
    training: torch.Tensor
    held_out: torch.Tensor
    sources: Sequence[object] | None
    size: tuple[int, int]
    pictures: dict[int, NDArray[np.uint8]]

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Training image i at network size; as many as fit into some memory are decoded once."""
        assert self.sources is not None
        if i in self.pictures:
            return self.pictures[i]
        picture = resize(read_image(self.sources[int(self.training[i])]), self.size)
        if (len(self.pictures) + 1) * picture.nbytes <= _MEMORY:
            self.pictures[i] = picture
        return picture

    def close(self) -> None:
        self.pictures.clear()


def _good_images(
    detector: AnomalyDetector,
    network: ADTR,
    good: object,
    anomalies: Sequence[Anomaly],
    notes: list[str],
    on_error: Literal["raise", "skip"],
    skipped: list[SkippedImage],
    progress: Progress,
    needs_pictures: bool,
) -> _GoodImages:
    """Good images with their features: kept by `fit`, or computed again; without those now known as anomalies."""
    data = detector.metadata_["data"]
    sources: Sequence[object] | None = None
    if good is not None:
        sources, _ = training_sources(good)
    elif needs_pictures or detector.features_ is None:
        sources = detector.good_sources()
    if sources is None or (
        good is None and detector.features_ is not None and len(sources) == len(data["image_hashes"])
    ):
        features = detector.features_
        assert features is not None
        cache, hashes = FeatureCache.of(features), list(data["image_hashes"])
    else:
        embedded = embed_images(
            network, sources, on_error=on_error, skipped=skipped, progress=progress, stage="good images"
        )
        cache, hashes = embedded.cache, embedded.hashes
        sources = [sources[i] for i in embedded.indices]
    marked = {content_hash(sample.path) for sample in anomalies if sample.path.is_file()}
    contradictions = sum(digest in marked for digest in hashes)
    if contradictions:
        notes.append(
            f"{contradictions} image(s) learned as good are labelled anomalies now, and no longer count as good"
        )
    held_before, known = set(data["held_out_hashes"]), set(data["image_hashes"])
    training: list[int] = []
    held_out: list[int] = []
    for i, digest in enumerate(hashes):
        if digest in marked:
            continue
        # What was held out stays so; new images are dealt out by their contents.
        is_held = (
            digest in held_before if digest in known else int(digest, 16) / 16**16 < network.config.calibration.holdout
        )
        (held_out if is_held else training).append(i)
    if not training or len(held_out) < 2:
        raise DataError(
            f"of {len(hashes)} good images {len(training)} are left to train on and {len(held_out)} to set the "
            "thresholds; give all good images of the fit with --good"
        )
    return _GoodImages(
        cache=cache,
        hashes=hashes,
        training=torch.tensor(training),
        held_out=torch.tensor(held_out),
        sources=sources,
        size=network.config.embedding.image_size,
        pictures={},
    )


# Anomalies.


def _embed_anomalies(
    network: ADTR,
    name: str,
    samples: list[Anomaly],
    labels: Labels,
    on_error: Literal["raise", "skip"],
    skipped: list[SkippedImage],
    progress: Progress,
    notes: list[str],
) -> KnownAnomalies | None:
    """Features and grid masks of labelled images; unreadable ones leave `samples`."""
    if not samples:
        return None
    embedded = embed_images(
        network,
        [sample.path for sample in samples],
        on_error=on_error,
        skipped=skipped,
        progress=progress,
        stage=f"{name} anomalies",
    )
    samples[:] = [samples[i] for i in embedded.indices]
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
    notes += mask_notes(shares)
    return KnownAnomalies(name, network, embedded.cache.features[: len(samples)], masks, has_mask)


def _external(
    network: ADTR,
    external: object,
    wanted: int,
    config: Config,
    on_error: Literal["raise", "skip"],
    skipped: list[SkippedImage],
    progress: Progress,
    notes: list[str],
) -> KnownAnomalies:
    """As many images of an irrelevant data set as there are good ones, or all of a smaller one."""
    sources = external_sources(external)
    if len(sources) < wanted:
        notes.append(
            f"the external data set holds {len(sources)} images for {wanted} good ones; each is used more often"
        )
    chosen = np.sort(np.random.default_rng(config.training.seed).permutation(len(sources))[:wanted])
    embedded = embed_images(
        network,
        [sources[i] for i in chosen],
        on_error=on_error,
        skipped=skipped,
        progress=progress,
        stage="external images",
    )
    count, tokens = len(embedded.hashes), embedded.cache.features.shape[1]
    unmarked = torch.zeros(count, dtype=torch.bool)
    return KnownAnomalies("external", network, embedded.cache.features[:count], torch.zeros(count, tokens), unmarked)


# The guard.


def _judge(
    network: ADTR, good: _GoodImages, anomalies: KnownAnomalies | None, types: Sequence[str], config: Config
) -> Judgement:
    from sklearn.metrics import roc_auc_score

    rate = config.calibration.false_alarm_rate
    scores, maps = score_cached(network, good.cache, good.held_out)
    halves = np.arange(len(scores)) % 2
    false_alarms = 0
    for half in (0, 1):
        judge, judged = halves != half, halves == half
        threshold = calibrate_detector(scores[judge], maps[judge], rate).image
        false_alarms += int(exceeds(scores[judged], threshold).sum())
    if anomalies is None:
        return Judgement(
            good=len(scores),
            false_alarms=false_alarms,
            anomalies=0,
            missed=0,
            image_auroc=None,
            missed_by_type={},
            anomalies_by_type={},
        )
    threshold = calibrate_detector(scores, maps, rate).image
    cache = FeatureCache.of(anomalies.features)
    anomaly_scores, _ = score_cached(network, cache, torch.arange(len(cache)))
    missed = [name for name, found in zip(types, exceeds(anomaly_scores, threshold), strict=True) if not found]
    counts, missed_counts = Counter(types), Counter(missed)
    truth = np.concatenate([np.zeros(len(scores)), np.ones(len(anomaly_scores))])
    return Judgement(
        good=len(scores),
        false_alarms=false_alarms,
        anomalies=len(anomaly_scores),
        missed=len(missed),
        image_auroc=float(roc_auc_score(truth, np.concatenate([scores, anomaly_scores]).astype(np.float64))),
        missed_by_type={name: missed_counts[name] for name in counts},
        anomalies_by_type=dict(counts),
    )

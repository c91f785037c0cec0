"""The good images of a detector that goes on to learn: those of its fit, or more of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from adtr.data.folder import content_hash
from adtr.data.images import read_image, resize
from adtr.data.sources import good_sources
from adtr.errors import DataError
from adtr.learning.learned import Reader
from adtr.model.network import ADTR
from adtr.training.feature_cache import FeatureCache

if TYPE_CHECKING:
    from adtr.detector import AnomalyDetector

PICTURE_MEMORY = 512 << 20
"""Bytes of decoded images that are kept for the synthetic anomalies."""


@dataclass(frozen=True, kw_only=True)
class GoodImagesAtHand:
    """Features of the good images, which of them train and which are held out, and the pictures themselves."""

    cache: FeatureCache
    hashes: list[str]
    training: torch.Tensor
    """Rows of the cache, (n,) int64."""
    held_out: torch.Tensor
    """Rows of the cache, (m,) int64."""
    sources: Sequence[object] | None
    """The images themselves, in the cache's order; None where only their features were asked for."""
    size: tuple[int, int]
    """Height and width of the network's images."""
    pictures: dict[int, NDArray[np.uint8]] = field(default_factory=dict)

    def picture(self, i: int) -> NDArray[np.uint8]:
        """Training image i at network size, (h, w, 3); as many as fit into `PICTURE_MEMORY` are decoded once."""
        assert self.sources is not None
        if i in self.pictures:
            return self.pictures[i]
        picture = resize(read_image(self.sources[int(self.training[i])]), self.size)
        if (len(self.pictures) + 1) * picture.nbytes <= PICTURE_MEMORY:
            self.pictures[i] = picture
        return picture

    def record(self) -> dict[str, Any]:
        """What the model's metadata say of its good images."""
        return {
            "images": len(self.hashes),
            "held_out": len(self.held_out),
            "image_hashes": self.hashes,
            "held_out_hashes": [self.hashes[i] for i in self.held_out.tolist()],
        }


def gather_good(
    detector: AnomalyDetector,
    network: ADTR,
    good: object,
    marked: set[str],
    reader: Reader,
    *,
    pictures: bool,
) -> tuple[GoodImagesAtHand, list[str]]:
    """The good images, by default those of the fit, without what is labelled as an anomaly now; and remarks.

    What was held out by the fit stays held out. Images that it did not know are dealt out by their contents, unless
    the fit, or who gives them, chose what to hold out: then only what is chosen now is.

    Args:
        detector: whose good images they are.
        network: embeds them where `fit` did not keep their features.
        good: good images in place of those of the fit; None for the latter.
        marked: hashes of labelled anomalies.
        reader: reads the images.
        pictures: whether the images themselves will be asked for.

    Raises:
        DataError: they are not at hand, or too few are left.
    """
    data = detector.metadata_["data"]
    given = good_sources(good) if good is not None else None
    if given is None and (pictures or detector.features_ is None):
        given = detector.good_sources()
    sources: Sequence[object] | None = given
    features = detector.features_
    if features is not None and (sources is None or _hashes(sources) == data["image_hashes"]):
        cache, hashes, chosen = FeatureCache.of(features), list(data["image_hashes"]), None
    else:
        assert given is not None
        embedded = reader.embed(network, given, stage="good images")
        cache, hashes, chosen = embedded.cache, embedded.hashes, given.chosen(embedded.indices)
        sources = [given[i] for i in embedded.indices]

    held_before, known = set(data["held_out_hashes"]), set(data["image_hashes"])
    chosen_now = {hashes[i] for i in chosen or []}
    drawn = chosen is None and not data.get("held_out_chosen")
    share = network.config.calibration.holdout if drawn else 0
    training: list[int] = []
    held_out: list[int] = []
    for i, digest in enumerate(hashes):
        if digest not in marked:
            new = digest in chosen_now or int(digest, 16) / 16 ** len(digest) < share
            is_held = digest in held_before if digest in known else new
            (held_out if is_held else training).append(i)
    if not training or len(held_out) < 2:
        raise DataError(
            f"of {len(hashes)} good images {len(training)} are left to train on and {len(held_out)} to set the "
            "thresholds; give all good images of the fit with --good, and new ones too where it was fitted in folds"
        )
    at_hand = GoodImagesAtHand(
        cache=cache,
        hashes=hashes,
        training=torch.tensor(training),
        held_out=torch.tensor(held_out),
        sources=sources,
        size=network.config.embedding.image_size,
    )
    contradictions = len(hashes) - len(training) - len(held_out)
    if not contradictions:
        return at_hand, []
    return at_hand, [f"{contradictions} image(s) learned as good are labelled as anomalies now, which counts"]


def _hashes(sources: Sequence[object]) -> list[str]:
    """Of files; images in memory have none here, so that they are embedded again."""
    return [content_hash(source) if isinstance(source, str | os.PathLike) else "" for source in sources]

"""What learning gives, and how it reads its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from adtr.calibration import Calibration
from adtr.data.loading import SkippedImage
from adtr.errors import DataError, OnError
from adtr.model.network import ADTR
from adtr.progress import Progress, Silent
from adtr.training.features import EmbeddedImages, embed_images, embed_together

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A trained network and all that belongs to it."""

    network: ADTR
    calibration: Calibration
    metadata: dict[str, Any]
    """Versions, data and training record; JSON values."""
    features: Tensor | None = None
    """Of the good images, (n, N, C), where they were to be kept."""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Embeds sets of images in one manner, and gathers what could not be read."""

    fabric: Fabric | None = None
    """Of several processes, which share the work; see `AnomalyDetector.fit`."""

    on_error: OnError = "raise"
    progress: Progress = field(default_factory=Silent)
    skipped: list[SkippedImage] = field(default_factory=list)

    def embed(self, network: ADTR, sources: Sequence[object], stage: str = "features") -> EmbeddedImages:
        """See `embed_images`.

        Raises:
            DataError: none of the images could be read.
        """
        embed: Callable[..., EmbeddedImages] = embed_images
        if self.fabric is not None and self.fabric.world_size > 1:
            embed = partial(embed_together, self.fabric)
        embedded = embed(
            network, sources, on_error=self.on_error, skipped=self.skipped, progress=self.progress, stage=stage
        )
        if not len(embedded.cache):
            raise DataError("none of the images could be read")
        return embedded

"""Marked regions of an image: where the anomaly map exceeds the pixel threshold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Region:
    """Marked pixels that touch each other, at a side or a corner."""

    label: int
    """Its number in `Prediction.region_labels`."""
    box: tuple[int, int, int, int]
    """Left, top, width, height, pixels."""
    area: int
    """Marked pixels."""
    peak: float
    """The highest value of the anomaly map inside."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"box": list(self.box), "area": self.area, "peak": self.peak}


def label_regions(mask: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Numbers from 1 for the pixels of each region, 0 elsewhere, (H, W)."""
    from scipy import ndimage

    labels: NDArray[np.int32] = ndimage.label(mask, structure=np.ones((3, 3), np.int8), output=np.int32)[0]
    return labels


def find_regions(anomaly_map: NDArray[np.float32], labels: NDArray[np.int32]) -> list[Region]:
    """The regions of an image, the highest peak first.

    Args:
        anomaly_map: (H, W).
        labels: of `label_regions`, (H, W).
    """
    from scipy import ndimage

    boxes = ndimage.find_objects(labels)
    numbers = np.arange(1, len(boxes) + 1)
    areas = np.bincount(labels.ravel(), minlength=len(boxes) + 1)[1:]
    peaks = ndimage.maximum(anomaly_map, labels, numbers)
    regions = [
        Region(
            label=int(number),
            box=(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
            area=int(area),
            peak=float(peak),
        )
        for number, (rows, columns), area, peak in zip(numbers, boxes, areas, peaks, strict=True)
    ]
    return sorted(regions, key=lambda region: -region.peak)

"""Marked regions as a COCO file, which annotation tools open and `adtr improve --annotations` reads again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.prediction import Prediction


class CocoRegions:
    """Gathers the marked regions of images, one by one."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(self, name: Path, prediction: Prediction) -> None:
        """The regions of one more image, which is called `name` in the file."""
        height, width = prediction.size
        image = {"id": len(self.images) + 1, "file_name": name.as_posix(), "width": width, "height": height}
        self.images.append({**image, "score": prediction.score, "verdict": prediction.verdict})
        for region in prediction.regions:
            mask = prediction.region_labels == region.label
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image["id"],
                    "category_id": 1,
                    "bbox": list(region.box),
                    "area": region.area,
                    "segmentation": {"size": [height, width], "counts": run_lengths(mask)},
                    "iscrowd": 1,  # what COCO calls a mask of run lengths
                    "score": region.peak,
                }
            )

    def to_dict(self) -> dict[str, Any]:
        """The whole file."""
        categories = [{"id": 1, "name": "anomaly"}]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Lengths of the runs of a mask (H, W) down its columns, the first of unmarked pixels (COCO's uncompressed RLE)."""
    flat = mask.T.ravel()
    ends = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff([0, *ends.tolist(), flat.size]).tolist()
    return [0, *lengths] if flat.size and flat[0] else lengths

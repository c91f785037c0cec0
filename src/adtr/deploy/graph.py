"""The whole way of an image as one graph: resize, network, score, decision, and the map at the image's own size."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from adtr.calibration import Thresholds
from adtr.model.network import ADTR
from adtr.settings import Size

MAX_BATCH = 4096


class Outputs(NamedTuple):
    """What the graph says of a batch; the names of the exported file's outputs."""

    score: Tensor
    """Image scores, (B,)."""
    is_anomalous: Tensor
    """Whether the score exceeds the threshold, (B,) bool."""
    anomaly_map: Tensor
    """s(u) at the images' own height and width, (B, H, W)."""
    mask: Tensor
    """Marked pixels, (B, H, W) bool."""
    score_map: Tensor
    """s(u), (B, h, w); see `adtr.model.network.Comparison.maps`."""


class DetectorGraph(nn.Module):
    """A detector's network between raw images and decisions.

    Args:
        network: on the CPU, in float32.
    """

    image_threshold: Tensor
    pixel_threshold: Tensor

    def __init__(self, network: ADTR) -> None:
        super().__init__()
        self.network = network
        self.size = network.config.embedding.image_size
        # Until the thresholds are set; of different values, for exporters merge constants that are equal.
        self.register_buffer("image_threshold", torch.tensor(torch.pi))
        self.register_buffer("pixel_threshold", torch.tensor(torch.e))

    def set_thresholds(self, thresholds: Thresholds) -> None:
        """What the graph decides by."""
        self.image_threshold.fill_(thresholds.image)
        self.pixel_threshold.fill_(thresholds.pixel)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Judge images of one size, (B, H, W, 3) uint8 RGB; returns the fields of `Outputs`."""
        network = self.network
        features = network.embedding.tokens(resize(images, self.size))
        score, score_map = network.compare(network.standardize(features))
        size = (images.shape[1], images.shape[2])
        anomaly_map = functional.interpolate(score_map.unsqueeze(1), size=size, mode="bilinear").squeeze(1)
        is_anomalous, mask = score > self.image_threshold, anomaly_map > self.pixel_threshold
        return score, is_anomalous, anomaly_map, mask, score_map


def resize(images: Tensor, size: Size) -> Tensor:
    """Pillow's antialiased bilinear interpolation, which `adtr.data.images.resize` uses, as two matrix products.

    Pillow resizes along the rows, rounds to whole numbers, and then resizes along the columns, with weights that are
    whole multiples of 2^-22. So does this, with sums that are exact in double precision: the result is Pillow's own.
    Pillow 13 resizes the columns first where that is less work, mostly of tall images; there a pixel may differ by 1.

    Args:
        images: (B, H, W, 3) uint8.
        size: height and width wanted.

    Returns:
        (B, 3, height, width) float32 with whole values, 0..255.
    """
    return resize_planes(images.permute(0, 3, 1, 2), size)


def resize_planes(planes: Tensor, size: Size) -> Tensor:
    """The same of planes (..., H, W) with whole values, 0..255, of any type; (..., height, width) float32."""
    height, width = planes.shape[-2:]
    rows, columns = _weights(height, size[0], planes.device), _weights(width, size[1], planes.device)
    return _rounded(rows @ _rounded(planes.double() @ columns.T)).float()


def _weights(source: int, target: int, device: torch.device) -> Tensor:
    """Triangles as wide as two source pixels, or as two target pixels where the image shrinks, (target, source)."""
    pixels = torch.arange(source, dtype=torch.float64, device=device) + 0.5
    scale = (pixels[-1] + 0.5) / target  # the number of source pixels as a tensor: it varies in an exported graph
    centers = (torch.arange(target, dtype=torch.float64, device=device) + 0.5) * scale
    distances = (pixels - centers.unsqueeze(1)).abs() / scale.clamp_min(1)
    weights = (1 - distances).clamp_min(0)
    return _rounded(weights / weights.sum(dim=1, keepdim=True) * 2**22) / 2**22


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor()  # halves go up in Pillow


def export_program(graph: DetectorGraph) -> torch.export.ExportedProgram:
    """The graph as torch's own intermediate form, for any number of images of any height and width."""
    batch, height, width = (
        torch.export.Dim("batch", max=MAX_BATCH),
        torch.export.Dim("height", max=1 << 16),
        torch.export.Dim("width", max=1 << 16),
    )
    example = torch.zeros(2, graph.size[0] + 3, graph.size[1] + 5, 3, dtype=torch.uint8)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch about itself
        return torch.export.export(graph, (example,), dynamic_shapes=({0: batch, 1: height, 2: width},), strict=False)

"""The trivial method that every detector has to beat."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adtr.errors import DataError


class MeanImageBaseline:
    """Scores a pixel by its distance to the mean of the good images, in levels of 0..255.

    >>> good = [np.full((8, 8, 3), level, np.uint8) for level in (90, 110)]
    >>> round(MeanImageBaseline().fit(good).score(np.full((8, 8, 3), 103, np.uint8)), 3)  # 3 levels in 3 channels
    5.196

    Attributes:
        mean_: float32 of shape (H, W, 3), the mean of the images that `fit` saw.
    """

    mean_: NDArray[np.float32]

    def fit(self, images: Iterable[NDArray[np.uint8] | Path]) -> "MeanImageBaseline":
        """Average good images.

        Args:
            images: uint8 arrays of one shape (H, W, 3), or paths of images of one size.

        Returns:
            Itself.

        Raises:
            DataError: if there is no image, or if the sizes differ.
            ImageError: if a file cannot be read.
        """
        total, count = np.zeros(()), 0
        for image in map(_pixels, images):
            if count and image.shape != total.shape:
                raise DataError(f"the mean image needs images of one size: {image.shape} after {total.shape}")
            total, count = total + image, count + 1
        if not count:
            raise DataError("the mean image needs at least one image")
        self.mean_ = (total / count).astype(np.float32)
        return self

    def score_map(self, image: NDArray[np.uint8] | Path) -> NDArray[np.float32]:
        """The distance of every pixel: L2 norm over channels, averaged over a box of 1/16 of the shorter side.

        Args:
            image: uint8 of the fitted shape (H, W, 3), or the path of such an image.

        Returns:
            The map, float32 of shape (H, W), 0 or more.

        Raises:
            DataError: if the size is not the fitted one.
            ImageError: if the file cannot be read.
        """
        from scipy import ndimage

        pixels = _pixels(image)
        if pixels.shape != self.mean_.shape:
            raise DataError(f"the mean image has the shape {self.mean_.shape}, this image {pixels.shape}")
        distance = np.linalg.norm(pixels - self.mean_, axis=2)
        return np.asarray(ndimage.uniform_filter(distance, max(1, min(distance.shape) // 16)), dtype=np.float32)

    def score(self, image: NDArray[np.uint8] | Path) -> float:
        """The score of a whole image: the maximum of its map."""
        return float(self.score_map(image).max())


def _pixels(image: NDArray[np.uint8] | Path) -> NDArray[np.float32]:
    if not isinstance(image, Path):
        return image.astype(np.float32)
    from adtr.data.images import read_image

    return np.asarray(read_image(image), dtype=np.float32)

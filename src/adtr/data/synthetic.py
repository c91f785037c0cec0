"""Synthetic anomalies on good images: confetti, pasted scars and blended-in textures, each with its mask.

Every function of `SYNTHETIC` takes a good image, a donor (another good image of the same shape, or the same one) and a
random generator, and returns the image with an anomaly and the mask of the pixels that changed. The inputs stay as
they were, and the generator decides everything. Lengths are given in pixels at the size of their source and scale with
the image's shorter side, so that an anomaly looks alike at any resolution.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from adtr.errors import DataError

Image = NDArray[np.uint8]
"""Shape (H, W, 3), RGB."""

Mask = NDArray[np.bool_]
"""Shape (H, W)."""

Synthesis = Callable[[Image, Image, np.random.Generator], tuple[Image, Mask]]

MIN_SIDE = 16
"""Pixels; on smaller images the anomalies would be specks."""

_Field = NDArray[np.float32]
_Draw = Callable[[Image, Image, np.random.Generator], Image]

_ATTEMPTS = 30
_FAINT = 10.0  # levels: CutPaste and DRAEM have no such rule, but what nobody can see only teaches false alarms

_LAYERS = (1.8e-5, (-256, -1)), (1.2e-5, (-255, -255))  # seeds per pixel, lowest and highest value of a channel
_CONFETTI_SIZE = 240  # pixels, to which these numbers and the sides and the blur below refer
_CONFETTI_SIDES = 8, 54
_CONFETTI_SIGMA, _CONFETTI_TRUNCATE = 5.0, 2.4  # together a kernel of 25 pixels
_TOO_DARK = 0.1  # share of the noise that is left after clamping

_SCAR_SIZE = 256  # pixels, to which the widths and lengths refer
_SCAR_WIDTHS, _SCAR_LENGTHS = (2.0, 16.0), (10.0, 25.0)

_BLEND_AREAS = 0.002, 0.3  # of the image
_BLEND_OPACITIES = 0.2, 1.0
_CELL = 8  # pixels: the smallest cell of the gradient noise


def _until_visible(faint: float) -> Callable[[_Draw], Synthesis]:
    """Turn a function that draws into one that also returns a mask, and that redraws what can hardly be seen.

    Args:
        faint: mean absolute change over the mask, in levels, up to which another attempt is made. When all of them
            stay below, the strongest is taken.
    """

    def decorate(draw: _Draw) -> Synthesis:
        @wraps(draw)
        def synthesis(image: Image, donor: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < MIN_SIDE:
                expected = f"uint8 of shape (H, W, 3) and at least {MIN_SIDE} x {MIN_SIDE}"
                raise ValueError(f"image must be {expected}, not {image.dtype} of shape {image.shape}")
            if donor.dtype != image.dtype or donor.shape != image.shape:
                raise ValueError(f"donor must be like the image, not {donor.dtype} of shape {donor.shape}")
            strongest, best = 0.0, None
            for _ in range(_ATTEMPTS):
                drawn = draw(image, donor, rng)
                differs = drawn != image
                mask = differs[..., 0] | differs[..., 1] | differs[..., 2]
                change = np.abs(np.subtract(drawn[mask], image[mask], dtype=np.int16))
                strength = change.mean() if change.size else 0.0
                if strength > strongest:
                    strongest, best = strength, (drawn, mask)
                if strength > faint:
                    break
            if best is None:
                height, width = mask.shape
                raise DataError(
                    f"{draw.__name__} changes nothing visible on an image of {width} x {height} pixels: "
                    "use larger images, or another kind of synthetic anomaly"
                )
            return best

        return synthesis

    return decorate


@_until_visible(faint=0.0)
def confetti(image: Image, donor: Image, rng: np.random.Generator) -> Image:  # noqa: ARG001 - one interface for all
    """Soft coloured and black squares: confetti noise as in Figure 3 of the ADTR paper.

    Follows Liznerski et al., Explainable Deep One-Class Classification (FCDD, ICLR 2021): a layer of coloured and one
    of black squares, at least one of each, are summed, blurred and added to the image, which they darken. Where the
    image is so dark that clamping would leave less than a tenth of the noise, its sign is flipped: FCDD does so only
    where next to nothing would be left. The mask holds every pixel that changed after rounding, so it includes the
    soft rims as far as they reach half a level.

    Args:
        image: uint8 of shape (H, W, 3), RGB, at least 16 x 16.
        donor: uint8 of the same shape; not used.
        rng: source of all randomness.

    Returns:
        The image with the anomaly (uint8, H x W x 3), and the mask of its changed pixels (bool, H x W), never empty.

    Raises:
        ValueError: if the image or the donor has another type or shape.
        DataError: if the noise stays under half a level in every attempt.
    """
    from scipy import ndimage

    noise, squares = _confetti_squares(image.shape[:2], rng)
    sigma = _CONFETTI_SIGMA * (min(image.shape[:2]) / _CONFETTI_SIZE)
    # Only the surroundings of the squares are blurred. One pixel more than the kernel reaches makes this exact: what is
    # mirrored at a cut inside the image is then zero, as it would be without the cut.
    reach = int(_CONFETTI_TRUNCATE * sigma + 0.5) + 1
    rows, columns = (slice(max(x.min() - reach, 0), x.max() + reach + 1) for x in squares)
    soft = ndimage.gaussian_filter(noise[rows, columns], (sigma, sigma, 0), mode="mirror", truncate=_CONFETTI_TRUNCATE)
    drawn, part = image.copy(), image[rows, columns].astype(np.float32)
    changed = np.clip(part + soft, 0, 255)
    if np.sum(part - changed) < _TOO_DARK * -np.sum(soft):
        changed = np.clip(part - soft, 0, 255)
    drawn[rows, columns] = np.rint(changed)
    return drawn


def _confetti_squares(
    shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[_Field, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Hard-edged squares (H, W, 3) in levels, and the rows and columns of their pixels."""
    noise = np.zeros((*shape, 3), np.float32)
    scale, pixels = min(shape) / _CONFETTI_SIZE, shape[0] * shape[1]
    covered = []
    for probability, (lowest, highest) in _LAYERS:
        layer, count = np.zeros_like(noise), 0
        while count == 0:
            count = rng.binomial(pixels, probability * _CONFETTI_SIZE**2 / pixels)
        for _ in range(count):
            side = max(scale * rng.integers(*_CONFETTI_SIDES, endpoint=True), 1.0)
            rows, columns, _, _ = _rectangle(shape, rng.integers(shape), (side, side), rng.uniform(-45, 45))
            layer[rows, columns] = rng.integers(lowest, highest, 3, endpoint=True)  # within a layer, the last one wins
            covered.append((rows, columns))
        noise += layer
    rows, columns = (np.concatenate(x) for x in zip(*covered, strict=True))
    return noise, (rows, columns)


@_until_visible(_FAINT)
def scar(image: Image, donor: Image, rng: np.random.Generator) -> Image:
    """One to three small bars cut from the donor, recoloured, turned and pasted. Arguments and errors as in `confetti`.

    Follows Li et al., CutPaste: Self-Supervised Learning for Anomaly Detection and Localization (CVPR 2021), "CutPaste
    (Scar)": at 256 pixels the bars are 2..16 pixels wide and 10..25 long, turned by up to 45 degrees from upright. The
    jitter is stronger than there, and scars that change less than 10 levels on average are redrawn.
    """
    drawn = image.copy()
    size = np.array(image.shape[:2])
    scale = size.min() / _SCAR_SIZE
    for _ in range(rng.integers(1, 3, endpoint=True)):
        length, width = (max(scale * rng.uniform(*x), 1.0) for x in (_SCAR_LENGTHS, _SCAR_WIDTHS))
        margin = np.hypot(length, width) / 2
        center = rng.uniform(margin, size - 1 - margin).round()
        rows, columns, along, across = _rectangle(image.shape[:2], center, (length, width), rng.uniform(-45, 45))
        top, left = rng.uniform(0, size - 1 - (length, width))
        source = (top + along + length / 2).astype(np.intp), (left + across + width / 2).astype(np.intp)
        bar = donor[source].astype(np.float32)
        mean = bar.mean(axis=0)
        bar = mean + rng.uniform(0.6, 1.4) * (bar - mean) + rng.uniform(-60, 60) + rng.uniform(-15, 15, 3)
        drawn[rows, columns] = np.rint(np.clip(bar, 0, 255))
    return drawn


@_until_visible(_FAINT)
def blend(image: Image, donor: Image, rng: np.random.Generator) -> Image:
    """Regions of gradient noise in which a texture shines through. Arguments and errors as in `confetti`.

    Follows Zavrtanik et al., DRAEM: A Discriminatively Trained Reconstruction Embedding for Surface Anomaly Detection
    (ICCV 2021): the texture's opacity is 0.2..1. Instead of photographs of textures it is the donor, turned, cut into
    tiles that are shuffled, and recoloured. The regions cover 0.2 % to 30 % of the image; as above, what changes less
    than 10 levels on average is redrawn.
    """
    finest = np.log2(np.array(image.shape[:2]) / _CELL).astype(int)
    noise = _gradient_noise(image.shape[:2], 2 ** rng.integers(finest, endpoint=True), rng)
    # The area is drawn, not the threshold: a fixed one would leave some noise fields empty and fill others.
    count = max(int(noise.size * np.exp(rng.uniform(*np.log(_BLEND_AREAS)))), 1)
    region = noise > np.partition(noise, -count - 1, axis=None)[-count - 1]
    texture = _recolour(_rearrange(donor, rng)[region], rng)
    opacity = rng.uniform(*_BLEND_OPACITIES)
    drawn = image.copy()
    drawn[region] = np.rint((1 - opacity) * image[region] + opacity * texture)
    return drawn


SYNTHETIC: Mapping[str, Synthesis] = MappingProxyType({"confetti": confetti, "scar": scar, "blend": blend})
"""Every kind of synthetic anomaly by its name."""


def _rectangle(
    shape: tuple[int, ...], center: NDArray[np.number], size: tuple[float, float], angle: float
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """The pixels of a turned rectangle, as far as they lie in the image; its center is always among them.

    Args:
        shape: height and width of the image.
        center: row and column, whole numbers inside the image.
        size: length (along the rows' axis when the angle is 0) and width, in pixels.
        angle: in degrees.

    Returns:
        Rows, columns, and the distances from the center along the length and the width, each of shape (N,).
    """
    reach = np.hypot(*size) / 2
    top, left = np.maximum(np.ceil(center - reach), 0).astype(np.intp)
    bottom, right = np.minimum(np.floor(center + reach) + 1, shape[:2]).astype(np.intp)
    rows, columns = np.mgrid[top:bottom, left:right]
    down, aside = rows - center[0], columns - center[1]
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    along, across = cos * down + sin * aside, cos * aside - sin * down
    inside = (np.abs(along) <= size[0] / 2) & (np.abs(across) <= size[1] / 2)
    return rows[inside], columns[inside], along[inside], across[inside]


def _gradient_noise(shape: tuple[int, ...], cells: NDArray[np.integer], rng: np.random.Generator) -> _Field:
    """Perlin noise of shape (H, W) with values in -1..1: zero at the corners of its cells, smooth in between.

    The sum over a pixel's four corners, of fade x fade x (gradient . offset), is a product of matrices, since the fades
    and both components of the offset depend on the row or on the column alone.
    """
    angles = rng.uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1)).astype(np.float32)
    offsets, fades = [], []
    for pixels, count in zip(shape, cells, strict=True):
        offset = (np.arange(pixels) * (count / pixels))[:, None] - np.arange(count + 1)
        near = np.clip(1 - np.abs(offset), 0, 1)
        offsets.append(offset.astype(np.float32))
        fades.append((near**3 * (near * (6 * near - 15) + 10)).astype(np.float32))
    down = _product(fades[0] * offsets[0], np.sin(angles), fades[1])
    aside = _product(fades[0], np.cos(angles), fades[1] * offsets[1])
    return down + aside


def _product(rows: _Field, middle: _Field, columns: _Field) -> _Field:
    """The matrix rows @ middle @ columns^T; by einsum, since BLAS' threads would compete with those of the network."""
    left: _Field = np.einsum("hi,ij->hj", rows, middle)
    product: _Field = np.einsum("hj,wj->hw", left, columns)
    return product


def _rearrange(image: Image, rng: np.random.Generator) -> Image:
    """Turn the image by a multiple of 90 degrees that keeps its shape, mirror it or not, and shuffle its tiles."""
    height, width = image.shape[:2]
    image = np.rot90(image, int(rng.choice([0, 1, 2, 3] if height == width else [0, 2])))
    image = image[:, :: rng.choice([-1, 1])]
    grid = rng.choice([4, 8])
    tile = height // grid, width // grid
    tiles = image[: grid * tile[0], : grid * tile[1]].reshape(grid, tile[0], grid, tile[1], 3)
    shuffled = rng.permutation(tiles.swapaxes(1, 2).reshape(-1, *tile, 3)).reshape(grid, grid, *tile, 3)
    whole = shuffled.swapaxes(1, 2).reshape(grid * tile[0], grid * tile[1], 3)
    return np.pad(whole, ((0, height - len(whole)), (0, width - whole.shape[1]), (0, 0)), mode="symmetric")


def _recolour(pixels: Image, rng: np.random.Generator) -> Image:
    """Change the colours of pixels (N, 3) strongly, by two of five ways drawn at random."""
    levels = np.arange(256)
    tables = {
        "invert": 255 - levels,
        "posterise": levels & (0xFF << rng.integers(5, 7, endpoint=True)),
        "solarise": np.where(levels < rng.integers(64, 192), levels, 255 - levels),
        "brighten": np.clip(levels + rng.choice([-1, 1]) * rng.integers(50, 120), 0, 255),
    }
    for way in rng.choice([*tables, "permute"], 2, replace=False):
        pixels = pixels[:, rng.permutation(3)] if way == "permute" else tables[way].astype(np.uint8)[pixels]
    return pixels

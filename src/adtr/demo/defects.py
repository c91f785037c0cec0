"""Realistic defects, drawn on photographs of good surfaces together with their masks.

Every function of `DEFECTS` takes an image and a random generator and returns the image with one defect and the mask of
what visibly changed. All sizes are fractions of the image's shorter side, so a defect looks alike at any resolution.
"""

from collections.abc import Callable, Mapping
from functools import wraps
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from adtr.errors import DataError

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Field = NDArray[np.float64]
"""Float64 of shape (H, W), or (H, W, 3) with levels of 0..255."""

Defect = Callable[[Image, np.random.Generator], tuple[Image, Mask]]

VISIBLE_LEVELS = 6
"""A pixel counts as changed when a channel moved by more than this many of its 256 levels."""

_MIN_AREA, _MAX_AREA = 0.0015, 0.4  # of the image: neither a speck nor most of it
_MIN_MEAN_CHANGE = 15.0  # levels, over the mask: fainter defects are redrawn
_ATTEMPTS = 30


def _until_visible(draw: Callable[[Field, np.random.Generator], Field]) -> Defect:
    """Turn a function that draws on a float image (H, W, 3) into one that also returns a mask which is never empty."""

    @wraps(draw)
    def defect(image: Image, rng: np.random.Generator) -> tuple[Image, Mask]:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"image must be uint8 of shape (H, W, 3), not {image.dtype} of shape {image.shape}")
        for _ in range(_ATTEMPTS):
            drawn = np.clip(np.rint(draw(image.astype(np.float64), rng)), 0, 255).astype(np.uint8)
            change = np.abs(drawn.astype(np.int16) - image).max(axis=2)
            mask = _clean(change > VISIBLE_LEVELS)
            # What the cleaning dropped goes back to the original: nothing visible is left outside the mask.
            specks = (change > VISIBLE_LEVELS) & ~mask
            drawn[specks] = image[specks]
            if _MIN_AREA < mask.mean() < _MAX_AREA and change[mask].mean() > _MIN_MEAN_CHANGE:
                return drawn, mask
        raise DataError(f"{draw.__name__} stays invisible on this image: use a photograph with more texture")

    return defect


def _clean(mask: Mask) -> Mask:
    """Close gaps that the texture leaves, fill holes and drop specks."""
    from scipy import ndimage

    radius = max(1, round(min(mask.shape) / 85))
    disk = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1]) <= radius
    # Padding: a closing would otherwise eat the mask at the image's border.
    closed = ndimage.binary_closing(np.pad(mask, radius), disk)[radius:-radius, radius:-radius]
    labels, count = ndimage.label(ndimage.binary_fill_holes(closed), structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    keep = areas >= max(4, 0.0006 * mask.size)
    keep[0] = False
    return np.asarray(keep[labels], dtype=np.bool_)


@_until_visible
def scratch(image: Field, rng: np.random.Generator) -> Field:
    """A thin curved groove, lit on one flank and shaded on the other, with uneven pressure along its way.

    Args:
        image: uint8 of shape (H, W, 3).
        rng: source of all randomness.

    Returns:
        The image with the defect (uint8, H x W x 3), and its mask (bool, H x W).

    Raises:
        ValueError: if the image has another type or shape.
        DataError: if no visible defect can be drawn, as on an image without any texture.
    """
    side = min(image.shape[:2])
    path = _walk(_center(image, rng), rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 0.8) * side, rng, wander=0.03)
    distance, nearest, across = _nearest(image, path)
    progress = np.linspace(0, 1, len(path))
    pressure = np.sin(np.pi * progress) ** 0.4 * np.clip(1 + 0.35 * _noise((len(path),), rng, side / 24), 0.3, 1.6)
    width = rng.uniform(0.004, 0.009) * side
    strength = (pressure * rng.uniform(35, 75))[nearest]
    groove = np.exp(-((distance / width) ** 2))
    flanks = across / width * groove  # antisymmetric: one flank light, the other dark
    bare = rng.uniform(0.3, 0.8)  # fresh material is lighter than the worn surface
    relief: Field = strength * (bare * groove + (1.2 - bare) * flanks)
    return image + relief[..., None]


@_until_visible
def crack(image: Field, rng: np.random.Generator) -> Field:
    """A dark jagged fissure that branches and tapers, with a lit edge. Arguments and results as in `scratch`."""
    from scipy import ndimage

    side = min(image.shape[:2])
    heading, width = rng.uniform(0, 2 * np.pi), rng.uniform(0.009, 0.016) * side
    trunk = _walk(_center(image, rng), heading, rng.uniform(0.4, 0.85) * side, rng, wander=0.12, kinks=0.05)
    paths, widths = [trunk], [width * np.sin(np.pi * np.linspace(0.02, 0.98, len(trunk))) ** 0.5]
    for _ in range(rng.integers(1, 4)):
        fork = rng.integers(len(trunk) // 5, 4 * len(trunk) // 5)
        turn = rng.choice([-1, 1]) * rng.uniform(0.4, 1.1)
        branch = _walk(
            trunk[fork], heading + turn, rng.uniform(0.1, 0.3) * side, rng, wander=0.12, kinks=0.05, centered=False
        )
        paths.append(branch)
        widths.append(0.7 * widths[0][fork] * np.linspace(1, 0.1, len(branch)))
    distance, nearest, _ = _nearest(image, np.concatenate(paths))
    ragged = np.concatenate(widths)[nearest] * np.clip(1 + 0.35 * _noise(image.shape[:2], rng, side / 100), 0.3, 2)
    cover = np.clip(ragged / 2 + 0.5 - distance, 0, 1)  # anti-aliased over one pixel
    cover = ndimage.gaussian_filter(cover, side / 500)
    lit = np.clip(ndimage.shift(cover, _light(rng) * side / 120, order=1) - cover, 0, 1)
    shadow = ndimage.gaussian_filter(cover, side / 80)
    factor: Field = 1 - rng.uniform(0.6, 0.85) * cover - 0.15 * shadow + 0.25 * lit
    return image * factor[..., None]


@_until_visible
def stain(image: Field, rng: np.random.Generator) -> Field:
    """A liquid that dried: darker or lighter, uneven, with an irregular rim. Arguments and results as in `scratch`."""
    side = min(image.shape[:2])
    inside = _blob(image, rng, radius=rng.uniform(0.1, 0.2), roughness=0.3)
    soak = _smoothstep(inside / 0.3) * (0.85 + 0.15 * _noise(image.shape[:2], rng, side / 12))
    rim = np.exp(-(((inside - 0.12) / 0.08) ** 2))  # where the liquid carried its pigment to
    tone = rng.uniform(-0.45, -0.25) if rng.random() < 0.7 else rng.uniform(0.25, 0.45)
    factor: Field = 1 + tone * (soak + 0.35 * rim)
    return image * factor[..., None]


@_until_visible
def hole(image: Field, rng: np.random.Generator) -> Field:
    """A spot of missing material with a rough floor, a shaded and a lit wall. Arguments and results as in `scratch`."""
    from scipy import ndimage

    side = min(image.shape[:2])
    radius = rng.uniform(0.04, 0.11)
    inside = _blob(image, rng, radius=radius, roughness=0.22)
    cover = _smoothstep(inside / (0.012 / radius) + 0.5)
    depth = _smoothstep(inside / 0.6)  # walls slope over a part of the radius
    grain = _noise(image.shape[:2], rng, side / 90) + 0.7 * _noise(image.shape[:2], rng, side / 30)
    slope = np.stack(np.gradient(side * (0.6 * radius * depth + 0.0014 * depth * grain)), axis=-1) @ _light(rng)
    under = ndimage.gaussian_filter(image, (side / 16, side / 16, 0)) * rng.uniform(0.65, 0.95)
    # The walls that descend away from the light are in shade, the opposite ones are lit.
    floor: Field = under * (1 - 0.2 * depth - 0.4 * np.clip(slope, -1.2, 1.2) + 0.04 * grain)[..., None]
    return image + cover[..., None] * (floor - image)


@_until_visible
def misplaced(image: Field, rng: np.random.Generator) -> Field:
    """A piece of the same surface, turned, of another scale, wrongly set. Arguments and results as in `scratch`."""
    from scipy import ndimage

    height, width = image.shape[:2]
    turn = rng.choice([-1, 1]) * rng.uniform(np.pi / 5, 4 * np.pi / 5)
    zoom = rng.choice([rng.uniform(0.55, 0.75), rng.uniform(1.35, 1.8)])
    matrix = zoom * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    offset = np.array([height, width]) * rng.uniform(0.35, 0.65, size=2) - matrix @ np.array([height, width]) / 2
    piece: Field = np.stack(
        [ndimage.affine_transform(image[..., c], matrix, offset, order=1, mode="mirror") for c in range(3)], axis=-1
    )
    inside = _blob(image, rng, radius=rng.uniform(0.13, 0.2), roughness=0.12)[..., None]
    cover = _smoothstep(inside / 0.1 + 0.5)
    # Brightness follows the place, up to a slightly different tone: otherwise it alone would give the piece away.
    place, source = ((cover * x).sum(axis=(0, 1)) / cover.sum() for x in (image, piece))
    place = place * (1 + rng.choice([-1, 1]) * rng.uniform(0.09, 0.16))
    gap = np.clip(0.5 + 0.7 * _noise((height, width), rng, min(height, width) / 10), 0, 1)[..., None]
    seam: Field = 1 - rng.uniform(0.2, 0.4) * gap * np.exp(-((inside / 0.05) ** 2))
    piece = piece * place / np.maximum(source, 1)
    return np.asarray((image + cover * (piece - image)) * seam)


@_until_visible
def smear(image: Field, rng: np.random.Generator) -> Field:
    """A wiped trail in which the texture is dragged along one way. Arguments and results as in `scratch`."""
    from scipy import signal

    side = min(image.shape[:2])
    angle, reach = rng.uniform(0, 2 * np.pi), round(rng.uniform(0.15, 0.3) * side) + 1
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    # One-sided: material is dragged away from where it was, ever less of it.
    kernel = np.clip(1.5 - np.abs(across), 0, 1) * np.clip(1 - along / reach, 0, 1) * (along >= 0)
    padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), mode="symmetric")
    dragged = signal.fftconvolve(padded, (kernel / kernel.sum())[..., None], mode="valid", axes=(0, 1))
    trail = _blob(image, rng, radius=rng.uniform(0.12, 0.18), roughness=0.15, stretch=3.0, angle=angle % np.pi)
    film = 1 + rng.choice([-1, 1]) * rng.uniform(0.02, 0.06)  # what was wiped stays as a thin film
    cover = _smoothstep(trail / 0.4)[..., None]
    return np.asarray(image + cover * (dragged * film - image))


DEFECTS: Mapping[str, Defect] = MappingProxyType(
    {defect.__name__: defect for defect in (scratch, crack, stain, hole, misplaced, smear)}
)
"""Every kind of defect by its name, which is also the name of its folder in the data set."""


def _center(image: Field, rng: np.random.Generator) -> Field:
    """A point (row, column) in the middle part of the image."""
    return rng.uniform(0.25, 0.75, size=2) * image.shape[:2]


def _light(rng: np.random.Generator) -> Field:
    """A unit vector (row, column) pointing away from a light somewhere above."""
    angle = rng.uniform(np.pi / 4, 3 * np.pi / 4)
    return np.array([np.sin(angle), np.cos(angle)])


def _smoothstep(x: Field) -> Field:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _noise(shape: tuple[int, ...], rng: np.random.Generator, scale: float) -> Field:
    """Smooth noise of mean 0 and standard deviation 1 whose features are about `scale` pixels wide."""
    from scipy import ndimage

    field = ndimage.gaussian_filter(rng.standard_normal(shape), max(scale / 2, 0.5), mode="wrap")
    return np.asarray((field - field.mean()) / field.std())


def _blob(
    image: Field,
    rng: np.random.Generator,
    *,
    radius: float,
    roughness: float,
    stretch: float = 1.3,
    angle: float | None = None,
) -> Field:
    """An irregular ellipse as a field (H, W): 0 on its outline, positive inside with about 1 at the center.

    Args:
        image: gives the size.
        rng: source of all randomness.
        radius: mean radius as a fraction of the image's shorter side.
        roughness: how far noise moves the outline, as a fraction of the radius.
        stretch: long to short axis, at most.
        angle: of the long axis from the columns' axis in radians; drawn where it is None.
    """
    side = min(image.shape[:2])
    angle = rng.uniform(0, np.pi) if angle is None else angle
    aspect = np.sqrt(rng.uniform(1 + (stretch - 1) / 2, stretch))
    center = _center(image, rng)
    rows, columns = np.mgrid[: image.shape[0], : image.shape[1]]
    rows, columns = rows - center[0], columns - center[1]
    along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    distance = np.hypot(along / aspect, across * aspect) / (radius * side)
    octaves = sum(scale**0.8 * _noise(image.shape[:2], rng, scale * radius * side) for scale in (1.0, 0.5, 0.25, 0.12))
    # Noise fades out far away, so that no islands appear there.
    return np.asarray(1 - distance + roughness * octaves * np.exp(-np.maximum(distance - 1, 0) * 4))


def _walk(
    start: Field,
    heading: float,
    length: float,
    rng: np.random.Generator,
    *,
    wander: float,
    kinks: float = 0.0,
    centered: bool = True,
) -> Field:
    """A random walk in steps of half a pixel.

    Args:
        start: (row, column) of the walk's middle, or of its first point when not `centered`.
        heading: mean direction in radians.
        length: in pixels.
        rng: source of all randomness.
        wander: standard deviation of the turn per pixel, in radians.
        kinks: probability per pixel of a sudden turn.
        centered: whether `start` is the middle of the walk.

    Returns:
        The points, shape (N, 2), as (row, column).
    """
    steps = max(8, round(2 * length))
    turns = rng.normal(0, wander / np.sqrt(2), steps)
    turns += (rng.random(steps) < kinks / 2) * rng.normal(0, 0.7, steps)
    drift = np.cumsum(turns)
    if kinks:  # a crack follows the load: it keeps coming back to its mean direction
        memory = np.exp(-np.arange(steps) / 30)
        drift = np.convolve(turns, memory)[:steps]
    angles = heading + drift
    path = np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1), axis=0) / 2
    return np.asarray(start + path - (path[steps // 2] if centered else 0))


def _nearest(image: Field, path: Field) -> tuple[Field, NDArray[np.intp], Field]:
    """For every pixel: distance to the path, index of the path's nearest point, signed distance across it, (H, W)."""
    from scipy.spatial import cKDTree

    pixels = np.moveaxis(np.mgrid[: image.shape[0], : image.shape[1]], 0, -1).astype(np.float64)
    distance, nearest = cKDTree(path).query(pixels)
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    away = pixels - path[nearest]
    across = away[..., 0] * tangent[nearest][..., 1] - away[..., 1] * tangent[nearest][..., 0]
    return np.asarray(distance), np.asarray(nearest), np.asarray(across)

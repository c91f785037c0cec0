"""Decodes images and masks: any usual file, array or tensor becomes an upright 8-bit RGB image, or one clear error."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from adtr.errors import ImageError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
MAX_PIXELS = 200_000_000

_ASPECT_TOLERANCE = 1.02
_MAX_REGIONS = 32  # a gray mask of more values is not numbered, but soft

# Only these decoders are tried, whatever the suffix says: an EPS file named .png would else start Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_FAX = {"group3", "group4", "tiff_ccitt"}
_LOSSY_FORMATS = {"JPEG", "MPO", "WEBP"}

_ACCEPTED = (
    "accepted are a path, the bytes of a file, a PIL image, an array of shape (H, W, 3) or (H, W) and type uint8, "
    "uint16 or bool, and a tensor of shape (3, H, W) or (H, W, 3) and type uint8, or (3, H, W) and float in 0..1"
)

# What Pillow raises on damaged, hostile or oversized files; anything else is a bug and is left to surface as one.
_UNREADABLE = (
    OSError,  # missing, a folder, unidentified, truncated
    SyntaxError,  # broken PNG and TIFF structure
    ValueError,
    TypeError,  # header fields of an unexpected type; tensors numpy has no type for
    LookupError,
    ArithmeticError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,  # where the user's filters turn warnings into errors
)


def read_image(source: object, *, max_pixels: int | None = None) -> Image.Image:
    """Decodes an image to upright 8-bit RGB.

    The EXIF orientation is applied, transparency is composited over white, and of several frames the first is taken.
    16-bit gray is divided by 257 (65535 becomes 255) and never stretched per image, so that the same gray means the
    same thing in every image; values outside 0..65535 are clipped.

    Args:
        source: A path (JPEG, PNG, BMP, TIFF, WebP), or the bytes of such a file; a PIL image; an array (H, W, 3) or
            (H, W) of uint8, uint16 or bool; a tensor (3, H, W) or (H, W, 3) of uint8, or (3, H, W) of float in 0..1.
            A uint8 tensor that could be either is taken as channels first.
        max_pixels: What a file may hold, known from its header before anything is decoded; `MAX_PIXELS` by default
            and at most.

    Returns:
        A new image of mode RGB; the source is left as it was.

    Raises:
        ImageError: The source cannot be decoded (missing, truncated, not an image, float pixels), or has more than
            `MAX_PIXELS` pixels, or, for files, more than `max_pixels` or Pillow's own `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _explained("image", _describe(source)):
        if isinstance(source, str | os.PathLike):
            with _open(source, max_pixels) as image:
                return _to_rgb(image)
        if isinstance(source, bytes):
            with _open(io.BytesIO(source), max_pixels) as image:
                return _to_rgb(image)
        if isinstance(source, Image.Image):
            _check_size(source.height, source.width, MAX_PIXELS)
            return _to_rgb(source)
        if isinstance(source, np.ndarray):
            return _array_to_rgb(source)
        if _is_tensor(source):
            return _array_to_rgb(_tensor_to_array(source))
        raise ValueError(_ACCEPTED)


def resize(image: Image.Image, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Brings an image to a fixed size by antialiased bilinear interpolation; its aspect ratio is not kept.

    Args:
        image: Mode RGB, as `read_image` returns it.
        size: Height and width wanted, in pixels, each at least 1.

    Returns:
        A contiguous array (height, width, 3), 0..255.
    """
    assert image.mode == "RGB"
    height, width = size
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))


def read_mask(path: str | os.PathLike[str], size: tuple[int, int], *, fit: bool = False) -> npt.NDArray[np.bool_]:
    """Reads which pixels are anomalous.

    Every non-zero pixel counts, so masks of 0/255, 0/1 and numbered regions all work: palette images by index, colour
    images where any of R, G, B is non-zero, whatever the transparency. In lossy files (JPEG and WebP), whose
    background is not exactly zero, only values above 127 count. A lossless gray mask with more than 32 distinct
    values is taken as soft (antialiased, or a map of probabilities): only values above half its maximum count.

    Args:
        path: The mask's file.
        size: Height and width, in pixels, of the upright image that the mask belongs to.
        fit: Whether a mask of another size is brought to `size` by nearest neighbour, if its aspect ratio is the same
            within 2 %.

    Returns:
        An array (height, width), true where anomalous.

    Raises:
        ImageError: The file cannot be decoded, or has another size than its image (or, to fit, another aspect ratio).
    """
    with _explained("mask", str(path)), _open(path, fax=True) as image:
        mask = _marked(image)
        if mask.shape == tuple(size):
            return mask
        if not (fit and same_aspect_ratio(mask.shape, size)):
            raise ValueError(
                f"the mask is {_dimensions(*mask.shape)}, but its image is {_dimensions(*size)} (height x width)"
            )
        return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def decode_mask(data: bytes, name: str, *, max_pixels: int | None = None) -> npt.NDArray[np.bool_]:
    """Reads which pixels a mask marks that lies in memory, by the rules of `read_mask`.

    Args:
        data: The bytes of an image file.
        name: What to call it in an error.
        max_pixels: See `read_image`.

    Returns:
        An array (height, width) of the mask's own size, true where marked.

    Raises:
        ImageError: The data cannot be decoded.
    """
    with _explained("mask", name), _open(io.BytesIO(data), max_pixels, fax=True) as image:
        return _marked(image)


def same_aspect_ratio(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    """Whether two sizes (height, width), each at least 1, have the same aspect ratio within 2 %."""
    one, other = first[0] * second[1], second[0] * first[1]
    return max(one, other) <= _ASPECT_TOLERANCE * min(one, other)


def _marked(image: Image.Image) -> npt.NDArray[np.bool_]:
    """Where a mask marks its image; see `read_mask`."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode in {"CMYK", "YCbCr", "LAB", "HSV"}:  # where zero is not black
        upright = upright.convert("RGB")
    values = np.asarray(upright)
    is_gray = upright.mode not in {"P", "PA"}
    if values.ndim == 3:
        colours = values[..., :1] if upright.mode in {"LA", "PA"} else values[..., :3]
        is_gray = is_gray and bool((colours == colours[..., :1]).all())
        values = colours.max(axis=-1)
    if image.format in _LOSSY_FORMATS:
        return values > 127
    if is_gray and len(np.unique(values)) > _MAX_REGIONS:
        return np.asarray(values > np.nanmax(values) / 2)
    return values != 0


@contextmanager
def _explained(kind: str, name: str) -> Iterator[None]:
    """Turns whatever goes wrong in decoding into one line."""
    try:
        yield
    except _UNREADABLE as error:
        raise ImageError(f"cannot read {kind} {name}: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image, empty or damaged (expected JPEG, PNG, BMP, TIFF or WebP)"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    if text and isinstance(error, OSError | SyntaxError | ValueError | Image.DecompressionBombError):
        return text
    return f"{type(error).__name__} {text}".rstrip()  # a bare KeyError's text says nothing by itself


def _describe(source: object) -> str:
    if isinstance(source, str | os.PathLike):
        return str(source)
    if isinstance(source, Image.Image):
        return str(getattr(source, "filename", "") or "(PIL image)")
    if isinstance(source, np.ndarray) or _is_tensor(source):
        array: Any = source
        return f"({type(source).__name__}, {array.dtype}, shape {tuple(array.shape)})"
    return f"({type(source).__name__})"


def _dimensions(height: int, width: int) -> str:
    return f"{height} x {width} pixels"


def _is_tensor(source: object) -> bool:
    """Whether this behaves like a torch tensor; torch itself must not be imported here."""
    return all(hasattr(source, name) for name in ("detach", "cpu", "numpy"))


def _open(
    source: str | os.PathLike[str] | io.BytesIO, max_pixels: int | None = None, *, fax: bool = False
) -> Image.Image:
    image = Image.open(source if isinstance(source, io.BytesIO) else os.fspath(source), formats=_FORMATS)
    try:
        # Up to twice its own limit Pillow only warns. Warning filters belong to the whole process, so compare here.
        limits = (max_pixels, MAX_PIXELS, Image.MAX_IMAGE_PIXELS)
        _check_size(image.height, image.width, min(limit for limit in limits if limit is not None))
        if not fax and image.info.get("compression") in _FAX:  # of a damaged one, libtiff prints a line for each row
            raise ValueError("TIFF with fax compression (CCITT) is not read; save it with another")
    except ValueError:
        image.close()
        raise
    return image


def _check_size(height: int, width: int, limit: int) -> None:
    if height * width > limit:
        raise ValueError(f"{_dimensions(height, width)} (height x width) exceed the limit of {limit} pixels")
    if height * width == 0:
        raise ValueError("it has no pixels")


def _to_rgb(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)  # always a new image
    if upright.mode == "F":
        raise ValueError("it has 32-bit float pixels; convert it to 8 or 16 bit")
    if upright.mode.startswith("I"):  # "I", "I;16", "I;16B", ...
        return Image.fromarray(_from_16_bit(np.asarray(upright))).convert("RGB")
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        return Image.alpha_composite(white, upright.convert("RGBA")).convert("RGB")
    return upright if upright.mode == "RGB" else upright.convert("RGB")


def _array_to_rgb(array: npt.NDArray[Any]) -> Image.Image:
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype.kind == "u" and array.dtype.itemsize == 2:
        array = _from_16_bit(array)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(_ACCEPTED)
    _check_size(array.shape[0], array.shape[1], MAX_PIXELS)
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:  # noqa: ANN401 - torch's type cannot be named without torch
    array = np.asarray(tensor.detach().cpu().numpy())
    if array.dtype.kind == "f":
        if array.ndim != 3 or array.shape[0] != 3:
            raise ValueError(_ACCEPTED)
        if array.size and not (array.min() >= 0 and array.max() <= 1):  # false for NaN too
            raise ValueError(f"float values must be in 0..1, not {array.min():g}..{array.max():g}")
        array = np.rint(array * 255).astype(np.uint8)
    return np.moveaxis(array, 0, -1) if array.ndim == 3 and array.shape[0] == 3 else array


def _from_16_bit(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Maps 0..65535 onto 0..255 by the fixed factor 1/257, rounded to nearest."""
    sixteen_bit: npt.NDArray[np.uint32] = np.clip(values, 0, 65535).astype(np.uint32)
    return ((sixteen_bit + 128) // 257).astype(np.uint8)

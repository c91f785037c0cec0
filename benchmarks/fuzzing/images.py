"""Damaged images: every format, mode and kind of metadata; decompression bombs; heads that lie."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.PngImagePlugin import PngInfo

from fuzzing.mutate import NUMBERS, damage
from fuzzing.target import Files, Target

SIZE = (48, 64)
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"


def picture(mode: str) -> Image.Image:
    """A gradient with noise."""
    height, width = SIZE
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(0).integers(0, 40, (height, width))
    gray = ((3 * x + 2 * y) % 200 + noise).astype(np.uint8)
    if mode in ("I;16", "I", "F"):
        return Image.fromarray(gray.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 200)
    rgb = Image.fromarray(np.stack([gray, gray[::-1], gray[:, ::-1]], axis=-1))
    if mode in ("RGBA", "LA"):
        rgb.putalpha(Image.fromarray(gray))
    return rgb.convert(mode)


def _saved(mode: str, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


@cache
def seeds() -> list[bytes]:
    """Whole files of each format."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x0132] = 6, "a description", "2020:01:01 00:00:00"
    exif.get_ifd(0x8769)[0x9286] = b"a comment"
    text = PngInfo()
    text.add_text("Title", "x" * 100)
    text.add_text("Author", "y" * 2000, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta><tiff:Orientation>6</tiff:Orientation></x:xmpmeta>", zip=True)
    rich = {"exif": exif, "icc_profile": bytes(range(256)) * 4}

    def more() -> list[Image.Image]:  # anew each time: saving as JPEG leaves its traces in an image
        return [picture("RGB").rotate(90 * i) for i in range(3)]

    files = [_saved(mode, "JPEG") for mode in ("L", "RGB", "CMYK")]
    files += [_saved("RGB", "JPEG", progressive=True, comment=b"c" * 50, **rich), _saved("RGB", "JPEG", quality=5)]
    files += [_saved("RGB", "MPO", save_all=True, append_images=more())]
    files += [_saved(mode, "PNG") for mode in ("1", "L", "LA", "RGB", "RGBA", "P", "I;16")]
    files += [_saved("P", "PNG", transparency=3), _saved("RGB", "PNG", pnginfo=text, dpi=(72, 72), **rich)]
    files += [_saved("RGB", "PNG", save_all=True, append_images=more())]
    files += [_saved(mode, "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")]
    files += [_saved(mode, "TIFF") for mode in ("1", "L", "RGB", "RGBA", "P", "I;16", "I", "F", "CMYK", "LAB", "YCbCr")]
    files += [_saved("RGB", "TIFF", compression=f"tiff_{name}") for name in ("lzw", "deflate", "adobe_deflate", "jpeg")]
    files += [_saved("1", "TIFF", compression="group4"), _saved("L", "TIFF", compression="packbits")]
    files += [_saved("RGB", "TIFF", save_all=True, append_images=more()), _saved("RGB", "TIFF", **rich)]
    files += [_saved("L", "TIFF", big_tiff=True)]
    files += [_saved("RGB", "WEBP"), _saved("RGBA", "WEBP", lossless=True), _saved("RGB", "WEBP", **rich, xmp=b"<x/>")]
    files += [_saved("RGB", "WEBP", save_all=True, append_images=more())]
    return files


@cache
def zeros(count: int) -> bytes:
    """So many bytes of nothing, packed."""
    return zlib.compress(bytes(count))


def chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG file with its checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """Kinds and contents of a PNG file's parts."""
    found, at = [], len(_PNG_HEAD)
    while at + 12 <= len(data):
        size = struct.unpack_from(">I", data, at)[0]
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def damaged_png(rng: Random, data: bytes) -> bytes:
    """Parts changed, repeated, put elsewhere or made up; the checksums are right."""
    parts = chunks(data)
    bomb = zeros(rng.choice((1 << 20, 100 << 20)))
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, kind = rng.randrange(len(parts)), rng.randrange(6)
        name, content = parts[at]
        if kind <= 1:
            parts[at] = (name, damage(rng, content))
        elif kind == 2:
            parts.insert(at, rng.choice(parts))
        elif kind == 3:
            del parts[at]
            if not parts:
                break
        else:
            made = (
                *((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)),
                *(
                    (b"eXIf", rng.randbytes(64)),
                    (b"eXIf", b"II*\0\x08\0\0\0\xff\xff" + bytes(500)),
                    (b"tRNS", bytes(300)),
                ),
                *((b"PLTE", bytes(rng.choice((0, 1, 3, 768, 3000)))), (b"acTL", b"\xff" * 8), (b"fcTL", bytes(26))),
                (b"IHDR", struct.pack(">IIBBBBB", rng.choice(NUMBERS), 9, rng.choice((1, 8, 16, 99)), 6, 0, 0, 1)),
            )
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(made))
    return _PNG_HEAD + b"".join(chunk(*part) for part in parts)


def bomb(rng: Random) -> bytes:
    """Few bytes that declare many pixels, or hold them."""
    width, height = rng.choice(((14_000, 14_000), (60_000, 60_000), (2**31 - 1, 1), (1, 199_999_999), (3_000, 3_000)))
    kind = rng.randrange(4)
    if kind == 0:
        lines = zlib.compress(bytes(min(height * (3 * width + 1), 20_000_000)), 1)
        head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        return _PNG_HEAD + chunk(b"IHDR", head) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    if kind == 1:
        head = struct.pack("<IiiHHIIiiII", 40, min(width, 2**31 - 1), height, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
    if kind == 2:
        info = TiffImagePlugin.ImageFileDirectory_v2()
        values = {256: width, 257: height, 258: 8, 259: rng.choice((1, 5, 7, 8, 32773)), 262: 1, 273: 8, 277: 1}
        for tag, value in {**values, 278: height, 279: rng.choice(NUMBERS)}.items():
            info[tag] = value
        buffer = io.BytesIO(b"II*\0\x08\0\0\0")
        buffer.seek(8)
        info.save(buffer)
        return buffer.getvalue()
    data = bytearray(_saved("RGB", "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", min(height, 65_535), min(width, 65_535))
    return bytes(data)


class Images(Target):
    """`load_image`, as `predict`, `fit` and the server call it."""

    name = "images"

    def __init__(self) -> None:
        self._seeds = seeds()

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged image."""
        if rng.random() < 0.01:
            return {"image.png": bomb(rng)}
        seed = rng.choice(self._seeds)
        if seed.startswith(_PNG_HEAD) and rng.random() < 0.6:
            return {"image.png": damaged_png(rng, seed)}
        if rng.random() < 0.02:
            return {"image.png": seed[: rng.randrange(64)] + rng.choice(self._seeds)}
        return {"image.png": damage(rng, seed)}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Decode it."""
        from adtr.data.loading import load_image

        path = case / "image.png"
        source: Callable[[], object] = path.read_bytes if path.stat().st_size % 2 else lambda: path
        pixels = load_image(source(), SIZE, keep_original=True).pixels
        assert pixels.shape == (*SIZE, 3)


class Masks(Images):
    """`read_mask`, as `evaluate`, `improve` and `report` call it."""

    name = "masks"

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read it for an image of its own size."""
        from adtr.data.images import read_mask

        assert read_mask(case / "image.png", SIZE, fit=True).shape == SIZE

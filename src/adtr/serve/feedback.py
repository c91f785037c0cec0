"""Images that users marked, kept where `adtr improve` finds them: `MODEL/good/` and `MODEL/<defect>/`."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from pathlib import Path

from PIL import Image

from adtr.data.folder import GOOD_NAMES, MASK_FOLDERS
from adtr.errors import AdtrError
from adtr.files import check_writable, replace_file
from adtr.serve.uploads import RefusedError

MAX_BYTES = 2_000_000_000
"""Of a whole feedback folder."""
_RESERVED = {
    *GOOD_NAMES,
    *MASK_FOLDERS,
    "test",
    "train",
    "annotations",
    "images",
}  # of the layouts that `improve` reads
_SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tiff", "WEBP": ".webp"}

log = logging.getLogger("adtr.serve")


class Feedback:
    """A folder of marked images. Their names are hashes of their contents: an image is kept once, with its last label.

    Args:
        folder: is created.

    Raises:
        AdtrError: it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        check_writable(folder)
        self._folder, self._lock = folder, threading.Lock()

    def keep(self, model: str, data: bytes, defect: str | None) -> str:
        """Keep an image that is known to be readable.

        Args:
            model: name of the model that judged it.
            data: the file.
            defect: its name; None of a good image.

        Returns:
            Its path relative to the folder.

        Raises:
            RefusedError: the name of the defect means something else (422), or the folder is full or cannot be
                written (507).
        """
        if defect is not None and defect.lower() in _RESERVED:
            raise RefusedError(422, f"a defect cannot be named {defect}")
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "BMP", "TIFF", "WEBP")) as image:
            suffix = _SUFFIXES.get(image.format or "", ".png")
        name = hashlib.sha256(data).hexdigest()[:16] + suffix
        root = self._folder / model
        target = root / (defect or "good") / name
        with self._lock:
            held = sum(file.stat().st_size for file in self._folder.glob("*/*/*") if file.is_file())
            if held + len(data) > MAX_BYTES:
                raise RefusedError(507, "the feedback folder is full")
            try:
                replace_file(target, data)
            except AdtrError as error:
                log.error("feedback lost", extra={"fields": {"error": str(error)}})
                raise RefusedError(507, "the feedback folder cannot be written") from error
            for other in root.glob(f"*/{name}"):
                if other != target:
                    other.unlink()
        return target.relative_to(self._folder).as_posix()

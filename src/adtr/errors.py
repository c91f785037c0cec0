"""What a user can get wrong. The command line prints these as one line and exits with code 2."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Literal

OnError = Literal["raise", "skip"]
"""What an unreadable image does: end the work, or be named and counted and left out."""


class AdtrError(ValueError):
    """A mistake that the user can mend; the message is one line that says what is wrong and what to do."""


class ConfigError(AdtrError):
    """An unknown preset, field or backbone, or a value out of its range."""


class DataError(AdtrError):
    """A folder of images that cannot be used as asked."""


class ImageError(DataError):
    """One image, or one mask, that cannot be read."""


class ModelError(AdtrError):
    """A model folder that is incomplete, altered, or made for something else."""


class AdtrWarning(UserWarning):
    """Something worth knowing that does not stop the work."""


_NO_MEMORY = re.compile(
    r"(allocate|enough|out of) memory|bad_alloc|start new thread|failed to map segment|memory object"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out, in whichever library it was noticed."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | ImportError) and _NO_MEMORY.search(str(error)) is not None
    )


@contextlib.contextmanager
def memory_for(work: str, *, lower: str) -> Iterator[None]:
    """Say what to do where memory does not suffice.

    Args:
        work: what it does not suffice for.
        lower: what to lower, or to give.

    Raises:
        AdtrError: it does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise AdtrError(f"not enough memory for {work}: {lower}") from error

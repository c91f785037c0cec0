"""Images in a parquet file, in the layout of the Hugging Face hub: a column of {bytes, path}, or of bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adtr.data.lazy import Lazy
from adtr.errors import ConfigError, DataError


class ParquetImages(Lazy[bytes]):
    """The encoded images of a parquet file.

    Args:
        path: the file.

    Raises:
        ConfigError: pyarrow is not installed.
        DataError: no such file, or no column of images.
    """

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import ArrowException, parquet
        except ImportError as error:
            raise ConfigError("parquet files need pyarrow: pip install 'adtr[parquet]'") from error
        try:
            table = parquet.read_table(path)
        except (ArrowException, OSError) as error:
            raise DataError(f"cannot read {path}: {' '.join(str(error).split())}") from error
        self.path = path
        self._column = encoded_images(table[image_column(table.schema, path)])
        if not len(self._column):
            raise DataError(f"{path} holds no images")

    def __len__(self) -> int:
        return len(self._column)

    def item(self, index: int) -> bytes:
        """One image; a missing one is empty."""
        return self._column[index].as_py() or b""


def parquet_column(path: Path, name: str) -> NDArray[Any]:
    """A column of numbers, (n,).

    Raises:
        DataError: there is no such column, or it holds something else.
    """
    from pyarrow import ArrowException, parquet

    try:
        values: NDArray[Any] = parquet.read_table(path, columns=[name])[name].to_numpy()
    except (ArrowException, OSError, KeyError) as error:
        raise DataError(f"cannot read the column {name} of {path}: {' '.join(str(error).split())}") from error
    if not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"the column {name} of {path} does not hold whole numbers")
    return values


def image_column(schema: Any, path: object) -> str:  # noqa: ANN401 - pyarrow has no types
    """The name of the first column of encoded images in an Arrow schema.

    Raises:
        DataError: there is none; `path` is said.
    """
    from pyarrow import types

    for field in schema:
        is_struct = types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
        if is_struct or types.is_binary(field.type) or types.is_large_binary(field.type):
            return str(field.name)
    raise DataError(f"{path} holds no images: expected a column of encoded images (bytes, or a struct with bytes)")


def encoded_images(column: Any) -> Any:  # noqa: ANN401
    """The bytes of an Arrow column of images."""
    from pyarrow import compute, types

    return compute.struct_field(column, "bytes") if types.is_struct(column.type) else column

"""Damaged tables and archives: parquet files, and the batches of CIFAR-10."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from functools import cache
from pathlib import Path
from random import Random

from fuzzing.images import SIZE, seeds
from fuzzing.mutate import damage
from fuzzing.target import Files, Target

PIXELS = 3 * 32 * 32


class Parquet(Target):
    """Images in the Hugging Face hub's layout."""

    name = "parquet"

    def __init__(self) -> None:
        self._seeds: list[bytes] = []

    def open(self, folder: Path, out: Path) -> None:  # noqa: ARG002
        """Make whole files of the two layouts, with and without compression."""
        import pyarrow as pa
        from pyarrow import parquet

        images = seeds()[:6]
        for column in ([{"bytes": data, "path": "a.png"} for data in images], images):
            table = pa.table({"image": column, "label": list(range(6)), "text": ["a", None, "c", "d", "e", "f"]})
            for compression in ("none", "snappy", "zstd", "gzip"):
                buffer = io.BytesIO()
                parquet.write_table(table, buffer, compression=compression)
                self._seeds.append(buffer.getvalue())

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """A damaged file: its head, its pages, or its description at the end."""
        seed = rng.choice(self._seeds)
        end = rng.randrange(1, 2000)
        return {"a.parquet": seed[:-end] + damage(rng, seed[-end:]) if rng.random() < 0.6 else damage(rng, seed)}

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read its images and labels."""
        from adtr.data.loading import load_image
        from adtr.data.parquet import ParquetImages, parquet_column

        parquet_column(case / "a.parquet", "label")
        for data in ParquetImages(case / "a.parquet")[:3]:
            load_image(data, SIZE)


@cache
def nothing() -> bytes:
    """A gigabyte of zeros as a part of a gzip file."""
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:
        for _ in range(1024):
            file.write(bytes(1 << 20))
    return buffer.getvalue()


class Cifar(Target):
    """CIFAR-10: binary batches, pickled batches, archives."""

    name = "cifar"

    def make(self, rng: Random, folder: Path) -> Files:  # noqa: ARG002
        """Six batches of three images, of which some are damaged; in a folder or in an archive."""
        if rng.random() < 0.5:
            names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
            files = {name: (bytes([rng.randrange(10)]) + rng.randbytes(PIXELS)) * 3 for name in names}
        else:
            names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
            files = {name: self._pickled(rng) for name in names}
        for _ in range(rng.choice((1, 1, 2))):
            chosen = rng.choice(names)
            files[chosen] = damage(rng, files[chosen])
        if rng.random() < 0.6:
            return dict(files)
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        ) as made:
            for name, data in files.items():
                entry = tarfile.TarInfo(rng.choice(("", "cifar-10/", "../../", "/", "x" * 300 + "/")) + name)
                entry.size = len(data)
                made.addfile(entry, io.BytesIO(data))
            link = tarfile.TarInfo("data_batch_1")
            link.type, link.linkname = rng.choice((tarfile.SYMTYPE, tarfile.LNKTYPE)), "/etc/passwd"
            made.addfile(link)
        data = buffer.getvalue()
        data = damage(rng, data) if rng.random() < 0.5 else data
        packed = gzip.compress(data, 1, mtime=0)
        if rng.random() < 0.02:
            packed += nothing()
        return {"cifar-10-binary.tar.gz": damage(rng, packed) if rng.random() < 0.3 else packed}

    @staticmethod
    def _pickled(rng: Random) -> bytes:
        batch = {"data": (rng.randbytes(PIXELS) * 3).decode("latin-1"), "labels": [1, 2, 3], "batch_label": "x"}
        data = pickle.dumps(batch, 2)
        return data if rng.random() < 0.8 else pickle.dumps({**batch, "x": print}, 2)

    def run(self, case: Path, out: Path) -> None:  # noqa: ARG002
        """Read all."""
        from adtr.data.cifar import open_cifar10

        open_cifar10(case)

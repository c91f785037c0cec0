"""Predicting with Ray Data, which does the scheduling: workers hold the model, and answer for blocks of images."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray

from adtr.data.loading import LoadedImage
from adtr.errors import AdtrError, ImageError, ModelError, OnError
from adtr.files import file_sha256
from adtr.locks import hold_folder
from adtr.progress import Progress
from adtr.scaling.answers import Answers, parts_folder
from adtr.scaling.cluster import connect, gpus_for
from adtr.scaling.sources import Batch, find_units, in_blocks, load, without_first
from adtr.settings import Size
from adtr.store import METADATA, is_exported, read_metadata

if TYPE_CHECKING:
    import pyarrow as pa

    from adtr.predictor import Predictor

BLOCK = 64
"""Images in a block, which one worker answers for, and which is done again where its worker died."""
MOST_BLOCKS = 20_000
NO_PROGRESS = 1800.0
"""Seconds after which a run ends where nothing moves: an image that kills each worker would else be tried for ever."""
PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What the workers are to do."""

    model: Path
    digest: str
    """Of the model, which must be the same for all of them."""
    device: str
    backbone_weights: str | None
    false_alarm_rate: float | None
    unsure_rate: float | None
    batch_size: int
    size: Size
    """Height and width of the network's images, pixels."""
    root: str
    """The folder that relative paths start from."""


class Worker:
    """Holds the model, which is read once, and judges batches; what stops it is a row with a problem."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._detector: Predictor | None = None

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        """The rows of a block of units, or of a batch that is loaded already, as JSON."""
        order = self._order
        try:
            self._detector = self._detector or self._load()
            batches = [batch] if "pixels" in batch else load(batch, order.size, order.batch_size, order.root)
            for loaded in batches:
                rows = [json.dumps(row) for row in judge(self._detector, loaded)]
                yield {"row": np.array(rows, object)}
        except AdtrError as error:
            yield {"row": np.array([json.dumps({PROBLEM: str(error)})], object)}

    def _load(self) -> Predictor:
        from adtr.detector import AnomalyDetector

        order = self._order
        if model_digest(order.model) != order.digest:
            raise ModelError(f"the model {order.model} has changed since the run began; give the command again")
        detector: Predictor = AnomalyDetector.load(
            order.model, device=order.device, backbone_weights=order.backbone_weights
        )
        detector.set_rates(order.false_alarm_rate, order.unsure_rate)
        return detector


def judge(detector: Predictor, batch: Batch) -> Iterator[dict[str, Any]]:
    """A row for each image of a loaded batch, with its `number`: the keys of `adtr predict`, or `error`."""
    readable = [
        LoadedImage(
            index=i,
            source=None,
            path=None,
            size=(int(batch["height"][i]), int(batch["width"][i])),
            pixels=batch["pixels"][i],
        )
        for i, error in enumerate(batch["error"])
        if not error
    ]
    judged = zip(readable, detector.judge(readable), strict=True) if readable else iter(())
    for number, path, error in zip(batch["number"].tolist(), batch["path"], batch["error"], strict=True):
        row: dict[str, Any] = {"number": number, "path": path}
        if error:
            yield {**row, "error": error}
        else:
            image, prediction = next(judged)
            quality = {"brightness": image.brightness, "sharpness": image.sharpness}
            yield {**row, **prediction.to_dict(), **quality}


def predict(
    model: Path,
    paths: Sequence[str],
    output: Path,
    *,
    false_alarm_rate: float | None = None,
    unsure_rate: float | None = None,
    batch_size: int = 16,
    backbone_weights: str | None = None,
    device: str = "auto",
    on_error: OnError = "raise",
    workers: int | None = None,
    progress: Progress,
) -> Answers:
    """Answer for each image once, in order, whatever happens to workers; given again, go on where it was cut.

    Args:
        model: a model folder or an exported file, at the same place on every machine of the cluster.
        paths: see `find_units`.
        output: see `Answers`.
        false_alarm_rate: see `Predictor.set_rates`.
        unsure_rate: see `Predictor.set_rates`.
        batch_size: images in a forward pass.
        backbone_weights: see `AnomalyDetector`.
        device: "auto", "cpu" or "cuda".
        on_error: "raise" stops at the first unreadable image; "skip" answers with its error.
        workers: that hold the model; by default one for each GPU of the cluster, or for each core.
        progress: is told of every image.

    Raises:
        AdtrError: a mistake of the user, as `adtr predict` tells it.
    """
    config = read_metadata(model)[0]
    given = {"false_alarm_rate": false_alarm_rate, "unsure_rate": unsure_rate}
    rates = config.override(**{name: rate for name, rate in given.items() if rate is not None}).calibration
    units = find_units(paths)
    total = sum(units["rows"].to_pylist())
    order = Order(
        model=model.resolve(),
        digest=model_digest(model),
        device=device,
        backbone_weights=backbone_weights,
        false_alarm_rate=rates.false_alarm_rate,
        unsure_rate=rates.unsure_rate,
        batch_size=batch_size,
        size=config.embedding.image_size,
        root=str(Path.cwd()),
    )
    about = {
        "model": order.digest,
        "false_alarm_rate": rates.false_alarm_rate,
        "unsure_rate": rates.unsure_rate,
        "images": total,
        "list of images": _digest(units),
    }
    with hold_folder(parts_folder(output), output=output):
        answers = Answers(output, about)
        if not answers.is_complete:
            progress.start("predicting", total=total, done=answers.done)
            try:
                for row in _rows(order, without_first(units, answers.done), workers):
                    if row.pop("number") != answers.done:
                        raise RuntimeError(f"row {answers.done} is missing, or came twice")
                    if on_error == "raise" and "error" in row:
                        raise ImageError(f"cannot read image {row['path']}: {row['error']}")
                    answers.add(row)
                    progress.advance()
            except BaseException:
                answers.keep()
                raise
            if answers.done != total:
                raise RuntimeError(f"{answers.done} rows for {total} images")
            progress.finish()
        answers.finish()
    return answers


def _rows(order: Order, units: pa.Table, workers: int | None) -> Iterator[dict[str, Any]]:
    """Rows in the order of the units.

    Raises:
        AdtrError: what stopped a worker, or Ray.
    """
    if not units.num_rows:
        return
    connect(workers)
    gpus = gpus_for(order.device, exported=is_exported(order.model))
    dataset = pipeline(order, units, workers or gpus or int(ray.cluster_resources()["CPU"]), on_gpu=gpus > 0)
    try:
        for line in dataset.iter_rows():
            row = json.loads(line["row"])
            if PROBLEM in row:
                raise AdtrError(row[PROBLEM])
            yield row
    except ray.data.exceptions.ExecutionTimeoutError as error:
        raise AdtrError(
            f"no image was answered for in {NO_PROGRESS / 60:.0f} minutes: a worker dies again and again, or the "
            "cluster has no room; mend that and give the command again, it goes on where it was"
        ) from error


def pipeline(order: Order, units: pa.Table, workers: int, *, on_gpu: bool) -> ray.data.Dataset:
    """The Ray data set of rows as JSON, in the column `row`, in the order of the units.

    Args:
        order: for the workers.
        units: to be answered for.
        workers: that hold the model.
        on_gpu: each has a GPU, which the cluster's cores decode for; else each has a core and decodes for itself.
    """
    blocks = in_blocks(units, max(BLOCK, sum(units["rows"].to_pylist()) // MOST_BLOCKS))
    dataset: ray.data.Dataset = ray.data.from_arrow(blocks)
    context = dataset.context
    context.enable_progress_bars, context.execution_options.preserve_order = False, True
    context.execution_no_progress_timeout_s = NO_PROGRESS
    if on_gpu:
        how = {"size": order.size, "batch_size": order.batch_size, "root": order.root}
        dataset = dataset.map_batches(
            load,  # type: ignore[arg-type] # the other arguments come as keywords
            batch_size=None,
            batch_format="numpy",
            fn_kwargs=how,
            num_cpus=1,
        )
    return dataset.map_batches(
        Worker,
        fn_constructor_args=(order,),
        batch_size=order.batch_size if on_gpu else None,
        batch_format="numpy",
        num_cpus=1,
        num_gpus=1 if on_gpu else 0,
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
    )


def model_digest(model: Path) -> str:
    """What tells a model from others: a hash of its metadata, which holds the other files' hashes, or of its file.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        return file_sha256(model if is_exported(model) else model / METADATA)
    except OSError as error:
        raise ModelError(
            f"the model {model} cannot be read on {platform.node()} ({error.strerror}); every machine of the "
            "cluster needs it at the same place"
        ) from error


def _digest(units: pa.Table) -> str:
    digest = hashlib.sha256()
    for path, first in zip(units["path"].to_pylist(), units["first"].to_pylist(), strict=True):
        digest.update(f"{path}\0{first}\0".encode())
    return digest.hexdigest()

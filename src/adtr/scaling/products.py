"""One detector for each product: hundreds of fits, of which one that fails stops no other."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, Literal

from adtr.config import Config, load_preset
from adtr.data.folder import Dataset, open_dataset, subfolders
from adtr.errors import AdtrError, DataError, OnError
from adtr.experiments.records import Record, plain_config
from adtr.experiments.runs import UNFINISHED
from adtr.files import check_writable, parse_json, replace_file
from adtr.jobs import affordable_jobs, in_processes
from adtr.locks import hold_folder

SUMMARY, TABLE, MODELS = "summary.jsonl", "summary.md", "models"


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be fitted, and how."""

    root: Path
    """Holds a folder for each product."""
    output: Path
    preset: str = "quick"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None
    device: str = "auto"
    on_error: OnError = "raise"

    def config(self) -> Config:
        """The configuration of every detector."""
        return load_preset(self.preset).override(**self.overrides)


class Summary:
    """`summary.jsonl`: the latest record of each product, which tells what need not be done again.

    Args:
        folder: holds the file.

    Raises:
        AdtrError: the file is unreadable, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        check_writable(folder)
        self._folder = folder
        self.records: dict[str, Record] = {}
        path = folder / SUMMARY
        if path.exists():
            try:
                for line in path.read_text("utf-8").splitlines():
                    record = parse_json(line)
                    record["stamp"], record["error"]
                    self.records[record["product"]] = record
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AdtrError(f"{path} is no summary of products; choose another --output") from error

    def is_done(self, product: str, stamp: str) -> bool:
        """Whether the product has a model of this stamp."""
        record = self.records.get(product)
        done = record is not None and record["error"] is None and record["stamp"] == stamp
        return done and (self._folder / MODELS / product).is_dir()

    def add(self, record: Record) -> None:
        """Keep a product's record, and write both tables anew.

        Raises:
            AdtrError: they cannot be written.
        """
        self.records[record["product"]] = record
        ordered = [self.records[name] for name in sorted(self.records)]
        replace_file(self._folder / SUMMARY, "".join(f"{json.dumps(record)}\n" for record in ordered))
        replace_file(self._folder / TABLE, to_markdown(ordered))


def stamp_of(order: Order, dataset: Dataset) -> str:
    """Changes with the configuration, and with names, sizes and times of the good images.

    Raises:
        DataError: an image cannot be found.
    """
    try:
        paths = [sample.path for sample in (*dataset.train, *dataset.validation)]
        stats = [(path.relative_to(dataset.root).as_posix(), path.stat()) for path in paths]
    except OSError as error:
        raise DataError(f"cannot read image {error.filename}: {error.strerror}") from error
    images = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    text = json.dumps([plain_config(order.config()), order.backbone_weights, images])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fit_product(order: Order, product: str) -> Record:
    """Fit, save and, where labelled defects are, evaluate one detector; what goes wrong stands in the record."""
    from adtr.detector import AnomalyDetector

    started = time.perf_counter()
    record: Record = {"product": product, "stamp": None, "error": None}
    unfinished = order.output / UNFINISHED / product
    try:
        dataset = open_dataset(order.root / product)
        record["stamp"] = stamp_of(order, dataset)
        work = unfinished / record["stamp"]
        check_writable(work)
        detector = AnomalyDetector(
            order.preset, device=order.device, backbone_weights=order.backbone_weights, **order.overrides
        ).fit(dataset, on_error=order.on_error, work_folder=work, resume=True)
        detector.save(order.output / MODELS / product)
        record |= {
            "images": detector.metadata_["data"]["images"],
            "skipped": detector.metadata_["data"]["skipped"],
            "threshold": detector.thresholds_.image,
            "false_alarm_rate": detector.thresholds_.false_alarm_rate,
            "promised_rate": detector.thresholds_.promised_rate,
        }
        if dataset.defect_types:
            metrics = detector.evaluate(dataset, on_error=order.on_error)
            record |= {"test_images": metrics.images, "image_auroc": metrics.image_auroc}
        shutil.rmtree(unfinished, ignore_errors=True)
    except AdtrError as error:
        record["error"] = str(error)
    except Exception as error:  # noqa: BLE001 - a bug met by one product stops no other, and is told
        traceback.print_exc()
        record["error"] = f"{type(error).__name__}: {error}"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {**record, "seconds": time.perf_counter() - started, "finished": now}


def fit_many(
    order: Order, *, engine: Literal["local", "ray"] = "local", jobs: int = 0, told: Callable[[Record, int], None]
) -> list[Record]:
    """Fit what has no model of this configuration and these images yet.

    Args:
        order: what to fit.
        engine: "local" takes processes of this machine, "ray" tasks on a cluster, which must see the same folders.
        jobs: products at a time; 0 takes as many as there is room for.
        told: called with each new record and how many products are left.

    Returns:
        The record of each product, by name.

    Raises:
        DataError: no products.
        AdtrError: the configuration is wrong, or the output cannot be written.
    """
    config = order.config()
    products = [folder.name for folder in subfolders(order.root)]
    if not products:
        raise DataError(f"no products in {order.root}: expected a folder for each, such as {order.root}/bottle/good/")
    with hold_folder(order.output):  # nobody else fits into it
        summary = Summary(order.output)
        missing, largest = [], 0
        for product in products:
            try:
                dataset = open_dataset(order.root / product)
                largest = max(largest, len(dataset.train) + len(dataset.validation) + len(dataset.test))
                if summary.is_done(product, stamp_of(order, dataset)):
                    continue
            except DataError:  # is told when its turn comes
                pass
            missing.append(product)
        records: Iterable[Record]
        if engine == "ray":
            records = _with_ray(order, missing, jobs)
        else:
            jobs = min(jobs or affordable_jobs(config.embedding, largest, order.device), max(1, len(missing)))
            records = _with_processes(order, missing, jobs)
        for left, record in zip(reversed(range(len(missing))), records, strict=True):
            summary.add(record)
            told(record, left)
    return [summary.records[product] for product in products]


def _with_processes(order: Order, products: list[str], jobs: int) -> Iterable[Record]:
    if jobs == 1:
        return map(partial(fit_product, order), products)
    return _collect(in_processes(fit_product, [(order, product) for product in products], jobs))


def _collect(work: Iterator[Any]) -> Iterator[Record]:
    for (_, product), future in work:
        died = isinstance(future.exception(), BrokenProcessPool)
        yield _failed(product, "its process died (out of memory?)") if died else future.result()


def _with_ray(order: Order, products: list[str], jobs: int) -> Iterator[Record]:
    """Tasks of a cluster; one whose machine goes is begun again elsewhere, from its checkpoint."""
    import ray

    from adtr.scaling.cluster import connect, gpus_for

    connect()
    gpus = gpus_for(order.device)
    cores = int(ray.cluster_resources()["CPU"])
    jobs = min(jobs or gpus or max(1, cores // 4), max(1, len(products)))
    order = replace(order, root=order.root.resolve(), output=order.output.resolve())
    task = ray.remote(num_cpus=max(1, cores // jobs), num_gpus=min(1, gpus / jobs))(fit_product)
    running = {task.remote(order, product): product for product in products}
    while running:
        (done, *_), _ = ray.wait(list(running))
        product = running.pop(done)
        try:
            yield ray.get(done)
        except ray.exceptions.RayError as error:
            yield _failed(product, f"{type(error).__name__}: {str(error).splitlines()[0]}")


def _failed(product: str, reason: str) -> Record:
    return {"product": product, "stamp": None, "error": reason}


def to_markdown(records: Iterable[Record]) -> str:
    """A table of products."""
    lines = [
        "| product | images | seconds | threshold | false alarms promised | image AUROC | error |",
        "|---|---|---|---|---|---|---|",
    ]
    shown = {"images": "{}", "seconds": "{:.0f}", "threshold": "{:.4g}", "promised_rate": "{:.1%}"}
    for record in records:
        cells = [form.format(record[name]) if name in record else "" for name, form in shown.items()]
        auroc, error = record.get("image_auroc"), (record["error"] or "").replace("|", "\\|")
        cells += ["" if auroc is None else f"{auroc:.4f}", " ".join(error.split())]
        lines.append(f"| {record['product']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

"""Runs of an experiment: one for each category, seed and row, several categories at a time."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adtr.config import Config
from adtr.errors import AdtrError, ConfigError
from adtr.experiments.plans import Plan, Row
from adtr.experiments.records import FILE, Record, Records, append_record, machine, peak_memory, plain_config
from adtr.experiments.subjects import InCifarSize, Subject, Subjects
from adtr.jobs import affordable_jobs, in_processes
from adtr.progress import Progress

if TYPE_CHECKING:
    from adtr.detector import AnomalyDetector
    from adtr.experiments.features import SharedReader

UNFINISHED = "unfinished"
"""Subfolder of the output for checkpoints and for detectors that are to be improved."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be run, and how."""

    plan: Plan
    data: Path
    output: Path
    categories: Sequence[str] = ()
    seeds: Sequence[int] = (0,)
    preset: str | None = None
    given: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Backbone weights by the backbone's name; "" stands for every backbone."""
    external: Path | None = None
    """What ADTR+ learns from on CIFAR-10."""
    device: str = "auto"

    def config(self, row: Row, seed: int) -> Config:
        """The configuration of a run."""
        return self.plan.config(row, self.preset, self.given, seed)

    def weights_of(self, config: Config) -> str | None:
        """The weights file of a configuration's backbone, if one was given."""
        return self.weights.get(config.embedding.backbone, self.weights.get(""))

    def lesson(self) -> dict[str, Any]:
        """What a row that continues another one learns from."""
        if self.plan.data != "cifar10":
            return {"synthetic": ("confetti",)}
        return {"external": InCifarSize(self.external) if self.external else None}


def can_run(request: Request) -> dict[str, str]:
    """Why some rows cannot be run, by their names.

    Raises:
        AdtrError: none of them can.
    """
    from adtr.experiments.peers import why_not
    from adtr.model.backbones import create_backbone

    reasons: dict[str, str] = {}
    tried: dict[str, str | None] = {}
    for row in request.plan.rows:
        config = request.config(row, request.seeds[0])
        backbone = config.embedding.backbone
        if backbone not in tried and config.embedding.target == "features":
            tried[backbone] = None
            try:
                create_backbone(backbone, request.weights_of(config))
            except AdtrError as error:
                tried[backbone] = str(error)
        reason = tried[backbone] if config.embedding.target == "features" else None
        if row.peer is not None:
            reason = why_not(row.peer, config) or reason
        if reason:
            reasons[row.name] = reason
        elif row.continues in reasons:
            reasons[row.name] = reasons[row.continues]
        elif row.continues and request.plan.data == "cifar10" and request.external is None:
            reasons[row.name] = "needs --external, an irrelevant data set"
    if len(reasons) == len(request.plan.rows):
        raise ConfigError(next(iter(reasons.values())))
    return reasons


def run(
    request: Request, records: Records, *, jobs: int, progress: Progress, told: Callable[[Record, int, float], None]
) -> dict[str, str]:
    """Run what has not been run yet.

    Args:
        request: what to run.
        records: receives a line for each run.
        jobs: categories at a time, each in a process of its own; 0 takes as many as the machine has room for.
        progress: told of the stages where all runs in this process.
        told: called after each run with its record, how many are left, and about how many seconds they will take.

    Returns:
        Why some rows were not run.

    Raises:
        AdtrError: nothing can be run, or the output holds runs of another configuration.
    """
    reasons = can_run(request)
    rows = [row for row in request.plan.rows if row.name not in reasons]
    for row in rows:
        records.check(row.name, request.config(row, request.seeds[0]))
    subjects = Subjects(request.plan.data, request.data, request.categories)
    missing = {
        name: [
            (seed, row) for seed in request.seeds for row in rows if records.find(name, seed, row.name) is None
        ]
        for name in subjects.names
    }  # fmt: skip
    missing = {name: runs for name, runs in missing.items() if runs}
    for name in set(subjects.names) - set(missing):  # killed between its last line and the tidying up
        shutil.rmtree(request.output / UNFINISHED / name, ignore_errors=True)
    jobs = min(jobs or _affordable_jobs(request, subjects), max(1, len(missing)))
    left, started, done = sum(map(len, missing.values())), time.perf_counter(), 0

    def ended(record: Record) -> None:
        nonlocal left, done
        records.records.append(record)
        left, done = left - 1, done + 1
        told(record, left, (time.perf_counter() - started) / done * left)

    if jobs == 1:
        from adtr.experiments.features import SharedReader

        reader = SharedReader(progress=progress)
        for name, runs in missing.items():
            run_category(request, subjects.open(name), runs, reader=reader, ended=ended)
        reader.forget()
        return reasons
    for _, future in in_processes(_in_process, [(request, *item) for item in missing.items()], jobs):
        if isinstance(future.exception(), BrokenProcessPool):
            raise AdtrError(
                "a category's process was killed, for want of memory perhaps; the same command goes on, with a smaller "
                "--jobs if need be"
            )
        for record in future.result():
            ended(record)
    return reasons


def _in_process(request: Request, name: str, runs: list[tuple[int, Row]]) -> list[Record]:
    from adtr.experiments.features import SharedReader

    subject = Subjects(request.plan.data, request.data, [name]).open(name)
    records: list[Record] = []
    reader = SharedReader()
    run_category(request, subject, runs, reader=reader, ended=records.append)
    reader.forget()
    return records


def _affordable_jobs(request: Request, subjects: Subjects) -> int:
    opened = [subjects.open(name) for name in subjects.names]
    largest = max(len(subject.train) + len(subject.test) for subject in opened)
    return affordable_jobs(request.config(request.plan.rows[0], 0).embedding, largest, request.device)


def run_category(
    request: Request,
    subject: Subject,
    runs: Sequence[tuple[int, Row]],
    *,
    reader: SharedReader,
    ended: Callable[[Record], None],
) -> None:
    """The missing runs of a category; those with one embedding share its features. Each is kept as soon as it ends.

    Test images that the category before had too, as the classes of CIFAR-10 do, are not embedded again.
    """
    folder = request.output / UNFINISHED / subject.name
    for seed, row in sorted(runs, key=lambda run: str(request.config(run[1], 0).embedding)):
        reader.keep(request.config(row, seed).embedding, subject.train, subject.test)
        record = _run(request, subject, seed, row, reader, folder)
        append_record(request.output / FILE, record)
        ended(record)
    shutil.rmtree(folder, ignore_errors=True)


def _run(request: Request, subject: Subject, seed: int, row: Row, reader: SharedReader, folder: Path) -> Record:
    from adtr.experiments.features import evaluate
    from adtr.experiments.peers import run_peer

    config = request.config(row, seed)
    started, used = time.perf_counter(), time.process_time()
    extra: Record = {}
    if row.peer:
        metrics = run_peer(row.peer, subject, config, request.weights_of(config))
    else:
        detector, extra = _train(request, subject, config, row, reader, folder)
        chosen = subject.balanced(seed) if request.plan.data == "cifar10" else None
        metrics = evaluate(detector.network_, subject, reader, chosen)
        if chosen is not None:
            extra["image_auroc_all"] = evaluate(detector.network_, subject, reader).image_auroc
    return {
        "experiment": request.plan.name,
        "category": subject.name,
        "seed": seed,
        "row": row.name,
        "metrics": metrics.to_dict(),
        **extra,
        "train": len(subject.train),
        "test": len(subject.test),
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "peak_memory_mib": peak_memory(),
        **machine(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "config": plain_config(config),
    }


def _train(
    request: Request, subject: Subject, config: Config, row: Row, reader: SharedReader, folder: Path
) -> tuple[AnomalyDetector, Record]:
    """The trained detector of a row, and what its training tells of itself."""
    from adtr.data.sources import GoodSources
    from adtr.detector import AnomalyDetector
    from adtr.experiments.identity import Trace
    from adtr.learning.fit import fit
    from adtr.learning.improve import Lesson, improve

    weights, seed = request.weights_of(config), config.training.seed
    work = folder / f"{seed}-{_digest(config, row)}"
    if row.continues is None:
        trace = Trace(subject, reader, config) if request.plan.traced else None
        learned = fit(
            config,
            GoodSources(subject.train, subject.root),
            device=request.device,
            backbone_weights=weights,
            reader=reader,
            keep_features=True,
            work_folder=work if trace is None else None,
            resume=trace is None,
            observer=trace,
        )
        detector = AnomalyDetector.from_learned(learned, device=request.device, backbone_weights=weights)
        if any(other.continues == row.name for other in request.plan.rows):
            detector.features_ = None  # they are at hand, or made again
            detector.save(folder / f"{seed}-{_digest(config, row)}-model")
        extra = _described(detector, learned.metadata["training"])
        if trace is not None:
            trace.finish(learned.network, learned.metadata["training"]["steps"])
            extra["curve"] = trace.points
        return detector, extra
    first = next(other for other in request.plan.rows if other.name == row.continues)
    base = folder / f"{seed}-{_digest(request.config(first, seed), first)}-model"
    if base.is_dir():
        detector = AnomalyDetector.load(base, device=request.device, backbone_weights=weights)
    else:
        detector, _ = _train(request, subject, request.config(first, seed), first, reader, folder)
    lesson: dict[str, Any] = {
        "anomalies": None,
        "annotations": None,
        "labels": "auto",
        "synthetic": (),
        "external": None,
    }
    lesson.update(request.lesson())
    learned, improvement = improve(
        detector,
        Lesson(**lesson, good=subject.train),
        config,
        reader=reader,
        work_folder=work,
        resume=True,
    )
    better = AnomalyDetector.from_learned(learned, device=request.device, backbone_weights=weights)
    return better, _described(better, {"losses": improvement.losses})


def _digest(config: Config, row: Row) -> str:
    """Tells the checkpoints of one row and configuration from others."""
    return hashlib.sha256(f"{row.name}{config}".encode()).hexdigest()[:12]


def _described(detector: AnomalyDetector, training: Mapping[str, Any]) -> Record:
    embedding = detector.network_.embedding
    parameters = sum(p.numel() for p in detector.network_.reconstruction.parameters())
    return {
        "backbone": {"source": embedding.source, "sha256": embedding.sha256},
        "parameters": parameters,
        "device": str(detector.network_.feature_mean.device),
        "precision": training.get("precision"),
        "steps": training.get("steps"),
        "losses": [training["losses"][0], training["losses"][-1]],
    }

"""What a run tells a tracking tool: TensorBoard, MLflow or Weights & Biases, each through its own client.

Nothing leaves the machine unless somebody asks for it: by the address of an MLflow server, or by WANDB_MODE=online.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adtr.errors import AdtrError, AdtrWarning, ConfigError
from adtr.settings import unknown

if TYPE_CHECKING:
    from mlflow.entities import Metric

PROJECT = "adtr"
"""MLflow's experiment and W&B's project, unless the tools' own environment variables name another."""

FLUSH_SECONDS = 5.0
"""So long MLflow's losses are gathered before they are sent together."""


class Tracker(ABC):
    """One run in a tracking tool.

    The work matters more than its tracking: a tool that fails in the middle is told no more, with one warning.
    """

    where: str
    """Where people find the run."""
    _failed = False

    def log_config(self, values: Mapping[str, Any]) -> None:
        """The configuration, flat."""
        self._tell(self._write_config, values)

    def log_losses(self, values: Mapping[str, float], step: int) -> None:
        """What a training step, or an epoch that ends with it, measured."""
        self._tell(self._write_losses, values, step)

    def log_results(self, values: Mapping[str, Any]) -> None:
        """What came of it, once, at the end: the finite numbers of a mapping, whatever its depth."""
        self._tell(self._write_results, dict(_numbers(values)))

    def log_image(self, name: str, path: Path) -> None:
        """A picture in a file; the name may have folders."""
        self._tell(self._write_image, name, path)

    def log_model(self, folder: Path) -> None:
        """A saved model's folder, as an artifact where the tool has such."""
        self._tell(self._write_model, folder)

    def finish(self, *, failed: bool) -> None:
        """The run is over."""
        self._tell(self._end, failed)

    def _tell(self, write: Callable[..., None], *values: object) -> None:
        if self._failed:
            return
        try:
            write(*values)
        except Exception as error:  # noqa: BLE001 - of any client, of any transport
            self._failed = True
            warnings.warn(f"{self.where} takes no more: {_line(error)}; the work goes on", AdtrWarning, stacklevel=3)

    @abstractmethod
    def _write_config(self, values: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _write_losses(self, values: Mapping[str, float], step: int) -> None: ...

    @abstractmethod
    def _write_results(self, values: Mapping[str, float]) -> None: ...

    @abstractmethod
    def _write_image(self, name: str, path: Path) -> None: ...

    @abstractmethod
    def _write_model(self, folder: Path) -> None: ...

    @abstractmethod
    def _end(self, failed: bool) -> None: ...


class TensorBoard(Tracker):
    """Event files below a folder, "runs" by default, through Fabric's logger. It has no artifacts: a model's path."""

    def __init__(self, where: str, name: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        self.logger = TensorBoardLogger(where or "runs", name=name)
        self.writer = self.logger.experiment
        self.where = f"TensorBoard ({self.logger.log_dir})"
        self.config: dict[str, Any] = {}

    def _write_config(self, values: Mapping[str, Any]) -> None:
        self.config = dict(values)
        table = "\n".join(f"|{key}|{value}|" for key, value in values.items())
        self.writer.add_text("configuration", f"|field|value|\n|---|---|\n{table}")

    def _write_losses(self, values: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(values), step)

    def _write_results(self, values: Mapping[str, float]) -> None:
        self.logger.log_hyperparams(self.config, dict(values))  # TensorBoard compares runs by both together

    def _write_image(self, name: str, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self.writer.add_image(name, np.asarray(image.convert("RGB")), dataformats="HWC")

    def _write_model(self, folder: Path) -> None:
        self.writer.add_text("model", str(folder.resolve()))

    def _end(self, failed: bool) -> None:  # noqa: ARG002 - it knows no failure
        self.logger.finalize("")


class MLflow(Tracker):
    """A run in MLflow, at a tracking URI: a server's address, or a database; MLflow's own default else."""

    def __init__(self, where: str, name: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its 7 keep a training waiting for minutes
        from mlflow import MlflowClient
        from mlflow.tracking import get_tracking_uri

        self.client = MlflowClient(where or get_tracking_uri())
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self.client.get_experiment_by_name(project)
        identifier = experiment.experiment_id if experiment else self.client.create_experiment(project)
        self.run = self.client.create_run(identifier, run_name=name).info.run_id
        self.where = f"MLflow ({where or get_tracking_uri()}, experiment {project}, run {self.run})"
        self.waiting: list[Metric] = []
        self.sent = time.monotonic()

    def _write_config(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.run, params=[Param(key, str(value)) for key, value in values.items()])

    def _write_losses(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.waiting += [Metric(key, value, now, step) for key, value in values.items()]
        if time.monotonic() - self.sent > FLUSH_SECONDS or len(self.waiting) > 900:  # a batch holds at most 1000
            self._send()

    def _send(self) -> None:
        self.client.log_batch(self.run, metrics=self.waiting)
        self.waiting, self.sent = [], time.monotonic()

    def _write_results(self, values: Mapping[str, float]) -> None:
        self._write_losses(values, 0)
        self._send()

    def _write_image(self, name: str, path: Path) -> None:
        self.client.log_artifact(self.run, str(path), str(Path(name).parent))

    def _write_model(self, folder: Path) -> None:
        self.client.log_artifacts(self.run, str(folder), "model")

    def _end(self, failed: bool) -> None:
        self._send()
        self.client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


class WeightsAndBiases(Tracker):
    """A run of Weights & Biases, below a folder, offline unless WANDB_MODE says otherwise."""

    def __init__(self, where: str, name: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if where:
            Path(where).mkdir(parents=True, exist_ok=True)
        self.wandb = wandb
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=name,
            dir=where or None,
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True),
        )
        self.where = f"Weights & Biases ({self.run.url or Path(self.run.dir).parent})"

    def _write_config(self, values: Mapping[str, Any]) -> None:
        self.run.config.update(dict(values))

    def _write_losses(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def _write_results(self, values: Mapping[str, float]) -> None:
        self.run.summary.update(dict(values))

    def _write_image(self, name: str, path: Path) -> None:
        self.run.log({name: self.wandb.Image(str(path))})

    def _write_model(self, folder: Path) -> None:
        artifact = self.wandb.Artifact(folder.resolve().name, type="model")
        artifact.add_dir(str(folder))
        self.run.log_artifact(artifact)

    def _end(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


TRACKERS: dict[str, Callable[[str, str], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WeightsAndBiases,
}


def check_tool(tool: str) -> tuple[str, str]:
    """The name of a tracking tool, and what follows its colon.

    Raises:
        ConfigError: an unknown tool, or one that is not installed.
    """
    kind, _, where = tool.partition(":")
    if kind not in TRACKERS:
        raise ConfigError(unknown("tracking tool", kind, TRACKERS))
    package = find_spec(kind)
    if package is None or package.origin is None:  # a folder of runs, here, looks like a package without a file
        raise ConfigError(f"--track {kind} needs its package: pip install 'adtr[{kind}]'")
    return kind, where


@contextlib.contextmanager
def tracked(tool: str | None, name: str) -> Iterator[Tracker | None]:
    """A run in a tracking tool, which ends with the block; nothing where no tool is named.

    Args:
        tool: "tensorboard", "mlflow" or "wandb"; after a colon a folder, or for MLflow a tracking URI.
        name: what the tool calls the run.

    Raises:
        ConfigError: an unknown tool, or one that is not installed.
        AdtrError: it cannot be reached or written to.
    """
    if tool is None:
        yield None
        return
    kind, where = check_tool(tool)
    try:
        tracker = TRACKERS[kind](where, name)
    except Exception as error:
        raise AdtrError(f"{kind} cannot track this run{f' at {where}' if where else ''}: {_line(error)}") from error
    try:
        yield tracker
    except BaseException:
        tracker.finish(failed=True)
        raise
    tracker.finish(failed=False)


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{prefix}{key}", float(value)


def _line(error: BaseException) -> str:
    """The first line of a client's complaint, which may go on for pages."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__

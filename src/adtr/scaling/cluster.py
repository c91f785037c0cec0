"""Ray: started on this machine, or reached where RAY_ADDRESS says. Imported only where it is asked for."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

import ray
import ray.data

from adtr.errors import ConfigError

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody outside
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its processes write into this one's stderr
}


def connect(cpus: int | None = None, **options: Any) -> None:  # noqa: ANN401
    """Connect to a cluster, if this process is not connected yet.

    That is the one that RAY_ADDRESS names, or a new one on this machine, which ends with this process, tells nobody
    about itself, and obeys nobody but this process and its children: whoever lacks their token is refused.

    Args:
        cpus: of a new cluster; None takes the machine's.
        **options: of a new cluster; see `ray.init`.

    Raises:
        ConfigError: the cluster cannot be reached.
    """
    if ray.is_initialized():
        return
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    for handler in logging.getLogger("ray.data").handlers:
        if type(handler).__module__.startswith("ray."):  # Ray hangs the root's there too, which are the caller's
            handler.setLevel(logging.CRITICAL)
    how: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())  # else Ray keeps one in the home folder
        with _silent():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **how, **options)
        return
    try:
        with _silent():
            ray.init(address=address, **how)
    except (ConnectionError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS {address} ({reason})") from error


def gpus_for(device: str, *, exported: bool = False) -> int:
    """How many of the cluster's GPUs serve, each for a worker of its own; 0 where the cores do the work.

    Args:
        device: "auto", "cpu" or "cuda".
        exported: the model is an exported file, which runs on the CPU.

    Raises:
        ConfigError: another device, or no GPU where one is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"the engine ray shares the devices out itself: --device auto, cpu or cuda, not {device!r}")
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if device == "cuda" and not gpus:
        raise ConfigError("the cluster has no GPU; take --device auto or cpu")
    return 0 if device == "cpu" or exported else gpus


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what native code, and processes started meanwhile, write to stderr; errors are raised as ever."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)

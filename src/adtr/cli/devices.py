"""`--devices` and `--nodes`: a command as several processes, one for each device, started and watched by torchrun."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from typing import TYPE_CHECKING

import click

from adtr.cli.options import Function
from adtr.errors import AdtrError, ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

BUG, MISTAKE, LOST = 1, 2, 3
"""What the exit code of a process says: the text that it left is a traceback, or a line for the user, or tells that
another process went away."""

PROCESS = ("-m", "adtr.cli.one_of_several")
"""What Python runs in each process."""

JOINING_SECONDS = 600
"""So long the machines wait for one another."""


def devices_options(function: Function) -> Function:
    """`--devices` and `--nodes`."""
    function = click.option(
        "--nodes",
        default=1,
        type=click.IntRange(min=1),
        metavar="M",
        help="Machines that share the work, on each of which the command is given.  [default: 1]",
    )(function)
    return click.option(
        "--devices",
        default=1,
        type=click.IntRange(min=1),
        metavar="N",
        help="Devices of each machine that share the work.  [default: 1]",
    )(function)


def is_one_of_several() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def join(device: str, precision: str) -> Fabric | None:
    """The Fabric of the processes that torchrun started, this one among them; None where it did not.

    Args:
        device: the kind of devices, by name; see `choose_device`.
        precision: of `TrainingConfig`.
    """
    if not is_one_of_several():
        return None
    from adtr.device import choose_device
    from adtr.training.processes import create_fabric

    fabric = create_fabric(
        choose_device(device),
        precision,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]),
        nodes=int(os.environ["GROUP_WORLD_SIZE"]),
    )
    fabric.launch()
    return fabric


def launch(device: str, devices: int, nodes: int) -> None:
    """Run this very command once for each device, and wait.

    Args:
        device: the kind of devices, by name.
        devices: on this machine.
        nodes: machines, on each of which somebody gives the command.

    Raises:
        AdtrError: what one of the processes says is wrong; or a process went away.
    """
    from adtr.device import check_devices

    arguments = click.get_current_context().find_root().obj
    check_devices(device, devices)
    address, port, rank = _meeting_place(nodes)

    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable()  # torchrun tells of each process that it starts, and each that it ends
    with tempfile.TemporaryDirectory(prefix="adtr-") as logs:
        config = LaunchConfig(
            min_nodes=nodes,
            max_nodes=nodes,
            nproc_per_node=devices,
            run_id="adtr",
            rdzv_backend="static",
            rdzv_endpoint=f"{address}:{port}",
            rdzv_configs={"rank": rank, "timeout": JOINING_SECONDS},
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, redirects={i: Std.ALL for i in range(devices) if i or rank}),
        )
        try:
            elastic_launch(config, sys.executable)(*PROCESS, *arguments)
        except ChildFailedError as error:
            _tell(error.failures)
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from error
            sys.exit(128 + error.sigval)
        except DistError as error:
            raise AdtrError(f"no meeting of {nodes} machines at {address}:{port}: {_first_line(error)}") from error
        finally:
            logging.disable(logging.NOTSET)


def _meeting_place(nodes: int) -> tuple[str, int, int]:
    """Address, port and this machine's number, from the environment where there are several machines."""
    if nodes == 1:
        from torch.distributed.elastic.utils.distributed import get_free_port

        return "127.0.0.1", get_free_port(), 0
    try:
        address, port, rank = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK"))
    except KeyError as error:
        raise ConfigError(
            f"--nodes {nodes} needs {error.args[0]} in the environment: MASTER_ADDR and MASTER_PORT of the first "
            "machine, and NODE_RANK, which counts the machines from 0"
        ) from error
    if not (port.isdecimal() and rank.isdecimal() and int(rank) < nodes):
        raise ConfigError(f"MASTER_PORT {port!r} must be a port, and NODE_RANK {rank!r} a number from 0 to {nodes - 1}")
    return address, int(port), int(rank)


def _tell(failures: dict[int, ProcessFailure]) -> None:
    """Of all failures the one that brought the others about.

    Raises:
        AdtrError: a user's mistake, or a process that went away.
    """
    rank, failure = min(failures.items(), key=lambda item: (_aftermath(item[1].exitcode), item[1].timestamp))
    if failure.exitcode < 0:
        raise AdtrError(
            f"process {rank} of the training was killed ({failure.signal_name()}), and the others were ended; "
            "the same command with --resume goes on from the last checkpoint"
        )
    if failure.exitcode == LOST:
        raise AdtrError(
            f"process {rank} lost another one ({failure.message}), and those of this machine were ended; "
            "the same command with --resume, on each machine, goes on from the last checkpoint"
        )
    if failure.exitcode == MISTAKE:
        raise AdtrError(failure.message)
    click.echo(failure.message, err=True)
    sys.exit(BUG)


def _aftermath(code: int) -> int:
    """The larger, the likelier a failure only followed another one: torchrun ends by SIGTERM whoever is left."""
    if code < 0:
        return 3 if code == -signal.SIGTERM else 0
    return 2 if code == LOST else 1


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

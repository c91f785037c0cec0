"""Commands that are killed, refused a write, or short of memory, then run again: is anything lost?

Each trial starts a command and ends it with SIGKILL at a random moment, or before or after one of its writes; or it
refuses that write and all that follow (disk full, read-only, input/output error), or lends the command little memory,
which must then say so in one line and exit with 2. Nothing half-written may be taken for whole. At last the same
command runs to its end, and must leave what an uninterrupted run leaves: the same bits of the model, each result once,
and no other files. Needs Linux.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the children are forked from a process with one thread

import argparse
import builtins
import errno
import io
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adtr.errors import AdtrError
from common import parser, table, write
from reliability_scenarios import SCENARIOS, Scenario, prepare

WRITES = ("open", "fsync", "rename", "replace", "truncate", "unlink", "rmdir", "mkdir", "symlink")
"""Of the module `os`: before and after each of these, on a file of the trial, a command may be killed."""
ERRORS = (errno.ENOSPC, errno.EROFS, errno.EIO)
MEMORY = (10, 60)
"""MiB; where not even a thread's stack of 8 MiB can be had, Python waits forever for the thread to begin."""


@dataclass(frozen=True)
class Fault:
    """What happens to a command: it is killed, unless `error` or `memory` is given."""

    after: float | None = None
    """Killed after so many seconds."""
    point: int | None = None
    """At this write point; even ones lie before a write, odd ones after it."""
    error: int | None = None
    """What the system says to the write at `point`, and to all later ones."""
    memory: int | None = None
    """MiB of address space that it may have more than at its start."""

    def describe(self, points: list[str]) -> str:
        """One line."""
        if self.memory is not None:
            return f"with {self.memory} MiB"
        if self.point is None:
            return f"killed after {self.after:.3f} s"
        return f"{'killed' if self.error is None else os.strerror(self.error)} {points[self.point]}"


class WritePoints:
    """Counts the writes to files below a folder by wrapping the calls of the system, and lets a fault happen at one.

    Args:
        root: whose files count.
        fault: the fault, if any.
        log: receives a line for each point.
    """

    def __init__(self, root: Path, fault: Fault | None, log: Path | None) -> None:
        self.root, self.fault, self.log = str(root), fault, log.open("w") if log else None
        self.count = 0

    def install(self) -> None:
        """For the rest of this process."""
        from adtr import files

        for name in WRITES:
            setattr(os, name, self._wrapped(getattr(os, name), name))
        files._exchange = self._wrapped(files._exchange, "exchange")  # noqa: SLF001 - calls the system itself
        io.open = builtins.open = self._wrapped(io.open, "open")

    def _wrapped(self, function: Callable[..., object], name: str) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            place = self._place(name, arguments, options)
            if place is None:
                return function(*arguments, **options)
            self._point(f"before {name} {place}")
            result = function(*arguments, **options)
            self._point(f"after {name} {place}")
            return result

        return call

    def _place(self, name: str, arguments: tuple, options: dict) -> str | None:
        """The file that is about to be written, if it is one of ours."""
        if name == "open":
            mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
            reads = mode & (os.O_WRONLY | os.O_RDWR) == 0 if isinstance(mode, int) else not set(mode) & set("wax+")
            if reads or isinstance(arguments[0], int):
                return None
        if name == "fsync" or options.get("dir_fd") is not None:
            handle = arguments[0] if name == "fsync" else options["dir_fd"]
            path = Path(f"/proc/self/fd/{handle}")
            place = str(path.readlink()) if path.exists() else ""
        else:
            place = os.fsdecode(os.fspath(arguments[0]))
        return place.removeprefix(self.root) if place.startswith(self.root) else None

    def _point(self, what: str) -> None:
        fault = self.fault
        if fault and fault.error is not None and self.count >= fault.point and what.startswith("before"):
            raise OSError(fault.error, os.strerror(fault.error))
        if fault and fault.error is None and self.count == fault.point:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # until it comes
        self.count += 1
        if self.log:
            print(what, file=self.log, flush=True)


def start(scenario: Scenario, place: Path, fault: Fault | None = None, points: Path | None = None) -> int:
    """A child that runs the scenario's command; its process number."""
    assert threading.active_count() == 1, "a fork takes only one thread with it"
    (place / "log.txt").unlink(missing_ok=True)
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1), os.dup2(output, 2)
        from adtr.cli import main
        from adtr.training import loop

        loop.CHECKPOINT_SECONDS = 0.0
        tempfile.tempdir = str(place / "tmp")
        scenario.patch()
        if points or (fault and fault.point is not None):
            WritePoints(place / "out", fault, points).install()
        if fault and fault.memory is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + (fault.memory << 20)
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        main(scenario.arguments(place))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the child must not return into the campaign
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def finish(scenario: Scenario, place: Path, child: int, fault: Fault | None = None) -> int | None:
    """The exit code; None where it was killed. A command that does not end is stopped once it has done its work."""
    deadline = time.monotonic() + (fault.after if fault and fault.after is not None else 600)
    stopped = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else None
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            if not fault or fault.after is None:
                os.waitpid(child, 0)
                raise AssertionError("it did not end")
        elif not stopped and (not fault or fault.after is None) and scenario.has_done(place):
            os.kill(child, signal.SIGTERM)
            stopped = True
        time.sleep(0.002)


class Campaign:
    """The trials of one scenario.

    Args:
        scenario: what is run.
        materials: made by `prepare`.
        folder: receives a folder for each trial.
    """

    def __init__(self, scenario: Scenario, materials: Path, folder: Path) -> None:
        self.scenario, self.materials, self.folder = scenario, materials, folder
        folder.mkdir(parents=True)
        began = time.monotonic()
        self.expected = self._place("reference")
        self._complete(self.expected)
        self.seconds = time.monotonic() - began
        traced = self._place("traced")
        log = folder / "points.txt"
        finish(scenario, traced, start(scenario, traced, points=log))
        self.points = log.read_text().splitlines()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def _place(self, name: str, *, older: bool = False) -> Path:
        place = self.folder / name
        for part in ("out", "tmp"):
            (place / part).mkdir(parents=True)
        self.scenario.furnish(self.materials, place, older=older)
        return place

    def _complete(self, place: Path) -> None:
        code = finish(self.scenario, place, start(self.scenario, place))
        assert code == 0, f"exit code {code}: {(place / 'log.txt').read_text()[-2000:]}"

    def trial(self, faults: list[Fault], *, older: bool) -> None:
        """Let the faults happen, look what is there after each, let the command end, and compare."""
        self.counts["trials"] += 1
        place = self._place(f"trial-{self.counts['trials']}", older=older)
        try:
            for fault in faults:
                code = finish(self.scenario, place, start(self.scenario, place, fault), fault)
                said = (place / "log.txt").read_text()
                if code is None:
                    self.counts["random kills" if fault.point is None else "kills at writes"] += 1
                elif code == 2 and (fault.error or fault.memory):
                    self.counts["writes refused" if fault.error else "memory refused"] += 1
                    assert len(re.findall(r"^adtr: error: .+$", said, re.MULTILINE)) == 1, f"said {said[-2000:]}"
                    assert "Traceback" not in said, f"said {said[-2000:]}"
                else:
                    assert code == 0, f"exit code {code}: {said[-2000:]}"
                if fault.memory is None:
                    self.scenario.check_killed(place, self.expected, older=older)
                else:
                    self.scenario.check_whole(place)
            self._complete(place)
            if any(fault.memory is not None for fault in faults):  # the bits may differ where memory is short
                self.scenario.check_whole(place)
            else:
                self.scenario.check_complete(place, self.expected)
        except (AssertionError, AdtrError) as error:
            what = ", then ".join(fault.describe(self.points) for fault in faults)
            self.problems.append(f"{self.scenario.name} {what}: {error}")
        finally:
            shutil.rmtree(place)

    def run(self, given: argparse.Namespace, share: int, rng: random.Random) -> dict[str, object]:
        """All trials; the numbers of those at writes are at most what was asked for."""
        count = len(self.points)
        faults = [
            [Fault(after=rng.uniform(0, 1.02 * self.seconds)) for _ in range(rng.choice((1, 1, 2)))]
            for _ in range(share)
        ]
        kills = range(count) if given.points is None else sorted(rng.sample(range(count), min(given.points, count)))
        faults += [[Fault(point=point)] for point in kills]
        writes = range(0, count, 2)
        refused = writes if given.errors is None else sorted(rng.sample(writes, min(given.errors, len(writes))))
        faults += [[Fault(point=point, error=rng.choice(ERRORS))] for point in refused]
        faults += [[Fault(memory=rng.randrange(*MEMORY))] for _ in range(given.memory)]
        for trial in faults:
            self.trial(trial, older=rng.random() < 0.5)
        names = ("trials", "random kills", "kills at writes", "writes refused", "memory refused")
        counts = {name: self.counts[name] for name in names}
        return {"command": self.scenario.name, "writes": count // 2, **counts, "problems": len(self.problems)}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=100, help="trials with random kills, over all commands")
    options.add_argument("--points", type=int, help="kills before or after a write, for each command; default: all")
    options.add_argument("--errors", type=int, help="refused writes, for each command; default: all")
    options.add_argument("--memory", type=int, default=10, help="limits of memory, for each command")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--commands", nargs="*", choices=list(SCENARIOS), default=list(SCENARIOS))
    given = options.parse_args()
    rng = random.Random(given.seed)
    rows, problems = [], []
    with tempfile.TemporaryDirectory(prefix="adtr-kills-") as name:
        materials = prepare(Path(name) / "materials", given.commands, _in_child)
        for i, command in enumerate(given.commands):
            campaign = Campaign(SCENARIOS[command], materials, Path(name) / command)
            share = given.count * (i + 1) // len(given.commands) - given.count * i // len(given.commands)
            rows.append(campaign.run(given, share, rng))
            problems += campaign.problems
            for problem in campaign.problems:
                print(problem, file=sys.stderr, flush=True)
    write(given.output, "reliability", {"seed": given.seed, "rows": rows, "problems": problems}, table(rows))
    sys.exit(1 if problems else 0)


def _in_child(work: Callable[[], None]) -> None:
    """Run something that may start threads where they do no harm."""
    child = os.fork()
    if not child:
        code = 70
        try:
            work()
            code = 0
        except BaseException:  # noqa: BLE001 - the child must not return into the campaign
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


if __name__ == "__main__":
    main()

"""Commands that are killed, at random moments and before and after every write, then run again: is anything lost?

Each trial starts a command, ends it with SIGKILL, checks that nothing half-written is taken for whole, perhaps does so
once more, then runs the same command to its end. What it leaves must be what an uninterrupted run leaves: the same bits
of the model, each result once, and no other files. Works on POSIX systems.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: the children are forked from a process with one thread

import builtins
import io
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common import parser, table, write
from kill_scenarios import SCENARIOS, Scenario, prepare

WRITES = ("open", "fsync", "rename", "replace", "truncate", "unlink", "rmdir", "mkdir", "symlink")
"""Of the module `os`: before and after each of these, on a file of the trial, a command may be killed."""


@dataclass(frozen=True)
class Kill:
    """When a command is killed."""

    after: float | None = None
    """Seconds."""
    point: int | None = None
    """Number of the write point; even ones lie before a write, odd ones after it."""


class WritePoints:
    """Counts the writes to files below a folder by wrapping the calls of the system, and kills at one of them.

    Args:
        root: whose files count.
        kill_at: the point; None for none.
        log: receives a line for each point.
    """

    def __init__(self, root: Path, kill_at: int | None, log: Path | None) -> None:
        self.root, self.kill_at, self.log = str(root), kill_at, log.open("w") if log else None
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
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)  # until it comes
        self.count += 1
        if self.log:
            print(what, file=self.log, flush=True)


def start(scenario: Scenario, place: Path, kill: Kill | None = None, points: Path | None = None) -> int:
    """A child that runs the scenario's command; its process number."""
    assert threading.active_count() == 1, "a fork takes only one thread with it"
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        output = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1), os.dup2(output, 2)
        from adtr.cli import main
        from adtr.training import loop

        loop.CHECKPOINT_SECONDS = 0.0
        tempfile.tempdir = str(place / "tmp")
        scenario.patch()
        if points or (kill and kill.point is not None):
            WritePoints(place / "out", kill.point if kill else None, points).install()
        main(scenario.arguments(place))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - the child must not return into the campaign
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def finish(scenario: Scenario, place: Path, child: int, kill: Kill | None = None) -> int | None:
    """The exit code; None where it was killed. A command that does not end is stopped once it has done its work."""
    deadline = time.monotonic() + (kill.after if kill and kill.after is not None else 120)
    stopped = False
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else None
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        elif not stopped and (not kill or kill.after is None) and scenario.has_done(place):
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
        self.kills = {"random": 0, "write point": 0}
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

    def trial(self, name: str, kills: list[Kill], *, older: bool) -> None:
        """Kill, look, perhaps again; then let the command end, and compare."""
        place = self._place(name, older=older)
        try:
            for kill in kills:
                code = finish(self.scenario, place, start(self.scenario, place, kill), kill)
                if code is not None:
                    assert code == 0, f"exit code {code}: {(place / 'log.txt').read_text()[-2000:]}"
                    continue
                self.kills["random" if kill.point is None else "write point"] += 1
                self.scenario.check_killed(place, self.expected, older=older)
            self._complete(place)
            self.scenario.check_complete(place, self.expected)
        except AssertionError as error:
            where = [self.points[k.point] if k.point is not None else f"{k.after:.3f} s" for k in kills]
            self.problems.append(f"{self.scenario.name}: {name}, killed {', then '.join(where)}: {error}")
        else:
            shutil.rmtree(place)

    def run(self, randoms: int, points: int | None, rng: random.Random) -> dict[str, object]:
        """Kills at random moments, and at all write points or some of them."""
        for i in range(randoms):
            moments = [Kill(after=rng.uniform(0, 1.02 * self.seconds)) for _ in range(rng.choice((1, 1, 2)))]
            self.trial(f"random-{i}", moments, older=rng.random() < 0.5)
        numbers = range(len(self.points))
        if points is not None and points < len(self.points):
            numbers = sorted(rng.sample(numbers, points))
        for number in numbers:
            self.trial(f"point-{number}", [Kill(point=number)], older=rng.random() < 0.5)
        return {
            "command": self.scenario.name,
            "seconds": self.seconds,
            "write points": len(self.points),
            "kills at write points": self.kills["write point"],
            "kills at random moments": self.kills["random"],
            "problems": len(self.problems),
        }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--count", type=int, default=100, help="trials at random moments, over all commands")
    options.add_argument("--points", type=int, help="trials at write points for each command; by default at every one")
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
            rows.append(campaign.run(share, given.points, rng))
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

"""A process that gives inputs to targets, within a limit of time and memory, and tells what came of each.

Every file that Python opens to write, every process it starts and every connection it makes is seen by an audit hook.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fuzzing.target import Target

LONGEST_MESSAGE = 2000

_WRITES = {
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate", "os.chown", "os.mkfifo"), (0,)),
    **dict.fromkeys(("os.rename", "os.link", "shutil.move"), (0, 1)),
    "os.symlink": (1,),
}
_FORBIDDEN = (
    *(
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.startfile",
        "subprocess.Popen",
        "pty.spawn",
    ),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "pickle.find_class"),
)


class TooSlow(BaseException):
    """The limit of time is reached; no error that adtr could take for one of its own."""


class Guard:
    """Sees what a run does to the world.

    Args:
        folder: may be written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._allowed: tuple[str, ...] = ()
        self._active = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    @contextmanager
    def active(self, allowed: tuple[str, ...]) -> Iterator[None]:
        """Look from here on, but not at these events."""
        self._allowed, self._active = allowed, True
        self.seen.clear()
        try:
            yield
        finally:
            self._active = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._active:
            return
        if event == "open":
            path, mode, flags = arguments
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) or set(mode or "") & set("wax+"):
                self._check(path, event)
        elif event in _WRITES and not any(
            isinstance(value, int) and value > 2 for value in arguments[len(_WRITES[event]) :]
        ):
            for i in _WRITES[event]:
                self._check(arguments[i], event)
        elif event in _FORBIDDEN and event not in self._allowed:
            self.seen.append(f"{event} {arguments!r}"[:300])

    def _check(self, path: object, event: str) -> None:
        if isinstance(path, int) or path in (os.devnull, None):
            return
        real = Path(os.path.realpath(os.path.dirname(os.fsdecode(path))))  # type: ignore[arg-type] # noqa: PTH120
        if not real.is_relative_to(self._folder):
            self.seen.append(f"{event} {os.fsdecode(path)}")  # type: ignore[arg-type]


def most_memory() -> float:
    """Largest resident set of this program so far, MiB; `getrusage` also counts what it was started from."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def write_case(files: dict[str, Any], folder: Path) -> None:
    """Put the files of an input into a folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif content.kind == "link":
            path.symlink_to(content.to)
        elif content.kind == "pipe":
            os.mkfifo(path)
        else:
            path.mkdir()


def attempt(
    target: Target, case: Path, out: Path, *, seconds: float, guard: Guard, said: Callable[[], str]
) -> tuple[str, str]:
    """What came of an input, and what there is to say about it.

    Args:
        target: takes the input.
        case: holds it.
        out: may be written to.
        seconds: limit of its time.
        guard: sees what it does.
        said: what was written to stderr since it was last asked.
    """
    from adtr.errors import AdtrError

    def stop(*_: object) -> None:
        raise TooSlow

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    outcome, detail = "taken", ""
    try:
        with guard.active(target.allowed):
            target.run(case, out)
    except AdtrError as error:
        outcome, detail = "refused", str(error)
    except SystemExit as stopped:
        outcome = {0: "taken", None: "taken", 3: "taken", 2: "refused"}.get(stopped.code, "crash")  # type: ignore[arg-type]
    except TooSlow:
        outcome, detail = "slow", "".join(traceback.format_exc()[-1500:])
    except MemoryError:
        outcome, detail = "memory", traceback.format_exc()[-1500:]
    except BaseException:  # noqa: BLE001 - what a crash is
        outcome, detail = "crash", traceback.format_exc()[-2500:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    text = said()
    if outcome == "refused":
        if not detail:
            detail, text = text.removeprefix("adtr: error: ").removesuffix("\n"), ""
        if not detail or len(detail) > LONGEST_MESSAGE or len(detail.splitlines()) > 1:
            outcome, detail = "no clear line", repr(detail[:500])
    if "Traceback (most recent call last)" in text and outcome in ("taken", "refused"):
        outcome, detail = "crash", text[-2500:]
    if guard.seen:
        outcome, detail = "reached out", "; ".join(guard.seen)[:1000]
    if outcome in ("taken", "refused") and text.strip():
        return f"{outcome}, noisy", text[:300]
    return outcome, detail


def main() -> None:
    """Arguments: a JSON object of target, seed, first, count, models, folder, seconds, mebibytes."""
    job = json.loads(sys.argv[1])
    report = os.fdopen(os.dup(1), "w")
    folder = Path(job["folder"]).resolve()
    told = folder / "told"
    told.touch()
    handle = os.open(told, os.O_RDWR | os.O_APPEND)
    from fuzzing.targets import TARGETS

    target, models = TARGETS[job["target"]](), Path(job["models"]).resolve()
    (folder / "work").mkdir()
    os.chdir(folder / "work")  # empty, and must stay so
    opened = folder / "may" / "opened"
    opened.mkdir(parents=True)
    target.open(models, opened)
    guard = Guard(folder / "may")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(handle, 2)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + job["mebibytes"] * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def said() -> str:
        text = told.read_bytes()[:100_000].decode("utf-8", "replace")
        os.truncate(told, 0)
        return text

    for i in range(job["first"], job["first"] + job["count"]):
        name = f"{target.name}-{job['seed']}-{i}"
        case, out = folder / "case", folder / "may" / "out"
        write_case(target.make(random.Random(name), models), case)
        out.mkdir()
        report.write(json.dumps({"begin": i}) + "\n")
        report.flush()
        started = perf_counter()
        outcome, detail = attempt(target, case, out, seconds=job["seconds"], guard=guard, said=said)
        record = {"end": i, "name": name, "outcome": outcome, "detail": detail, "seconds": perf_counter() - started}
        record["mebibytes"] = most_memory()
        if any((folder / "work").iterdir()):
            record.update(outcome="reached out", detail=f"it wrote {next((folder / 'work').iterdir())}")
            break
        if not outcome.startswith(("taken", "refused")):
            kept = folder.parent / "inputs" / name
            if not kept.exists():
                shutil.copytree(case, kept, symlinks=True, ignore=_specials)
        shutil.rmtree(case)
        shutil.rmtree(out)
        report.write(json.dumps(record) + "\n")
        report.flush()
    os._exit(0)  # threads that still wait for something do not matter


def _specials(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]


if __name__ == "__main__":
    main()

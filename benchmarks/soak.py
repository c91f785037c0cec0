"""Hours of steady work: whether memory, open files, threads or waiting times grow in a server and in an endless stream.

The server is asked at a fixed rate, whether it has answered or not, so that what it delays counts as delay. Of ten
requests seven hold an image, one holds a form of two and asks for maps, one a damaged image, and one asks for metrics.
A second process takes verdicts from an endless stream of the same images at a fixed rate.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from common import parser, table, write

PARTS = 12
"""Equal parts of the time that slopes are fitted to, and rows of the table."""
PNG = {"Content-Type": "image/png"}


@dataclass
class Counts:
    """What happened in an interval."""

    seconds: list[float] = field(default_factory=list)
    """From when a request with one image was due to its answer."""
    answers: int = 0
    unexpected: list[str] = field(default_factory=list)

    def take(self) -> Counts:
        """All of it; what comes now belongs to the next interval."""
        taken = replace(self)
        self.seconds, self.answers, self.unexpected = [], 0, []
        return taken


def predict(model: Path, images: list[Path], rate: float, results: Connection) -> None:
    """Take verdicts from an endless stream at a rate, and tell how long each was waited for."""
    from adtr.detector import AnomalyDetector

    stream = AnomalyDetector.load(model, device="cpu").stream(itertools.cycle(images), batch_size=1)
    due = time.perf_counter()
    while True:
        started = time.perf_counter()
        prediction, _ = next(stream)
        prediction.to_dict()
        results.send(time.perf_counter() - started)
        due += 1 / rate
        time.sleep(max(0.0, due - time.perf_counter()))


async def request(session: httpx.AsyncClient, number: int, images: list[bytes], due: float, counts: Counts) -> None:
    """One of ten kinds of requests."""
    kind, image, expected, address = number % 10, images[number % len(images)], 200, "/v1/models/m/predict"
    try:
        if kind == 7:
            files = [("images", image), ("images", images[(number + 1) % len(images)])]
            answer = await session.post(f"{address}?map=png", files=files)
        elif kind == 8:
            expected = 400
            answer = await session.post(address, content=image[: len(image) // 2], headers=PNG)
        elif kind == 9:
            answer = await session.get("/metrics")
        else:
            answer = await session.post(address, content=image, headers=PNG)
            counts.seconds.append(time.perf_counter() - due)
        counts.answers += 1
        if answer.status_code != expected:
            counts.unexpected.append(str(answer.status_code))
    except httpx.HTTPError as error:
        counts.unexpected.append(type(error).__name__)


def resources(pid: int) -> dict[str, float]:
    """What a process holds now, and the seconds of CPU that it has had."""
    process = Path(f"/proc/{pid}")
    times = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    return {
        "memory_mib": int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "open_files": len(list((process / "fd").iterdir())),
        "threads": len(list((process / "task").iterdir())),
        "cpu_seconds": sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
    }


def busy_cores() -> tuple[float, float]:
    """Seconds that all cores together have worked for any process, and have passed."""
    values = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    return sum(values) - values[3] - values[4], sum(values)


def waits(seconds: list[float]) -> dict[str, float | None]:
    """Median, 95th percentile and the longest, milliseconds; None of none."""
    if not seconds:
        return {"p50_ms": None, "p95_ms": None, "max_ms": None}
    p50, p95, most = np.percentile(seconds, [50, 95, 100]) * 1000
    return {"p50_ms": float(p50), "p95_ms": float(p95), "max_ms": float(most)}


def slope(hours: np.ndarray, values: np.ndarray) -> tuple[float, float, float]:
    """Change in an hour with its 95 % interval, by least squares through the means of equal parts of the time.

    Neighbouring samples are not independent; means of long parts nearly are.
    """
    from scipy.stats import linregress, t

    kept = ~np.isnan(values)
    parts = [part for part in np.array_split(np.flatnonzero(kept), PARTS) if len(part)]
    fit = linregress([hours[part].mean() for part in parts], [values[part].mean() for part in parts])
    half = float(t.ppf(0.975, len(parts) - 2) * fit.stderr)
    return float(fit.slope), float(fit.slope) - half, float(fit.slope) + half


def column(rows: list[dict[str, Any]], process: str, name: str) -> np.ndarray:
    """A series; NaN where there was nothing to measure."""
    return np.array([np.nan if row[process][name] is None else row[process][name] for row in rows], float)


def summary(rows: list[dict[str, Any]], process: str, seconds: list[float], warm_minutes: float) -> dict[str, object]:
    """A row of the table: first and last values, slopes after the warm-up."""
    warm = [row for row in rows if row["minute"] > warm_minutes]
    hours = np.array([row["minute"] for row in warm]) / 60
    result: dict[str, object] = {"process": process, "answers": sum(row[process]["answers"] for row in rows)}
    result["unexpected"] = sum(len(row[process]["unexpected"]) for row in rows)
    for name in ("memory_mib", "open_files", "threads"):
        values = column(warm, process, name)
        result[f"{name}, first - most - last"] = f"{values[0]:.4g} - {values.max():.4g} - {values[-1]:.4g}"
    for name, unit in (("memory_mib", "MiB/h"), ("p50_ms", "ms/h")):
        change, low, high = slope(hours, column(warm, process, name))
        result[f"{name} slope, {unit}"] = f"{change:+.3g} ({low:+.3g} to {high:+.3g})"
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99]) * 1000
    result["p50 - p95 - p99, ms"] = f"{p50:.4g} - {p95:.4g} - {p99:.4g}"
    result["cores"] = float(column(rows, process, "cores").mean())
    return result


def parts_table(rows: list[dict[str, Any]]) -> str:
    """The means of equal parts of the whole time."""
    shown = []
    for part in np.array_split(np.arange(len(rows)), min(PARTS, len(rows))):
        some = [rows[i] for i in part]
        row: dict[str, object] = {"to minute": some[-1]["minute"]}
        for process in ("server", "stream"):
            row[f"{process}, MiB"] = float(column(some, process, "memory_mib").mean())
            for name in ("p50_ms", "p95_ms"):
                row[f"{process} {name.replace('_', ', ')}"] = float(np.nanmean(column(some, process, name)))
        row["busy cores"] = float(np.mean([other["busy_cores"] for other in some]))
        shown.append(row)
    return table(shown)


async def soak(
    address: str, pids: dict[str, int], results: Connection, images: list[bytes], arguments: Namespace, log: Path
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """A row for each interval, also appended to `log`, and all waiting times; ends early when told to stop."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    rows: list[dict[str, Any]] = []
    all_seconds: dict[str, list[float]] = {"server": [], "stream": []}
    tasks: set[asyncio.Task[None]] = set()
    counts = {"server": Counts(), "stream": Counts()}
    before = {name: resources(pid) for name, pid in pids.items()}
    busy, passed = busy_cores()
    started = time.perf_counter()
    ends_interval, ends = started + arguments.interval, started + 60 * arguments.minutes
    async with httpx.AsyncClient(base_url=address, timeout=60) as session:
        for i in itertools.count():
            due = started + i / arguments.requests
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            task = asyncio.create_task(request(session, i, images, due, counts["server"]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            now = time.perf_counter()
            if now < ends_interval and not stop.is_set():
                continue
            while results.poll():
                counts["stream"].seconds.append(results.recv())
                counts["stream"].answers += 1
            row: dict[str, Any] = {"minute": (now - started) / 60}
            elapsed = now - ends_interval + arguments.interval
            ends_interval = now + arguments.interval
            for name, pid in pids.items():
                held, count = resources(pid), counts[name].take()
                row[name] = {
                    **held,
                    "cores": (held["cpu_seconds"] - before[name]["cpu_seconds"]) / elapsed,
                    "answers": count.answers,
                    "unexpected": count.unexpected,
                    **waits(count.seconds),
                }
                before[name] = held
                all_seconds[name] += count.seconds
            busy_now, passed_now = busy_cores()
            row["busy_cores"] = (os.cpu_count() or 1) * (busy_now - busy) / (passed_now - passed)
            busy, passed = busy_now, passed_now
            rows.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            if stop.is_set() or now >= ends:
                break
        if tasks:
            await asyncio.wait(tasks, timeout=60)
    return rows, all_seconds


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("model", type=Path, help="model to serve and to predict with")
    made.add_argument("images", type=Path, help="folder of PNG images")
    made.add_argument("--minutes", type=float, default=120)
    made.add_argument("--interval", type=float, default=60, help="seconds between samples")
    made.add_argument("--warm-up", type=float, default=10, help="minutes that slopes leave out")
    made.add_argument("--requests", type=float, default=1, help="to the server, per second")
    made.add_argument("--predictions", type=float, default=1, help="of the stream, per second")
    arguments = made.parse_args()
    if (arguments.minutes - arguments.warm_up) * 60 / arguments.interval < 4:
        made.error("give at least 4 intervals after the warm-up")
    paths = sorted(arguments.images.rglob("*.png"))[:64]
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / "soak.jsonl"
    log.unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    results, told = context.Pipe(duplex=False)
    stream = context.Process(target=predict, args=(arguments.model, paths, arguments.predictions, told), daemon=True)
    stream.start()
    told.close()
    results.recv()  # it has begun
    command = [sys.executable, "-m", "adtr", "serve", f"m={arguments.model}", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        assert stream.pid is not None
        address = server.stdout.readline().strip()
        pids = {"server": server.pid, "stream": stream.pid}
        images = [path.read_bytes() for path in paths]
        try:
            rows, seconds = asyncio.run(soak(address, pids, results, images, arguments, log))
        finally:
            server.send_signal(signal.SIGTERM)
            stream.terminate()
        code = server.wait(60)
    summaries = [summary(rows, name, seconds[name], arguments.warm_up) for name in pids]
    others = [row["busy_cores"] - sum(row[name]["cores"] for name in pids) for row in rows]
    text = (
        f"{rows[-1]['minute']:.3g} minutes, {arguments.requests:g} requests and {arguments.predictions:g} predictions "
        f"per second; everything else on the machine took {np.mean(others):.2f} of its {os.cpu_count()} cores. Slopes "
        f"leave the first {arguments.warm_up:g} minutes out and have 95 % intervals. The server ended with code {code}."
    )
    write(
        arguments.output,
        "soak",
        {"summary": summaries, "other_cores": others, "exit_code": code, "rows": rows},
        f"{text}\n\n{table(summaries)}\n{parts_table(rows)}",
    )


if __name__ == "__main__":
    main()

"""The server under load: many clients at once, what they wait for, and whether its memory stays flat."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import httpx
import numpy as np

from common import parser, table, write

CLIENTS, SECONDS = 64, 60


def resident(pid: int) -> float:
    """Memory of a process now, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def client(
    address: str, images: list[bytes], number: int, end: float, statuses: Counter[str], latencies: list[float]
) -> None:
    """Ask again and again; where the server says that it is full, wait as long as it says."""
    turn = number
    async with httpx.AsyncClient(timeout=60) as session:
        while time.perf_counter() < end:
            started = time.perf_counter()
            try:
                answer = await session.post(
                    address, content=images[turn % len(images)], headers={"Content-Type": "image/png"}
                )
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1
                continue
            turn += 1
            statuses[str(answer.status_code)] += 1
            if answer.status_code == 200:
                latencies.append(time.perf_counter() - started)
            elif answer.status_code == 503:
                await asyncio.sleep(int(answer.headers["Retry-After"]))


async def load(
    address: str, pid: int, images: list[bytes], clients: int, seconds: float
) -> tuple[Counter[str], list[float], list[float]]:
    """Statuses, latencies of what was answered (seconds), and the memory each second (MiB)."""
    statuses: Counter[str] = Counter()
    latencies: list[float] = []
    memory: list[float] = []
    end = time.perf_counter() + seconds
    tasks = [asyncio.create_task(client(address, images, i, end, statuses, latencies)) for i in range(clients)]
    while not all(task.done() for task in tasks):
        memory.append(resident(pid))
        await asyncio.sleep(1)
    for task in tasks:
        task.result()
    return statuses, latencies, memory


def measure(
    model: Path, images: list[bytes], options: list[str], clients: int, seconds: float
) -> tuple[dict[str, object], list[float]]:
    """Serve a model in a process of its own, ask it, stop it: a row of the table, and the memory each second (MiB)."""
    command = [sys.executable, "-m", "adtr", "serve", f"m={model}", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        base = server.stdout.readline().strip()
        address = f"{base}/v1/models/m/predict"
        asyncio.run(load(address, server.pid, images, 4, 5))  # warm
        statuses, latencies, memory = asyncio.run(load(address, server.pid, images, clients, seconds))
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    assert latencies, statuses
    p50, p95, p99 = np.percentile(latencies, [50, 95, 99])
    quarter = max(1, len(memory) // 4)
    return (
        {
            "options": " ".join(options) or "(default)",
            "clients": clients,
            "answered": statuses["200"],
            "503": statuses["503"],
            "failed": statuses.total() - statuses["200"] - statuses["503"],
            "images/s": statuses["200"] / seconds,
            "p50, s": float(p50),
            "p95, s": float(p95),
            "p99, s": float(p99),
            "memory, second quarter, MiB": float(np.mean(memory[quarter : 2 * quarter])),  # the first warms up
            "last quarter, MiB": float(np.mean(memory[-quarter:])),
            "most, MiB": max(memory),
            "exit code": code,
        },
        memory,
    )


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("model", type=Path, help="model to serve")
    made.add_argument("images", type=Path, help="folder of PNG images to send")
    made.add_argument("--clients", type=int, default=CLIENTS)
    made.add_argument("--seconds", type=float, default=SECONDS)
    made.add_argument("--option", action="append", default=[], help="one more run with these options of adtr serve")
    arguments = made.parse_args()
    images = [path.read_bytes() for path in sorted(arguments.images.rglob("*.png"))[:64]]
    runs = [
        measure(arguments.model, images, options.split(), arguments.clients, arguments.seconds)
        for options in ["", *arguments.option]
    ]
    rows = [row for row, _ in runs]
    write(arguments.output, "serve", {"rows": rows, "memory": [memory for _, memory in runs]}, table(rows))


if __name__ == "__main__":
    main()

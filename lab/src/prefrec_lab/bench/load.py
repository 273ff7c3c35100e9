"""Measure requests per second of `prefrec serve` with many clients, compared with one request at a time.

    python -m prefrec_lab.bench.load runs/demo --clients 1,8,64 --seconds 30 --out load.json

Two servers of the run are started on loopback: one with default settings, and one with `--max-batch 1`. At each
number of clients they take turns under Locust, whose clients send test examples of the run without a pause. Standard
output is a table, and the JSON file has its data. The exit code is 1 if a status other than 200 and 429 was returned.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from prefrec.console import say

CLIENTS = Path(__file__).with_name("load_clients.py")
SERVERS = {"batched": [], "one at a time": ["--max-batch", "1"]}
"""Name → options of `prefrec serve`."""

WIDTH = 110
"""Columns that the table takes."""


@dataclass(frozen=True)
class Server:
    """A server that listens."""

    name: str
    url: str
    pid: int


@dataclass(frozen=True)
class Load:
    """Measurements of one server under one number of clients.

    Attributes:
        server: its name.
        clients: how many asked at once.
        answers: answers with code 200.
        seconds: from the first question that counted to the last answer.
        throughput: answers a second.
        p50, p99: seconds of an answer, as the client sees it; None without answers.
        codes: answers by status code; 0: none came.
        cpu: processor seconds of the server per answer; None without answers.
        load: what waited for a processor on the machine, its average over a minute at the end; None if unknown.
        peak_bytes: most memory of the server's process meanwhile, resident; None where the system does not say.
    """

    server: str
    clients: int
    answers: int
    seconds: float
    throughput: float
    p50: float | None
    p99: float | None
    codes: dict[str, int]
    cpu: float | None
    load: float | None
    peak_bytes: int | None


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; returns the exit code."""
    asked = _parser().parse_args(arguments)
    loads: list[Load] = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        servers = [
            stack.enter_context(_serving(asked, Path(scratch) / f"{i}.log", name, options))
            for i, (name, options) in enumerate(SERVERS.items())
        ]
        questions = Path(scratch) / "questions.json"
        questions.write_text(json.dumps(_questions(servers[0].url, asked)), encoding="utf-8")
        for clients in asked.clients:
            for server in servers:
                loads.append(_load(server, clients, asked, questions, Path(scratch) / "result.json"))
                say(f"{server.name}, {clients} clients: {loads[-1].throughput:.1f} answers/s")
    result = {
        "run": str(asked.run),
        "ask": asked.ask,
        "ranker": asked.ranker,
        "machine": {"platform": platform.platform(), "cpus": os.cpu_count()},
        "seconds_asked": asked.seconds,
        "loads": [asdict(load) for load in loads],
        "speedup": {str(n): _speedups(loads, n) for n in asked.clients},
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    Console(width=max(Console().width, WIDTH)).print(_table(loads, result["speedup"]))
    return int(any(set(load.codes) - {"200", "429"} for load in loads))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Throughput and latency of `prefrec serve`.")
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--ranker", help="which of its rankers; default: the last stage")
    parser.add_argument("--ask", choices=["rank", "recommend"], default="rank", help="what they ask for")
    parser.add_argument("--clients", type=_numbers, default=[1, 8, 64], help="numbers of clients, as 1,8,64")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a measurement")
    parser.add_argument("--warm-up", type=float, default=3.0, help="seconds before each that do not count")
    parser.add_argument("--rows", type=int, default=256, help="different questions, rows of the test split")
    parser.add_argument("--deadline", type=float, default=300.0, help="of the servers; so long that none is refused")
    parser.add_argument("--serve", default="", help="further options of both servers, as '--max-tokens 8192'")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    return parser


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


@contextmanager
def _serving(asked: argparse.Namespace, log: Path, name: str, options: Sequence[str]) -> Iterator[Server]:
    """Run a server of the run in a process of its own, until the block ends; `log` gets what it says."""
    command = [sys.executable, "-c", "from prefrec.cli import main; main()", "serve", str(asked.run), "--port", "0"]
    command += ["--deadline", str(asked.deadline), *(["--ranker", asked.ranker] if asked.ranker else [])]
    environment = {k: v for k, v in os.environ.items() if k != "PREFREC_API_KEY"}
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen([*command, *asked.serve.split(), *options], stderr=file, env=environment)
    try:
        while not (
            where := re.search(r"^Serving .* at (http://\S+)$", log.read_text(encoding="utf-8"), re.MULTILINE)
        ):
            if process.poll() is not None:
                raise SystemExit(f"the server ended before it listened:\n{log.read_text(encoding='utf-8')}")
            time.sleep(0.2)
        yield Server(name, where[1], process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _questions(url: str, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """Bodies for the door that is asked, made of the first rows of the run's test split."""
    bodies: list[dict[str, Any]] = []
    parts, there = ("history", "candidates") if asked.ask == "rank" else ("history",), asked.rows
    while len(bodies) < min(asked.rows, there):
        with urllib.request.urlopen(f"{url}/v1/example?row={len(bodies)}", timeout=60) as answer:  # nosec B310
            row = json.load(answer)
        there = row["rows"]
        body = {part: [{"item_id": i["item_id"]} for i in row[part]] for part in parts}
        bodies.append(body | ({"ranker": asked.ranker} if asked.ranker else {}))
    return bodies


def _load(server: Server, clients: int, asked: argparse.Namespace, questions: Path, result: Path) -> Load:
    """Let this many clients ask for the time that was given."""
    result.unlink(missing_ok=True)
    environment = os.environ | {
        "LOAD_ASK": asked.ask,
        "LOAD_QUESTIONS": str(questions),
        "LOAD_RESULT": str(result),
        "LOAD_WARM_UP": str(asked.warm_up),
    }
    seconds = asked.warm_up + asked.seconds
    command = [sys.executable, "-m", "locust", "-f", str(CLIENTS), "--headless", "--host", server.url]
    # What is under way when the time is up is waited for: a slow answer counts as well.
    command += ["-u", str(clients), "-r", str(clients), "-t", f"{seconds:.0f}s", "--stop-timeout", "600"]
    _reset_peak(server.pid)
    before = _cpu_seconds(server.pid)
    done = subprocess.run([*command, "--only-summary"], env=environment, capture_output=True, text=True, check=False)
    if not result.is_file():
        raise SystemExit(f"locust failed:\n{done.stderr[-4000:]}")
    found = json.loads(result.read_text(encoding="utf-8"))
    times = sorted(found["seconds"])
    answered = found["answered"]  # with those of the warm-up, in which the processor worked too
    span = float(found["span"])
    return Load(
        server=server.name,
        clients=clients,
        answers=len(times),
        seconds=span,
        throughput=len(times) / span if span else 0.0,
        p50=_quantile(times, 0.5),
        p99=_quantile(times, 0.99),
        codes=found["codes"],
        cpu=(_cpu_seconds(server.pid) - before) / answered if answered else None,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        peak_bytes=_peak(server.pid),
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _speedups(loads: Sequence[Load], clients: int) -> dict[str, float | None]:
    """Server → how many times its throughput the batched one has."""
    each = {x.server: x.throughput for x in loads if x.clients == clients}
    return {name: each["batched"] / throughput if throughput else None for name, throughput in each.items()}


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _reset_peak(pid: int) -> None:
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return  # then the peak is that since the server's start


def _peak(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None


def _table(loads: Sequence[Load], speedups: dict[str, dict[str, float | None]]) -> Table:
    table = Table(title="prefrec serve under load", title_justify="left")
    for column in (
        "clients",
        "server",
        "answers/s",
        "batched has",
        "p50 ms",
        "p99 ms",
        "CPU ms",
        "load",
        "codes",
        "peak MiB",
    ):
        table.add_column(column, justify="left" if column in ("server", "codes") else "right")
    for x in loads:
        speedup = speedups[str(x.clients)][x.server]
        table.add_row(
            str(x.clients),
            x.server,
            f"{x.throughput:.1f}",
            "–" if speedup is None else f"{speedup:.2f} ×",
            *("–" if s is None else f"{1000 * s:.0f}" for s in (x.p50, x.p99)),
            "–" if x.cpu is None else f"{1000 * x.cpu:.1f}",
            "–" if x.load is None else f"{x.load:.1f}",
            ", ".join(f"{n} × {code}" for code, n in sorted(x.codes.items())),
            "–" if x.peak_bytes is None else f"{x.peak_bytes / 2**20:.0f}",
        )
    return table


if __name__ == "__main__":
    sys.exit(main())

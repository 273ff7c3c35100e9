"""A server under clients that do not read, do not end or do not begin; others must be answered meanwhile."""

import json
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from reliability.readers import HISTORY, LISTED
from servers import free_port, serving

CLIENTS = 60
"""Connections of each kind in a round."""

PATIENCE_S, GONE_S = 60.0, 45.0
"""Seconds that an answer may take on a busy machine, and after which no connection may be held any more."""

GROWTH = 256 << 20
"""Bytes of memory that a server may gain."""

GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/rank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n"
HOSTILE = {
    "pipelines and reads nothing": (GET + b"\r\n") * 30,
    "asks for the page and reads nothing": GET + b"\r\n",
    "half a header": GET,
    "half a body": POST + b'{"history": [',
    "says nothing": b"",
    "no HTTP": bytes(range(256)) * 40,
}
"""What a client sends before it waits."""


@contextmanager
def served(run: Path, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The port and the process of `prefrec serve` with a run, as a process of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    port, code = free_port(), "from prefrec.cli import main; main()"
    command = [sys.executable, "-c", code, "serve", str(run), "--ui", "--port", str(port)]
    with serving(command, port, folder / "server.log", seconds=300, probe="/healthz"):
        (process,) = [p for p in psutil.Process().children() if str(port) in p.cmdline()]
        yield port, process


def beside_hostile(port: int, process: psutil.Process) -> tuple[int, list[str]]:
    """Ask beside `CLIENTS` connections of each kind of `HOSTILE`: how many both were, and what is wrong."""
    want, before = _rank(port), process.memory_info().rss
    wrong: list[str] = []
    with ExitStack() as stack:
        held = [stack.enter_context(_client(port, sent)) for _ in range(CLIENTS) for sent in HOSTILE.values()]
        for _ in range(5):
            wrong += _told("a probe", lambda: _get(port, "/healthz")[:0], b"")
            wrong += _told("a question", lambda: _rank(port), want)
        ends = time.monotonic() + GONE_S
        while (left := _held(process)) and time.monotonic() < ends:
            time.sleep(1)
        wrong += [f"{left} connections are held after {GONE_S:g} s"] if left else []
    grown = process.memory_info().rss - before
    wrong += [f"{grown >> 20} MB more memory"] if grown > GROWTH else []
    return len(held) + 10, wrong


def _client(port: int, sent: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with suppress(OSError):  # the server may have closed it by now
        connection.sendall(sent)
    return connection


def _held(process: psutil.Process) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in process.net_connections("tcp"))


def _told(what: str, ask: Callable[[], Any], want: Any) -> list[str]:
    start = time.monotonic()
    try:
        told = ask()
    except OSError as e:
        return [f"{what}: {type(e).__name__}: {e} after {time.monotonic() - start:.0f} s"]
    return [] if told == want else [f"{what} was answered otherwise: {told}"]


def _get(port: int, path: str, body: bytes | None = None) -> bytes:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return bytes(answer.read())


def _rank(port: int) -> Any:
    body = {"history": [{"item_id": i} for i in HISTORY], "candidates": [{"item_id": i} for i in LISTED]}
    return json.loads(_get(port, "/v1/rank", json.dumps(body).encode()))["ranking"]

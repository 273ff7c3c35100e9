"""Servers of language models as processes of their own, on free ports of this machine."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str], port: int, log: Path, *, seconds: float = 300, probe: str = "/health", **environment: str
) -> Iterator[str]:
    """The base address of a server that `command` starts; it is up (`probe`) on entry, and ended on exit."""
    with log.open("w", encoding="utf-8") as out:
        place = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
        process = subprocess.Popen(command, stdout=out, stderr=out, env=place)
        try:
            _wait(process, f"http://127.0.0.1:{port}{probe}", log, seconds)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def completions_server(model: Path, log: Path, **environment: str) -> AbstractContextManager[str]:
    """`completions_server.py` with a model folder."""
    port = free_port()
    command = [sys.executable, str(HERE / "completions_server.py"), str(model), str(port)]
    return serving(command, port, log, **environment)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(f"no server at {url}: {log.read_text(encoding='utf-8')[-2000:]}")

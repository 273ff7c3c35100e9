"""Measure each job in its own process, so that peak memory is the job's, and running out of memory ends only it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from prefrec_lab.bench.job import Job

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # waiting workers must not spin
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
LOAD_S = 600.0
"""Seconds after which a worker that has not imported its libraries counts as failed."""

SCARCE = 6 << 30
"""Bytes of free memory below which a process returns what it has freed before the next one has its turn.

Not always: with new pages every step would cost as much as the first of a training.
"""


class WorkerEndedError(Exception):
    """A worker could not measure; the message says why.

    Attributes:
        final: True if another attempt would end alike, for lack of memory.
    """

    def __init__(self, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.final = final


class Worker:
    """Measures one job in a fresh process, once per call of `measure`; a context manager.

    Args:
        job: what to measure.
        log: file to which the process's own output is appended.
        memory: bytes that it may take (on the CPU); None for no limit.
    """

    def __init__(self, job: Job, log: Path, memory: int | None) -> None:
        self.job = job
        self.log = log
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(other_end, job, log, memory), daemon=True)
        with _environment():
            self._process.start()
        other_end.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self._connection.close()
        self._process.join(timeout=0.0 if exception[0] else 20.0)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()
        self._process.close()

    def ready(self) -> None:
        """Wait until the libraries are imported.

        Raises:
            WorkerEndedError: the process ended, or did not start.
        """
        if not self._connection.poll(LOAD_S):
            raise WorkerEndedError(f"did not start within {LOAD_S:.0f} s")
        self._receive()

    def measure(self) -> Any:
        """Return the `Measured` of one repetition.

        Raises:
            WorkerEndedError: the process ran out of memory, or failed.
        """
        try:
            self._connection.send("measure")
        except OSError as e:
            raise self._ending() from e
        return self._receive()

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError) as e:
            raise self._ending() from e
        if isinstance(answer, str):  # instead of a measurement: what was scarce
            raise WorkerEndedError(answer, final=True)
        return answer

    def _ending(self) -> WorkerEndedError:
        self._process.join(timeout=20.0)
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return WorkerEndedError("killed, probably by the system for lack of memory", final=True)
        return WorkerEndedError(f"failed (exit code {code}); {self.log} says why")


def _serve(connection: Connection, job: Job, log: Path, memory: int | None) -> None:
    """Run in the process: report readiness, then measure on every request until the other end closes."""
    _write_to(log)
    warnings.simplefilter("ignore")
    print(f"--- {' '.join(map(str, job.key))}", file=sys.stderr, flush=True)  # noqa: T201
    import torch

    from prefrec_lab.bench.memory import give_memory_back, limit_memory
    from prefrec_lab.bench.methods import measure
    from prefrec_lab.machine import free_bytes

    if job.settings.threads:
        torch.set_num_threads(job.settings.threads)
    torch.set_float32_matmul_precision(job.settings.matmul_precision)
    if memory is not None and job.device == "cpu":
        limit_memory(memory)
    connection.send(None)  # ready
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        answer: Any
        try:
            answer = measure(job)
        except (MemoryError, RuntimeError) as e:
            if not out_of_memory(e):
                raise
            limit = f" (limit {memory / 2**30:.1f} GiB)" if memory is not None and job.device == "cpu" else ""
            answer = f"out of memory{limit}"
        if (free_bytes() or SCARCE) < SCARCE:
            give_memory_back()
        connection.send(answer)


def out_of_memory(error: BaseException) -> bool:
    """Return True for errors of numpy, torch and oneDNN that say that an allocation failed."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(s in text for s in ("out of memory", "allocate", "memory object"))


def _write_to(log: Path) -> None:
    """Send what the process and its libraries print to the log."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


@contextmanager
def _environment() -> Iterator[None]:
    """Set `ENVIRONMENT` for a process that is started inside; the user's own settings stay."""
    new = {k: v for k, v in ENVIRONMENT.items() if k not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]

"""Processes that may be killed or be given disks of their own: forks of a clean server that has imported prefrec.

A fork of the test's own process would inherit the thread pools of polars and torch, which do not survive it.
"""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

PATIENCE = 550.0
"""Seconds that a child may take; below the limit of a test."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "prefrec.cli.run",
        "prefrec.cli.prepare",
        "prefrec.cli._carry_out",
        "prefrec.stages.train",
        "prefrec.pipeline.run",
    ]
)


class Child:
    """A process that calls a function, as `Child(prefrec, "run", recipe)` does."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # read when the server starts
        self._answers, answer = _context.Pipe(duplex=False)
        self._process = _context.Process(target=_work, args=(answer, function, arguments), daemon=True)
        self._process.start()
        answer.close()

    def ended(self, seconds: float) -> bool:
        """True where it ends within so many seconds, or has ended."""
        return self._answers.poll(seconds) or not self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def exit_code(self) -> int | None:
        """Return its exit code; after a signal, the negative number of the signal."""
        self._process.join()
        return self._process.exitcode

    def result(self) -> Any:
        """The function's result; AssertionError if it raised, ended without a result, or takes too long."""
        assert self._answers.poll(PATIENCE), "the process takes too long"
        try:
            good, value = self._answers.recv()
        except EOFError:
            self._process.join()
            raise AssertionError(f"the process ended with {self._process.exitcode} and no answer") from None
        self._process.join()
        assert good, value
        return value


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The value of a function that a child of its own computes."""
    return Child(function, *arguments).result()


def _work(answer: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    import gc
    import traceback

    import torch

    gc.freeze()  # what all children share need not be searched, nor copied
    torch.set_num_threads(1)
    try:
        answer.send((True, function(*arguments)))
    except Exception:  # noqa: BLE001  # told where the result is asked for
        answer.send((False, traceback.format_exc()))

"""Messages, warnings and progress, on standard error and only from the first process."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from itertools import repeat
from typing import TypeVar

from rich.console import Console

from prefrec.errors import without_secrets
from prefrec.processes import is_first

T = TypeVar("T")

console = Console(stderr=True)
"""The console on standard error; standard output is for results."""

QUIET = "PREFREC_QUIET"
"""Environment variable that turns off messages and progress, but not warnings."""

LOG_EVERY_S = 30.0
"""Seconds between progress lines if standard error is not a terminal."""


def show_progress(on: bool) -> None:
    """Turn messages and progress on or off, in this process and its child processes. Warnings are always shown."""
    os.environ[QUIET] = "" if on else "1"


def is_quiet() -> bool:
    """Return True if messages and progress are turned off."""
    return os.environ.get(QUIET, "") not in ("", "0")


@contextmanager
def quiet() -> Iterator[None]:
    """Turn messages and progress off inside the context."""
    before = is_quiet()
    show_progress(False)
    try:
        yield
    finally:
        show_progress(not before)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Suppress progress bars of transformers and FutureWarnings, where a model is loaded or saved."""
    from transformers.utils import logging  # takes seconds

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with quiet_warnings():
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextmanager
def quiet_warnings() -> Iterator[None]:
    """Suppress FutureWarnings of the libraries that prefrec uses."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|peft|torch)\b.*")
        yield


def say(message: str) -> None:
    """Print a message (rich markup allowed) to standard error, with secrets in addresses masked."""
    if not is_quiet():
        _print(message)


def _print(message: str) -> None:
    if is_first():
        console.print(without_secrets(message), highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print a warning to standard error."""
    _print(f"[yellow]warning:[/yellow] {message}")


def track(
    items: Iterable[T], description: str, total: int | None = None, sizes: Sequence[float] | None = None
) -> Iterator[T]:
    """Yield items and show progress with the remaining time.

    On a terminal this is a bar that disappears at the end; in a log file it is a line every 30 s.

    Args:
        items: items to yield.
        description: text before the progress.
        total: number of items. Default: `len(items)` if it is known.
        sizes: relative duration of each item. Default: all equal.
    """
    if sizes is None and total is None and isinstance(items, Sized):
        total = len(items)
    shares: Iterator[float] = repeat(1.0) if sizes is None else iter(sizes)
    whole: float | None = total if sizes is None else float(sum(sizes))
    if not is_first() or is_quiet():
        yield from items
    elif console.is_terminal:
        from rich.progress import Progress  # here, because `prefrec --help` should not wait for it

        columns = Progress.get_default_columns()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(description, total=whole)
            for item, share in zip(items, shares, strict=False):
                yield item
                bar.advance(task, share)
    else:
        yield from _lines(items, description, shares, whole)


def _lines(items: Iterable[T], description: str, shares: Iterable[float], whole: float | None) -> Iterator[T]:
    start = last = time.monotonic()
    done = 0.0
    for item, share in zip(items, shares, strict=False):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S and done:
            last = now
            rest = f", {(now - start) / done * (whole - done):.0f} s left" if whole else ""
            counted = f"{done / whole:.0%}" if isinstance(whole, float) and whole else f"{done:.0f}/{whole or '?'}"
            say(f"{description}: {counted}{rest}")
        yield item
        done += share

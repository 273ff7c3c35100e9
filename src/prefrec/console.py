"""Messages, warnings and progress, on standard error and from the first process only."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich import progress
from rich.console import Console

from prefrec.errors import without_secrets
from prefrec.processes import is_first

T = TypeVar("T")

console = Console(stderr=True)
"""The console on standard error; standard output is for results."""

LOG_EVERY_S = 30.0
"""Seconds between two progress lines if standard error is not a terminal."""


def say(message: str) -> None:
    """Print one message (rich markup allowed) to standard error, without the secrets of addresses."""
    if is_first():
        console.print(without_secrets(message), highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print one warning to standard error."""
    say(f"[yellow]warning:[/yellow] {message}")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show progress with the remaining time.

    On a terminal this is a bar that disappears at the end; in a log file it is a line every 30 s.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not is_first():
        yield from items
    elif console.is_terminal:
        yield from progress.track(items, description, total, console=console, transient=True)
    else:
        yield from _lines(items, description, total)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S and done:
            last = now
            left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
            say(f"{description}: {done}/{total or '?'}{left}")
        yield item

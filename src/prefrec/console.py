"""One door for progress and messages: everything for people goes to standard error, from the first process."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from prefrec.processes import is_first

T = TypeVar("T")

console = Console(stderr=True)
"""Messages, warnings and progress; standard output is kept for results."""

LOG_EVERY_S = 30.0
"""Seconds between two progress lines where standard error is a file."""


def say(message: str) -> None:
    """Print one message (rich markup allowed) to standard error."""
    if is_first():
        console.print(message, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Print one warning to standard error."""
    if is_first():
        console.print(f"[yellow]warning:[/yellow] {message}", highlight=False, soft_wrap=True)


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing progress with the time left.

    On a terminal this is a bar that vanishes when done; in a log file a line every 30 s, so that a run in
    the background can be followed.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if not is_first():
        yield from items
    else:
        yield from _bar(items, description, total) if console.is_terminal else _lines(items, description, total)


def _bar(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield from progress.track(items, total=total, description=description)


def _lines(items: Iterable[T], description: str, total: int | None) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if now - last >= LOG_EVERY_S and done:
            last = now
            left = f", {(now - start) / done * (total - done):.0f} s left" if total else ""
            say(f"{description}: {done}/{total or '?'}{left}")
        yield item

"""Serve one run after another: the next one is opened beside the one that answers, and then takes its place."""

from __future__ import annotations

import asyncio
import gc
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from rich.markup import escape
from starlette.types import Receive, Scope, Send

from prefrec.console import say, warn
from prefrec.errors import without_secrets
from prefrec.files import SEAL
from prefrec.runs.remote import address_of

LOOK_SECONDS = 2.0
"""Seconds between two looks whether the served folder holds another run."""

State = tuple[Path, tuple[int, int] | None]
"""Where a folder leads, and inode and time of the seal of the run's evaluation, if there is one."""


def state_of(folder: Path) -> State | None:
    """Return what changes when a folder, or the link to one, holds another run; None if nothing is there."""
    try:
        at = folder.resolve(strict=True)
    except OSError:
        return None  # a link that is being replaced
    try:
        facts = (at / SEAL).stat()
    except OSError:
        return at, None
    return at, (facts.st_ino, facts.st_mtime_ns)


@dataclass(eq=False)
class Opened:
    """An application that answers from one run.

    Attributes:
        app: the application.
        sentence: what it serves, for messages.
        locks: to release when it has answered its last request.
        requests: number of requests that are not answered yet.
    """

    app: FastAPI
    sentence: str
    locks: ExitStack = field(default_factory=ExitStack)
    requests: int = 0

    def __post_init__(self) -> None:
        self._life: AbstractAsyncContextManager[Any] = self.app.router.lifespan_context(self.app)

    async def start(self) -> None:
        """Start the application."""
        await self._life.__aenter__()

    async def end(self) -> None:
        """End the application, and release its locks."""
        try:
            await self._life.__aexit__(None, None, None)
        finally:
            self.locks.close()


class Reloading:
    """An ASGI application that answers each request from one run, the one that is served when the request arrives.

    When the folder leads to another run, when the run in it has been evaluated again, or on SIGHUP, the run is opened
    in a thread while the one before still answers. If it cannot be opened, the one before stays.

    Args:
        folder: of the run, or a link to it.
        open_app: opens the run that the folder holds now.
        deadline: seconds after which a request of the run before is given up.
        on_reload: called after each attempt, with `served` or `refused`.

    Attributes:
        current: what is served now.
    """

    def __init__(
        self,
        folder: Path,
        open_app: Callable[[], Opened],
        deadline: float,
        on_reload: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._folder, self._open, self._deadline, self._on_reload = folder, open_app, deadline, on_reload
        self._state = state_of(folder)
        self.current = open_app()
        self._asked: asyncio.Event | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        opened = self.current
        opened.requests += 1
        try:
            await opened.app(scope, receive, send)
        finally:
            opened.requests -= 1

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        await self.current.start()
        self._asked = asyncio.Event()
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        watching = asyncio.create_task(self._watch(self._asked))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await self.current.end()
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self, asked: asyncio.Event) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(asked.wait(), LOOK_SECONDS)
            is_asked = asked.is_set()
            asked.clear()
            if is_asked or self._has_changed():
                await self._reload()

    def _has_changed(self) -> bool:
        """Return True if the folder holds another run that is complete."""
        now, before = state_of(self._folder), self._state
        if now is None or now == before:
            return False
        # A run that is evaluated again in the same folder has no seal until the end.
        return before is None or now[0] != before[0] or now[1] is not None

    async def _reload(self) -> None:
        """Open the run, and let it answer all requests that arrive from now on."""
        say(f"Opening {escape(shown(self._folder))} …")
        self._state = state_of(self._folder)
        opened = await self._next()
        if opened is None:
            await asyncio.sleep(0)  # until then, asyncio holds the error
            gc.collect()  # the error and what was opened so far hold each other
            return
        before, self.current = self.current, opened
        self._on_reload("served")
        say(f"Now serving {escape(opened.sentence)}; before: {escape(before.sentence)}")
        end = asyncio.get_running_loop().time() + self._deadline + 1
        while before.requests and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.05)
        await before.end()
        del before
        gc.collect()  # two runs in memory are enough

    async def _next(self) -> Opened | None:
        """Return the run, opened and started; None with a warning if that fails."""
        try:
            opened = await _in_thread(self._open)
            await opened.start()
        except Exception as e:  # noqa: BLE001  # whatever is wrong with the next run, this one must go on
            warn(
                f"{escape(shown(self._folder))} is not served: {escape(f'{e}' or type(e).__name__)}; "
                f"still serving {escape(self.current.sentence)}"
            )
            self._on_reload("refused")
            return None
        return opened


async def _in_thread(make: Callable[[], Opened]) -> Opened:
    """Return the result of `make`, which runs in a thread that does not keep the process alive.

    The executor's threads would: a server that is told to stop while it opens a run would wait for it.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Opened] = loop.create_future()

    def settle(opened: Opened | None, error: Exception | None) -> None:
        if result.cancelled():
            return
        if error:
            result.set_exception(error)
        elif opened:
            result.set_result(opened)

    def work() -> None:
        opened = error = None
        try:
            opened = make()
        except Exception as e:  # noqa: BLE001  # raised where the result is awaited
            error = e
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, opened, error)

    thread = threading.Thread(target=work, name="prefrec-reload", daemon=True)
    thread.start()
    try:
        return await result
    except Exception:
        thread.join()  # it has only to end; until then it holds the error, and so what was opened
        raise


def shown(folder: Path, at: Path | None = None) -> str:
    """Return a folder as text, with the name of the one that it leads to (default: now) if it is a link."""
    if address := address_of(folder):
        return without_secrets(address)
    return f"{folder} → {(at or folder.resolve()).name}" if folder.is_symlink() else str(folder)

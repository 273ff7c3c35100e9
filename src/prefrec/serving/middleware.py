"""Around every request: a body of bounded size and time, headers that keep browsers strict, and counting."""

from __future__ import annotations

import asyncio
import time

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefrec.serving.bodies import MAX_BODY, Problem, ProblemAnswer
from prefrec.serving.telemetry import Telemetry

BODY_SECONDS = 10.0
"""Time in which a request's body has to arrive."""

HEADERS = {
    b"content-security-policy": (
        b"default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
        b"connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}
"""Of every answer. Attributes may carry styles, for the plots; scripts and frames come from nowhere else."""


def problem(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """An error as the API words it."""
    body = ProblemAnswer(error=Problem(code=code, message=message))
    return JSONResponse(body.model_dump(), status, headers)


class BodyLimit:
    """Reads a body before the application sees it: 413 where it is too long, 408 where it does not come."""

    def __init__(self, app: ASGIApp, max_body: int = MAX_BODY, seconds: float = BODY_SECONDS) -> None:
        self.app, self.max_body, self.seconds = app, max_body, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self.seconds)
        except TimeoutError:
            refusal = problem(408, "slow_body", f"the body did not arrive within {self.seconds:g} s")
            await refusal(scope, receive, send)
            return
        if body is None:
            limit = f"the body is longer than {self.max_body} bytes; send fewer items"
            await problem(413, "body_too_long", limit, {"connection": "close"})(scope, receive, send)
            return
        await self.app(scope, _replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self.max_body:
            return None
        body = bytearray()
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > self.max_body:
                return None
            more = message["type"] == "http.request" and message.get("more_body", False)
        return bytes(body)


class KnownHosts:
    """Refuses requests for another host: a page elsewhere may have its own name lead here, and then read answers."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.hosts is not None:
            given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            if _without_port(given).lower() not in self.hosts:
                known = ", ".join(sorted(self.hosts))
                message = f"this server has no key and answers as {known} only; --api-key opens it to other names"
                await problem(421, "unknown_host", message, {"connection": "close"})(scope, receive, send)
                return
        await self.app(scope, receive, send)


class StrictHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_strictly(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *HEADERS.items()]
            await send(message)

        await self.app(scope, receive, send_strictly if scope["type"] == "http" else send)


class Counting:
    """Tells `telemetry` of every request."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry) -> None:
        self.app, self.telemetry = app, telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status = 500

        async def send_noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        start = time.monotonic()
        try:
            await self.app(scope, receive, send_noting)
        finally:
            if scope["type"] == "http":
                path = getattr(scope.get("route"), "path", "other")
                self.telemetry.request(path, status, time.monotonic() - start)


def _without_port(host: str) -> str:
    """Of a Host header; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() else host


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again

"""Checks around every request: limits on the body, known hosts, strict headers, Prometheus metrics."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from urllib.parse import quote

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefrec.recommend.rules import UnknownName
from prefrec_server.batcher import Pass
from prefrec_server.bodies import MAX_BODY, Problem, ProblemAnswer

BODY_SECONDS = 10.0
"""Seconds within which a request's body must arrive."""

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; style-src-attr 'unsafe-inline'; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
"""Headers of every response. They allow style attributes, for colours, but no frames and no foreign scripts."""

REQUEST_ID = "x-request-id"
"""Header with the id of a request: the one sent by the client or a proxy if it is plain, else a random one."""
RUN_FOLDER = "x-prefrec-run"
"""Header with the name of the folder that answered, in percent-encoding."""
_PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "OPTIONS")
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


def headers_of(folder: str) -> dict[str, str]:
    """Return the headers of every answer by the run in a folder of this name."""
    return HEADERS | {RUN_FOLDER: quote(folder)}


class Telemetry:
    """Metrics of one server, in their own registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        histogram = partial(Histogram, registry=registry, buckets=_SECONDS)
        self.requests = Counter("prefrec_requests", "HTTP requests answered.", ("path", "status"), registry=registry)
        self.latency = histogram("prefrec_request_seconds", "Time to the last byte of the response.", ("path",))
        sizes = (1, 2, 4, 8, 16, 32, 64, 128)
        self._jobs = histogram("prefrec_pass_requests", "Requests that shared a pass of the worker.", buckets=sizes)
        self._pass = histogram("prefrec_pass_seconds", "Time of a pass of the worker.")
        self._waited = histogram("prefrec_queue_seconds", "Time a request waited for the worker.")
        self._reloads = Counter("prefrec_reloads", "Attempts to serve another run.", ("outcome",), registry=registry)
        self.waiting = Gauge("prefrec_queue_requests", "Requests that wait for the worker.", registry=registry)

    def on_pass(self, done: Pass) -> None:
        """Count a pass of the worker."""
        self._jobs.observe(done.jobs)
        self._pass.observe(done.seconds)
        for seconds in done.waited:
            self._waited.observe(seconds)

    def on_reload(self, outcome: str) -> None:
        """Count an attempt to serve another run: `served` or `refused`."""
        self._reloads.labels(outcome).inc()


def problem(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None, items: Sequence[UnknownName] = ()
) -> JSONResponse:
    """Return an error response of the API."""
    body = ProblemAnswer(error=Problem(code=code, message=message, items=list(items)))
    return JSONResponse(body.model_dump(), status, headers)


def _log(number: str, method: str, path: str, status: int, seconds: float) -> None:
    """Print a line about a request, without address, query and body, which could identify a person."""
    when = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = {"time": when, "request": number, "method": method if method in _METHODS else "other", "path": path}
    sys.stderr.write(json.dumps(line | {"status": status, "seconds": round(seconds, 4)}) + "\n")


class Guard:
    """Counts every request, gives it an id, adds `HEADERS` to the response, and refuses bad requests.

    A request for another host gets 421, against DNS rebinding: otherwise a foreign page could point its own name at
    this machine and read responses. A body that is too long gets 413; one that does not arrive in time gets 408.
    """

    def __init__(
        self,
        app: ASGIApp,
        telemetry: Telemetry,
        hosts: frozenset[str] | None,
        access_log: bool = False,
        folder: str = "",
    ) -> None:
        self.app, self.telemetry, self.hosts, self.access_log = app, telemetry, hosts, access_log
        self._headers = headers_of(folder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.monotonic(), 500
        sent = Headers(scope=scope).get(REQUEST_ID, "")
        scope["request_id"] = number = sent if _PLAIN_ID.fullmatch(sent) else secrets.token_hex(8)

        async def send_strictly(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(self._headers | {REQUEST_ID: number})
            await send(message)

        async def receive_again() -> Message:
            return messages.pop() if messages else await receive()

        try:
            body = await self._read(scope, receive)
            if isinstance(body, JSONResponse):
                await body(scope, receive, send_strictly)
            else:
                messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
                await self.app(scope, receive_again, send_strictly)
        finally:
            path = getattr(scope.get("route"), "path", "other")  # not the client's path, so that there are few series
            seconds = time.monotonic() - start
            self.telemetry.requests.labels(path, str(status)).inc()
            self.telemetry.latency.labels(path).observe(seconds)
            if self.access_log:
                _log(number, scope["method"], path, status, seconds)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | JSONResponse:
        """Return the body, or the response to a request that is refused."""
        headers = Headers(scope=scope)
        if self.hosts is not None and re.sub(r":\d+$", "", headers.get("host", "")).lower() not in self.hosts:
            known = ", ".join(sorted(self.hosts))
            message = f"this server has no API key, so it only answers as {known}; start it with --api-key for others"
            return problem(421, "unknown_host", message, {"connection": "close"})
        message = f"the body is longer than {MAX_BODY} bytes; send fewer items"
        too_long = problem(413, "body_too_long", message, {"connection": "close"})
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > MAX_BODY:
            return too_long
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in Request(scope, receive).stream():
                    body += chunk
                    if len(body) > MAX_BODY:
                        return too_long
        except TimeoutError:
            return problem(408, "slow_body", f"the body did not arrive within {BODY_SECONDS:g} s")
        except ClientDisconnect:
            pass  # keep the partial body: the application notices that the client has gone
        return bytes(body)

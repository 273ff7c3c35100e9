"""Serve a run's folder over HTTP until the process is told to stop."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import uvicorn
from rich.markup import escape
from uvicorn.protocols.http.h11_impl import H11Protocol

from prefrec.console import say, warn
from prefrec.errors import ConfigError, DataError
from prefrec.extras import need
from prefrec.pipeline.opened import Run, open_run
from prefrec.rankers.baselines import servable
from prefrec.rankers.config import BATCH_SIZE
from prefrec.runs.lock import in_use
from prefrec.runs.remote import local_run
from prefrec.stages import stage_class
from prefrec.stages.base import Loaded, RankerStage
from prefrec_server.app import Settings, check_key, create_app
from prefrec_server.batcher import RETRY_AFTER
from prefrec_server.engine import Engine
from prefrec_server.middleware import HEADERS, Telemetry, problem
from prefrec_server.page import page_files
from prefrec_server.reload import Opened, Reloading, shown
from prefrec_server.scorer import Scorer

MAX_CONNECTIONS = 768
"""Most connections; requests on additional ones get 503. Often a process may only open 1,024 files."""
PROBES, PROBE_CONNECTIONS = ("/healthz", "/readyz"), 64
"""Paths that additional connections can still request, and the number of these connections."""
MAX_IDLE = 512
"""Most connections without a request; beyond that, the oldest are closed."""
NO_PASS = 2048
"""Room for questions, in tokens, of a server without language models."""
HEADER_SECONDS, READ_SECONDS, LAST_SECONDS = 10.0, 10.0, 1.0
"""Seconds for a connection's first headers to arrive, for a response to be read, and for the last one at the end."""


def serve_run(
    folder: Path,
    rankers: Sequence[str] = (),
    *,
    host: str,
    port: int,
    ui: bool = False,
    api_key: str | None = None,
    deadline: float = 30.0,
    access_log: bool = False,
    **limits: Any,
) -> None:
    """Serve a run until SIGINT or SIGTERM, and then answer the accepted requests.

    When the folder is a link that comes to lead to another run, or on SIGHUP, that run takes its place (`Reloading`).

    Args:
        folder: of the run, a link to it, or its address.
        rankers: names of the rankers to serve, see `open_engine`.
        host: address to listen at.
        port: port to listen at; 0: any free one.
        ui: also serve a web page.
        api_key, deadline, access_log: see `Settings`.
        **limits: for `open_engine`.

    Raises:
        DataError, ConfigError, ModelError: the run cannot be read, or the address is in use.
    """
    check_key(api_key)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until `Reloading` is there, which sees a change meanwhile
    # The collector then scans what a run has brought, and not all imported modules, when another run replaces it.
    gc.freeze()
    in_url = f"[{host}]" if ":" in host else host
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    local_names = frozenset({"localhost", "127.0.0.1", "[::1]", in_url.lower()})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Check the address before loading the model. Until the model is loaded, probes are refused and do not wait.
    with _listening(host, port, family):
        pass
    telemetry = Telemetry()
    hosts = local_names if api_key is None and is_local else None

    def open_app() -> Opened:
        at = local_run(folder).resolve()  # all parts come from one run, although the link may change meanwhile
        with ExitStack() as held:
            held.enter_context(in_use(at))
            run = open_run(at)
            engine = open_engine(run, rankers, on_pass=telemetry.on_pass, **limits)
            name, model = run.recipe.name, Path(run.recipe.model.name).name
            with engine.closed_on_error():
                page = page_files(name, model, engine, [*run.stages.values()]) if ui else {}
                settings = Settings(name, model, deadline, api_key, hosts, page, telemetry, access_log, at.name)
                app = create_app(engine, settings)
            best = run.results.best
            if best and best.ranker == engine.rankers[0]:
                say(f"{escape(best.sentence)}.")
            return Opened(app, f"{', '.join(engine.rankers)} of {shown(folder, at)}", held.pop_all())

    say(f"Loading the rankers of {escape(str(folder))} …")
    app = Reloading(folder, open_app, deadline, telemetry.on_reload)
    if api_key is None and not is_local:
        warn(f"listening at {host} without a key: everyone who reaches this machine can query it (set --api-key)")
    with _listening(host, port, family) as listener:
        url = f"http://{in_url}:{listener.getsockname()[1]}"
        _run(server_for(app, deadline), listener, f"Serving {escape(app.current.sentence)} at {escape(url)}")


def open_engine(run: Run, rankers: Sequence[str] = (), *, max_tokens: int | None = None, **queue: Any) -> Engine:
    """Return an engine for rankers of a run, on a GPU if there is one.

    Args:
        run: the run.
        rankers: names of rankers; the first is the default. If none are given: the best ranker on validation
            examples, the best for items that are new to the user, the language models from the last stage to the
            first, other rankers, and baselines. If only what serves was refit (`Plan.served`), without the others.
        max_tokens: most tokens per pass of a language model, padding included. Default: see `default_pass`.
        **queue: options of `Batcher`.

    Raises:
        DataError: the run has no such ranker.
        ConfigError: a ranker was made with another recipe.
        ModelError: a model or adapter cannot be read.
    """
    lms, can = run.models[::-1], servable(run.data.train_interactions)
    baselines = [name for name in run.recipe.evaluate.baselines if name in can]
    made = [config.name for config in run.recipe.rankers]
    by_default = [config.name for config in run.recipe.rankers if stage_class(config.kind).served]
    for_new = None if rankers else run.for_new
    defaults = () if rankers else filter(None, (run.default(), for_new))
    more, plan = [*lms, *by_default[::-1]], run.plan
    if not rankers and plan.served is not None and not plan.is_open:
        idle = [name for name in more if name not in plan.served]
        more = [name for name in more if name in plan.served]
        if idle:
            say(f"Without {escape(', '.join(idle))}, which did not learn the whole log; name them by --ranker")
    wanted = list(rankers) or list(dict.fromkeys([*defaults, *more, *baselines]))
    named = [name for name in wanted if name not in (*made, *baselines)]
    asked = {need for name in wanted if name in made for need in plan.queried(name)}
    lms = [*named, *(name for name in lms if name in asked and name not in named)]
    stages = {name: run.stage(name) for name in lms}
    weights = {name: stage.weights for name, stage in stages.items()}
    encoder = None
    if weights:
        need("lm", f"serving {', '.join(weights)}")
        from prefrec_server.models import default_pass, load_models  # here, because they need torch

        say(f"Loading {escape(run.recipe.model.name)} for {', '.join(map(escape, weights))} …")
        max_tokens = max_tokens or default_pass()
        scorer, encoder = load_models(run, weights, max_tokens)
    else:
        max_tokens = max_tokens or NO_PASS
        scorer = Scorer({}, {}, None, run.data.catalogue)
    split = run.recipe.evaluate.split
    parts: dict[str, RankerStage] = {name: scorer.part(stage) for name, stage in stages.items()}
    parts |= {name: Loaded(run.stage(name)) for name in baselines}
    plan = replace(plan, loaded=parts)  # a ranker that queries others asks those that are loaded
    for name in made:
        if name not in wanted:
            continue
        try:
            parts[name] = Loaded(plan.open(name))
        except (ConfigError, DataError) as e:
            if name in rankers:
                raise
            warn(f"{escape(name)} is not served: {escape(str(e))}")
    served = [name for name in wanted if name in parts]
    scorer.others = {name: parts[name] for name in served if name not in stages}
    # Load now what is in files of the run, because they may be replaced while it is served.
    for name in served:
        if name in made and (full := parts[name].full):
            full.load(BATCH_SIZE)
    engine = Engine(
        scorer,
        run.data,
        encoder,
        split,
        served,
        for_new if for_new in served else None,
        run.recipe.answers.new_every,
        room=max_tokens,
        **queue,
    )
    with engine.closed_on_error():
        # Baselines are fitted when they are first queried.
        engine.warm_up([name for name in served if name not in baselines])
    return engine


class Connection(H11Protocol):
    """A connection with limits.

    It is closed if no request arrives in time, if there are too many newer idle connections, if the client does not
    read, or if it sends a request before the last one is answered.
    """

    reading: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._inner, self.app = self.app, self._admit

    async def _admit(self, scope: Any, receive: Any, send: Any) -> None:
        cycle = self.cycle

        async def send_with_end(message: Any) -> None:
            # uvicorn closes the connection without announcing it, and the client's next request would be lost.
            if message["type"] == "http.response.start" and not cycle.keep_alive:
                message = message | {"headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        if len(self.connections) > MAX_CONNECTIONS and scope["path"] not in PROBES:
            headers = HEADERS | {"connection": "close", "retry-after": str(RETRY_AFTER)}
            await problem(503, "crowded", "too many connections are open; try again", headers)(scope, receive, send)
        else:
            await self._inner(scope, receive, send_with_end)

    @property
    def has_request(self) -> bool:
        """True from the last byte of a request's headers to the last byte of its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # `pause_writing` is called if the client leaves anything unread
        self._close_at(self.loop.time() + HEADER_SECONDS)
        held: list[Any] = [c for c in self.connections if not c.transport.is_closing()]
        idle = {c.timeout_keep_alive_task.when(): c for c in held if not c.has_request}
        if len(idle) > MAX_IDLE or len(held) > MAX_CONNECTIONS + PROBE_CONNECTIONS:
            idle[min(idle)].transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.reading = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading:
            self.reading.cancel()

    def data_received(self, data: bytes) -> None:
        timer = self.timeout_keep_alive_task
        super().data_received(data)
        if self.has_request and not self.cycle.more_body and self.conn.trailing_data[0]:
            self.cycle.keep_alive = False  # answer this request, but not those behind it
        # uvicorn stops its timer at the first byte of a request, so the other bytes could take forever.
        if timer and not (self.has_request or self.timeout_keep_alive_task):
            self._close_at(timer.when())

    def shutdown(self) -> None:
        super().shutdown()
        # Answer a request that has arrived. Do not wait for other requests, or for clients that do not read.
        if not self.has_request or self.cycle.more_body:
            self.loop.call_later(LAST_SECONDS, self.transport.abort)

    def _close_at(self, due: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_at(due, self.timeout_keep_alive_handler)


def server_for(app: Any, deadline: float) -> uvicorn.Server:
    """Return a server of an application. When it stops, it finishes requests for at most `deadline` seconds."""
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(deadline) + 1,
    )
    return uvicorn.Server(config)


def _run(server: uvicorn.Server, listener: socket.socket, message: str) -> None:
    # uvicorn raises the signal again after it has stopped; SIGTERM must then end the process with exit code 0.
    before = signal.signal(signal.SIGTERM, lambda number, frame: _end())
    try:
        say(message)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            _end()
    finally:
        # Without this, the garbage collector scans all objects for seconds when the process ends.
        gc.freeze()
        signal.signal(signal.SIGTERM, before)


def _end() -> NoReturn:
    """End the process with exit code 0, also while a thread loads a model or scores.

    Such a thread is in C++ code most of the time. Python aborts the process (SIGABRT) if it ends before the thread.
    """
    if any(thread.daemon and thread.name.startswith("prefrec-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    sys.exit(0)


def _listening(host: str, port: int, family: socket.AddressFamily) -> socket.socket:
    """Return a listening socket; raise ConfigError if the address is in use, or not of this machine."""
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno and e.errno > 0 else e
        message = f"cannot listen at {host}, port {port}: {reason}; choose another --host or --port"
        raise ConfigError(message) from e

"""From a run's folder to a server that listens, until it is told to stop."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import uvicorn
from rich.markup import escape

from prefrec.console import say, warn
from prefrec.errors import ConfigError
from prefrec.lm.packing import LayoutChoice
from prefrec.pipeline.opened import open_run
from prefrec.serving.app import Settings, create_app
from prefrec.serving.page import page_files
from prefrec.serving.run import open_engine
from prefrec.serving.telemetry import Telemetry

MAX_CONNECTIONS = 1024
"""Connections at once; more are answered 503."""


def serve_run(
    folder: Path,
    *,
    host: str,
    port: int,
    rankers: Sequence[str] = (),
    ui: bool = False,
    api_key: str | None = None,
    max_queue: int = 256,
    max_batch: int | None = None,
    deadline: float = 30.0,
    max_tokens: int | None = None,
    layout: LayoutChoice = "auto",
) -> None:
    """Serve a run until SIGINT or SIGTERM; what is being answered then is answered still.

    Raises:
        DataError, ConfigError, ModelError: the run cannot be read, or the address is taken.
    """
    run = open_run(folder)
    with _bound(host, port) as listener:
        telemetry = Telemetry()
        engine = open_engine(
            run,
            rankers,
            max_queue=max_queue,
            max_batch=max_batch,
            max_tokens=max_tokens,
            layout=layout,
            on_pass=telemetry.on_pass,
        )
        name, model = run.recipe.name, Path(run.recipe.model.name).name
        stages = list(run.stages.values())
        settings = Settings(
            name=name,
            model=model,
            deadline=deadline,
            api_key=api_key,
            hosts=_local_names(host) if api_key is None and _is_loopback(host) else None,
            page=page_files(name, model, len(engine.items), engine.rankers, stages) if ui else {},
            telemetry=telemetry,
        )
        if api_key is None and not _is_loopback(host):
            warn(f"listening at {host} without a key: whoever reaches this machine can ask (--api-key)")
        # Only now: until then a probe is refused, and is not kept waiting.
        with _naming(host, port):
            listener.listen(MAX_CONNECTIONS)
        where = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
        say(f"Serving {', '.join(map(escape, engine.rankers))} of {escape(str(folder))} at {escape(where)}")
        _run(create_app(engine, settings), listener, deadline)


def _run(app: object, listener: socket.socket, deadline: float) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(deadline) + 1,
    )
    # The server hands a signal on when it has stopped: SIGTERM is then a good end, and no one's death.
    before = signal.signal(signal.SIGTERM, _end)
    try:
        uvicorn.Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)


def _bound(host: str, port: int) -> socket.socket:
    """A socket at this address that does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with _naming(host, port):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
        except OSError:
            listener.close()
            raise
    return listener


@contextmanager
def _naming(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno and e.errno > 0 else e
        message = f"cannot listen at {host}, port {port}: {reason}; choose others by --host and --port"
        raise ConfigError(message) from e


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _local_names(host: str) -> frozenset[str]:
    return frozenset({"localhost", "127.0.0.1", "[::1]", _in_url(host).lower()})


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""From a run's folder to a server that listens, until it is told to stop."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from rich.markup import escape

from prefrec.console import say, warn
from prefrec.errors import ConfigError
from prefrec.serving.app import Settings, create_app
from prefrec.serving.page import page_files
from prefrec.serving.run import open_engine
from prefrec.serving.telemetry import Telemetry
from prefrec.studies.runs import open_run

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
    max_tokens: int = 4096,
) -> None:
    """Serve a run until SIGINT or SIGTERM; what is being answered then is answered still.

    Raises:
        DataError, ConfigError, ModelError: the run cannot be read, or the address is taken.
    """
    run = open_run(folder)
    with _listen(host, port) as listener:
        telemetry = Telemetry()
        engine = open_engine(
            run,
            rankers,
            max_queue=max_queue,
            max_batch=max_batch,
            max_tokens=max_tokens,
            on_pass=telemetry.on_pass,
        )
        name, model = run.recipe.name, Path(run.recipe.model.name).name
        stages = list(run.stages.values())
        settings = Settings(
            name=name,
            model=model,
            deadline=deadline,
            api_key=api_key,
            page=page_files(name, model, len(engine.items), engine.rankers, stages) if ui else {},
            telemetry=telemetry,
        )
        if api_key is None and not _is_loopback(host):
            warn(f"listening at {host} without a key: whoever reaches this machine can ask (--api-key)")
        shown = f"[{host}]" if ":" in host else host
        where = f"http://{shown}:{listener.getsockname()[1]}"
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=MAX_CONNECTIONS)
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno and e.errno > 0 else e
        message = f"cannot listen at {host}, port {port}: {reason}; choose others by --host and --port"
        raise ConfigError(message) from e


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

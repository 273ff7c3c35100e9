"""From a run's folder to a server that listens, until it is told to stop."""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from rich.markup import escape

from prefrec.console import say, warn
from prefrec.errors import ConfigError
from prefrec.lm.models import default_device, load_tokenizer
from prefrec.lm.packing import LayoutChoice
from prefrec.pipeline.encoders import prompt_encoder
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.recipe import ZERO_SHOT
from prefrec.prompts import load_template
from prefrec.rankers import LMRanker
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.serving.app import Settings, create_app
from prefrec.serving.engine import Engine
from prefrec.serving.items import ItemIndex
from prefrec.serving.middleware import Telemetry
from prefrec.serving.page import page_files
from prefrec.serving.scorer import Scorer, load_rankers

MAX_CONNECTIONS = 1024
"""Connections at once; further ones are answered 503."""


def serve_run(
    folder: Path,
    *,
    host: str,
    port: int,
    rankers: Sequence[str] = (),
    ui: bool = False,
    api_key: str | None = None,
    deadline: float = 30.0,
    **limits: Any,
) -> None:
    """Serve a run, with `ui` also a page, until SIGINT or SIGTERM; accepted requests are still answered then.

    Port 0 is any free one. `limits` are for `open_engine`, other options as for `Settings`.

    Raises:
        DataError, ConfigError, ModelError: the run cannot be read, or the address is taken.
    """
    run = open_run(folder)
    in_url = f"[{host}]" if ":" in host else host
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    local_names = frozenset({"localhost", "127.0.0.1", "[::1]", in_url.lower()})
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        with _naming(host, port):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((host, port))
        name, model = run.recipe.name, Path(run.recipe.model.name).name
        telemetry = Telemetry()
        engine = open_engine(run, rankers, on_pass=telemetry.on_pass, **limits)
        stages = list(run.stages.values())
        settings = Settings(
            name=name,
            model=model,
            deadline=deadline,
            api_key=api_key,
            hosts=local_names if api_key is None and is_local else None,
            page=page_files(name, model, len(engine.items), engine.rankers, stages) if ui else {},
            telemetry=telemetry,
        )
        if api_key is None and not is_local:
            warn(f"listening at {host} without a key: whoever reaches this machine can ask (--api-key)")
        # Not before: until the model is loaded a probe is refused, and does not wait.
        with _naming(host, port):
            listener.listen(MAX_CONNECTIONS)
        url = f"http://{in_url}:{listener.getsockname()[1]}"
        say(f"Serving {', '.join(map(escape, engine.rankers))} of {escape(str(folder))} at {escape(url)}")
        _run(create_app(engine, settings), listener, deadline)


def adapters_of(run: Run, names: Sequence[str] = ()) -> dict[str, Path | None]:
    """Return ranker → folder of its weights (None: the bare base), in the order of `names`.

    Without names these are all rankers, the last stage first. DataError if the run has no such ranker.
    """
    return {name: run.entry(name).weights for name in list(names) or run.models[::-1] or [ZERO_SHOT]}


def open_engine(
    run: Run,
    rankers: Sequence[str] = (),
    *,
    max_tokens: int | None = None,
    layout: LayoutChoice = "auto",
    **queue: Any,
) -> Engine:
    """Return an engine with the rankers of a run, loaded on one base; on a GPU if there is one.

    The default is the first of `rankers`; without names all are loaded. `max_tokens` and `layout` are for `Scorer`,
    `queue` for `Batcher`: `max_queue`, `max_batch` and `on_pass`.

    Raises:
        DataError: the run has no such ranker.
        ModelError: model or adapter cannot be read.
    """
    section, catalogue = run.recipe.model, run.data.catalogue
    models, adapters = load_rankers(section.name, weights=adapters_of(run, rankers), **section.loading())
    for model in models.values():
        model.to(default_device())
    encoder = prompt_encoder(section, catalogue)
    template = load_template(section.templates[0], domain=run.data.domain)
    model = next(iter(models.values()))
    # With tokenizers of its own: the worker's thread must not share one with the thread that encodes requests.
    own = prompt_encoder(section, catalogue)
    tokenizer = load_tokenizer(section.name)
    lm = LMRanker("catalogue", model, tokenizer, catalogue, template, objective=section.objective, encoder=own)
    whole: dict[str, Any] = {"catalogue": CatalogueRanker(lm), "within": lm.within}
    scorer = Scorer(models, adapters, encoder.end, max_tokens=max_tokens, layout=layout, **whole)
    examples = run.data.split(run.recipe.evaluate.split)
    engine = Engine(scorer, ItemIndex(catalogue), encoder, template, examples=examples, **queue)
    engine.warm_up()
    return engine


def _run(app: object, listener: socket.socket, deadline: float) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=int(deadline) + 1,
    )
    # uvicorn raises the signal again when it has stopped; SIGTERM is then to end the process with code 0.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _naming(host: str, port: int) -> Iterator[None]:
    """Turn an OSError into a ConfigError that names the address."""
    try:
        yield
    except OSError as e:
        reason = os.strerror(e.errno) if e.errno and e.errno > 0 else e
        message = f"cannot listen at {host}, port {port}: {reason}; choose others by --host and --port"
        raise ConfigError(message) from e

"""`prefrec serve`: serve a run over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o


def serve(
    run: o.RunFolder,
    /,
    *,
    host: Annotated[str, Parameter(help="Address to listen on. 0.0.0.0: all addresses.")] = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="Port. 0: any free port.")] = 8000,
    ranker: Annotated[
        list[str] | None,
        Parameter(help="Ranker to serve; repeatable. Default: all, with the default ranker first."),
    ] = None,
    ui: Annotated[bool, Parameter(help="Serve a web page at /.")] = False,
    api_key: Annotated[
        str | None, Parameter(env_var="PREFREC_API_KEY", help="Bearer token that clients must send.")
    ] = None,
    max_queue: Annotated[
        int, Parameter(validator=Number(gte=1), help="Most requests to queue; further ones get status 429.")
    ] = 256,
    max_batch: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="Most requests per pass. Default: all.")
    ] = None,
    deadline: Annotated[
        float, Parameter(validator=Number(gte=0.1, lte=86400), help="Seconds until a request gets status 504.")
    ] = 30.0,
    access_log: Annotated[
        bool, Parameter(help="Print a line per request, without addresses, queries and bodies.")
    ] = False,
    max_tokens: Annotated[
        int | None, Parameter(validator=Number(gte=64), help="Most tokens per pass. Default: 4096; on a CPU 2048.")
    ] = None,
) -> None:
    """Serve the rankers of a run over HTTP: rank, recommend, explain, search.

    The first --ranker is the default for requests. /openapi.json describes the API; /metrics is for Prometheus. After
    Ctrl-C or SIGTERM, the server answers waiting requests and then stops.

    Example: prefrec serve runs/demo --ui --ranker s-dpo --ranker sft
    """
    from prefrec_server.server import serve_run  # here, so that --help is fast

    limits: dict[str, Any] = {"max_queue": max_queue, "max_batch": max_batch, "max_tokens": max_tokens}
    options: dict[str, Any] = {"host": host, "port": port, "ui": ui, "api_key": api_key, "access_log": access_log}
    serve_run(run, ranker or [], deadline=deadline, **options, **limits)

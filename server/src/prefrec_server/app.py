"""The HTTP application over an `Engine`: routes, keys, and errors as JSON."""

from __future__ import annotations

import asyncio
import hmac
import re
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from prefrec.console import console
from prefrec.data import UnknownUserError
from prefrec.errors import ConfigError, DataError, ModelError, PrefrecError, TokenizerError, did_you_mean
from prefrec.recommend.items import UnknownItemsError
from prefrec.recommend.questions import RulesError
from prefrec.recommend.rules import MAX_NAME
from prefrec_server import bodies
from prefrec_server.batcher import RETRY_AFTER, DeadlineError, QueueFullError, StoppedError
from prefrec_server.engine import Engine, Prepared, UnknownRankerError
from prefrec_server.middleware import REQUEST_ID, Guard, Telemetry, headers_of, problem

Body = TypeVar("Body")
NAME_KINDS = ("constrained-str", "ById")
"""Names that pydantic inserts into the location of an error in an `ItemName`."""
DOCUMENTED: dict[int | str, dict[str, Any]] = {
    status: {"model": bodies.ProblemAnswer}
    for status in (400, 401, 404, 408, 409, 413, 415, 421, 422, 429, 500, 503, 504)
}
"""Status → error response in the OpenAPI schema."""
NO_PATH = "there is no such path; /openapi.json describes the API, and with --ui the web page is at /"
API_IS_AT = (
    "The HTTP API of prefrec.\n\n"
    "/openapi.json describes every route, field and error of this server, and OpenAPI clients read it.\n"
    "docs/reference/http.md in prefrec's sources is the same as a page, docs/serving.md has examples.\n"
)
"""Answer of /docs. FastAPI's own page would load scripts from another server, which the content policy forbids."""
ERRORS: tuple[tuple[type[PrefrecError], int, str], ...] = (
    (UnknownItemsError, 404, "unknown_item"),
    (UnknownRankerError, 404, "unknown_ranker"),
    (UnknownUserError, 404, "unknown_user"),
    (RulesError, 409, "rules"),
    (QueueFullError, 429, "queue_full"),
    (DeadlineError, 504, "deadline"),
    (StoppedError, 503, "stopping"),
    (TokenizerError, 422, "too_long"),
    (DataError, 422, "invalid"),
    (ModelError, 500, "model"),
    (PrefrecError, 500, "internal"),
)
"""Class of an error, with status and code of the response; the first match counts."""


@dataclass(frozen=True)
class Settings:
    """Settings of a server. Raise ConfigError if the key is invalid.

    Attributes:
        name: name of the run.
        model: name of the base model.
        deadline: seconds within which a request is answered.
        api_key: key that requests must send; None: requests need no key.
        hosts: allowed values of the Host header, without port; None: any.
        page: path → (media type, content).
        telemetry: metrics.
        access_log: print a line per request to standard error.
        folder: name of the run's folder. Every answer has it in the header `RUN_FOLDER`.
    """

    name: str
    model: str
    deadline: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = None
    page: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    telemetry: Telemetry = field(default_factory=Telemetry)
    access_log: bool = False
    folder: str = ""

    def __post_init__(self) -> None:
        check_key(self.api_key)


def check_key(api_key: str | None) -> None:
    """Raise ConfigError if a key cannot be sent in a header."""
    if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
        wrong = (
            "has characters other than printable ASCII, such as a space or a line break" if api_key else "is empty"
        )
        raise ConfigError(f"the API key {wrong}: set another one by --api-key or PREFREC_API_KEY, or unset it")


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """Return the application. It closes the engine when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close, settings.deadline)

    app = FastAPI(
        title="prefrec",
        version=version("prefrec"),
        description=f"Rankings of the run {settings.name}.",
        lifespan=lifespan,
        docs_url=None,  # see `API_IS_AT`
        redoc_url=None,
        redirect_slashes=False,  # the redirect would lead to the host that the client names
    )
    settings.telemetry.waiting.set_function(lambda: engine.batcher.waiting)
    _add_open_routes(app, engine, settings.page)
    app.include_router(_api(engine, settings))
    _answer_errors(app, settings.folder)
    guard: Any = {"telemetry": settings.telemetry, "hosts": settings.hosts, "access_log": settings.access_log}
    app.add_middleware(Guard, folder=settings.folder, **guard)
    return app


def _add_open_routes(app: FastAPI, engine: Engine, page: dict[str, tuple[str, bytes]]) -> None:

    @app.head("/healthz", include_in_schema=False)
    @app.get("/healthz", summary="Is the server alive?")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", summary="Does the server accept requests?", responses={503: DOCUMENTED[503]})
    async def readyz() -> dict[str, str]:
        if not engine.batcher.alive:
            raise StoppedError("the server is stopping")
        return {"status": "ready"}

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(API_IS_AT, media_type="text/plain; charset=utf-8")

    async def file(request: Request) -> Response:
        media_type, content = page[request.scope["route"].path]
        return Response(content, media_type=media_type)

    for path in page:  # one route per file, so that no path is built from a client's input
        app.add_api_route(path, file, response_class=Response, include_in_schema=False)


def _api(engine: Engine, settings: Settings) -> APIRouter:
    api = APIRouter(responses=DOCUMENTED, dependencies=_key(settings.api_key))

    async def encode_and_score(make: Callable[[], Prepared[Body]]) -> Body:
        # Cancelling this task also cancels the awaited future, which removes it from the queue.
        prepared = await asyncio.wrap_future(engine.prepare(make))
        return prepared.answer(await asyncio.wrap_future(engine.submit(prepared, settings.deadline)))

    async def answer(request: Request, make: Callable[[], Prepared[Body]]) -> Body:
        working = asyncio.create_task(encode_and_score(make))
        leaving = asyncio.create_task(_disconnected(request))
        tasks: set[asyncio.Task[Any]] = {working, leaving}
        try:
            done, _ = await asyncio.wait(tasks, timeout=settings.deadline, return_when=asyncio.FIRST_COMPLETED)
            if working in done:
                return working.result()
            if leaving in done:
                raise HTTPException(499, "the client has gone")  # no client reads it, but it is counted
            raise DeadlineError(f"no answer within {settings.deadline:g} s; send a smaller request, or try later")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @api.post("/v1/rank", summary="Rank candidates for a history")
    async def rank(body: bodies.RankRequest, request: Request) -> bodies.RankAnswer:
        return await answer(request, lambda: engine.rank(body))

    @api.post("/v1/recommend", summary="Recommend items for a history or a user, under rules")
    async def recommend(body: bodies.RecommendRequest, request: Request) -> bodies.RecommendAnswer:
        return await answer(request, lambda: engine.recommend(body))

    @api.post("/v1/recommend-users", summary="Recommend items to several users, under the same rules")
    async def recommend_users(body: bodies.RecommendUsersRequest, request: Request) -> bodies.RecommendUsersAnswer:
        return await answer(request, lambda: engine.recommend_users(body))

    @api.post("/v1/also-bought", summary="Find what customers of an item also had (complements), under rules")
    async def also_bought(body: bodies.RelatedRequest, request: Request) -> bodies.RelatedAnswer:
        return await answer(request, lambda: engine.related("also_bought", body))

    @api.post("/v1/similar", summary="Find the items that are like an item (substitutes), under rules")
    async def similar(body: bodies.RelatedRequest, request: Request) -> bodies.RelatedAnswer:
        return await answer(request, lambda: engine.related("similar", body))

    @api.post("/v1/explain", summary="Explain an item's score by the items of the history")
    async def explain(body: bodies.ExplainRequest, request: Request) -> bodies.ExplainAnswer:
        return await answer(request, lambda: engine.explain(body))

    @api.get("/v1/items", summary="Search the catalogue by title or id")
    def items(
        query: Annotated[str, Query(max_length=MAX_NAME, description="Part of a title, or an id.")] = "",
        limit: Annotated[int, Query(ge=1, le=bodies.MAX_FOUND)] = 10,
    ) -> bodies.ItemsAnswer:
        return bodies.ItemsAnswer(items=engine.items.search(query, limit))

    @api.get("/v1/users", summary="Search users by the beginning of their ids")
    def users(
        query: Annotated[str, Query(max_length=MAX_NAME, description="Beginning of an id.")] = "",
        limit: Annotated[int, Query(ge=1, le=bodies.MAX_FOUND)] = 10,
    ) -> bodies.UsersAnswer:
        return bodies.UsersAnswer(users=engine.users(query, limit))

    @api.get("/v1/run", summary="Describe the served run")
    async def run() -> bodies.RunAnswer:
        names: Any = {"rankers": engine.rankers, "for_new": engine.for_new, "models": engine.models}
        # The recipe of a run without language models names a base model as well, by default.
        model = settings.model if engine.models else ""
        return bodies.RunAnswer(run=settings.name, model=model, items=len(engine.items), **names)

    @api.get("/v1/example", summary="Show an example of the split under test")
    async def example(row: Annotated[int, Query(ge=0, le=2**31)] = 0) -> bodies.ExampleAnswer:
        return engine.example(row)

    @api.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
    def metrics() -> Response:
        text = generate_latest(settings.telemetry.registry)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return api


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _key(api_key: str | None) -> list[Any]:
    if api_key is None:
        return []
    sent = Depends(HTTPBearer(auto_error=False, description="API key of the server."))

    async def check(given: HTTPAuthorizationCredentials | None = sent) -> None:
        # Compare the bytes that were sent: headers are read as Latin-1, and comparing text allows only ASCII.
        if given is None or not hmac.compare_digest(given.credentials.encode("latin-1"), api_key.encode()):
            message = "an API key is needed: send the header Authorization: Bearer KEY"
            raise HTTPException(401, message, headers={"WWW-Authenticate": "Bearer"})

    return [Depends(check)]


def _answer_errors(app: FastAPI, folder: str) -> None:
    """Turn every error into a `ProblemAnswer`; `folder` is the name of the run's folder."""

    @app.exception_handler(PrefrecError)
    async def expected(request: Request, error: PrefrecError) -> JSONResponse:
        status, code = next((status, code) for kind, status, code in ERRORS if isinstance(error, kind))
        message = str(error)
        if status == 500:  # the message may contain paths of this machine
            console.print(f"error: request {request.scope['request_id']}: {error}", highlight=False, markup=False)
            message = f"the model failed; the server's log has the reason at request {request.scope['request_id']}"
        headers = {"Retry-After": str(RETRY_AFTER)} if isinstance(error, QueueFullError | StoppedError) else None
        return problem(status, code, message, headers, getattr(error, "unknown", ()))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        # Before a missing field, because a misspelt field is also missing.
        first = next((e for e in found if e["type"] == "extra_forbidden"), found[0])
        if first["type"] == "json_invalid":
            return problem(400, "no_json", f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        sent = request.headers.get("content-type", "").lower()
        if first["loc"] == ("body",) and first["type"] != "missing" and "json" not in sent:
            named = f"content-type {sent[:50]!r}" if sent else "no content-type"
            hint = "the body has to be JSON: send the header content-type: application/json"
            return problem(415, "no_json", f"the request has {named}; {hint}".encode(errors="replace").decode())
        location = ".".join(str(p) for p in first["loc"] if p not in NAME_KINDS)
        near = ""
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 2:  # a field of the body itself
            near = did_you_mean(first["loc"][1], request.scope["route"].body_field.field_info.annotation.model_fields)
        # The value is not repeated: it may be long, or not encodable.
        return problem(422, "invalid", f"{location}: {first['msg']}{near}".encode(errors="replace").decode())

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {400: "no_json", 401: "unauthorised", 404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "error")
        # Starlette's own texts say neither what is wrong with a body nor which method is right.
        known = {400: "the body is not JSON in UTF-8", 404: NO_PATH}
        if allowed := (error.headers or {}).get("Allow"):
            known[405] = f"send {allowed}; /openapi.json describes the API"
        message = known.get(error.status_code, str(error.detail))
        return problem(error.status_code, code, message, dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        number = request.scope["request_id"]
        trace = "".join(traceback.format_exception(error))
        console.print(f"error: request {number}:\n{trace}", highlight=False, markup=False)
        # Starlette sends this response outside of all middleware, so the headers are added here.
        headers = headers_of(folder) | {REQUEST_ID: number}
        return problem(500, "internal", f"the server failed; its log has the reason at request {number}", headers)

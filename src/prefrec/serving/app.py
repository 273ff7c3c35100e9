"""The HTTP application: routes, keys, and the wording of errors, over an `Engine`."""

from __future__ import annotations

import asyncio
import hmac
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from prefrec import __version__
from prefrec.console import console
from prefrec.errors import DataError, ModelError, PrefrecError, TokenizerError
from prefrec.serving.batcher import DeadlineError, QueueFullError, StoppedError
from prefrec.serving.bodies import (
    MAX_FOUND,
    MAX_NAME,
    ExampleAnswer,
    ExplainAnswer,
    ExplainRequest,
    ItemBody,
    ItemsAnswer,
    Problem,
    ProblemAnswer,
    RankAnswer,
    RankRequest,
    RecommendAnswer,
    RecommendRequest,
    RunAnswer,
    StateAnswer,
    UnknownName,
)
from prefrec.serving.engine import Asked, Engine, UnknownRankerError
from prefrec.serving.items import UnknownItemsError
from prefrec.serving.middleware import HEADERS, BodyLimit, Counting, KnownHosts, StrictHeaders, problem
from prefrec.serving.telemetry import Telemetry

Body = TypeVar("Body")

NAME_KINDS = ("constrained-str", "ById")
"""What pydantic adds to the place of an error in an `ItemName`."""

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ProblemAnswer, "description": "The body is no JSON."},
    401: {"model": ProblemAnswer, "description": "The server wants a key."},
    404: {"model": ProblemAnswer, "description": "An item is unknown (near matches are given), or a ranker."},
    408: {"model": ProblemAnswer, "description": "The body did not arrive in time."},
    421: {"model": ProblemAnswer, "description": "The Host header names another server."},
    413: {"model": ProblemAnswer, "description": "The body is too long."},
    422: {"model": ProblemAnswer, "description": "A field is wrong, or the question does not fit the prompt."},
    429: {"model": ProblemAnswer, "description": "The queue is full; Retry-After says when to try again."},
    500: {"model": ProblemAnswer, "description": "The model or the server failed; the server's log says why."},
    503: {"model": ProblemAnswer, "description": "The server is stopping."},
    504: {"model": ProblemAnswer, "description": "No answer before the deadline."},
}


class ClientGoneError(PrefrecError):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Settings:
    """How a run is served.

    Attributes:
        name: of the run, to show.
        model: the base's name, to show.
        deadline: seconds in which a request is answered, or refused.
        api_key: what clients send as `Authorization: Bearer KEY`; None: nothing is asked for.
        hosts: names by which the server may be asked, without port; None: any.
        page: path → (media type, content) of the page's files; empty: no page.
        telemetry: what is counted.
    """

    name: str
    model: str
    deadline: float = 30.0
    api_key: str | None = field(default=None, repr=False)
    hosts: frozenset[str] | None = None
    page: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    telemetry: Telemetry = field(default_factory=Telemetry)


def create_app(engine: Engine, settings: Settings) -> FastAPI:
    """The application. It closes the engine when it shuts down."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(engine.close, settings.deadline)

    app = FastAPI(
        title="prefrec",
        version=__version__,
        description=f"Rankings of the run {settings.name}.",
        lifespan=lifespan,
        docs_url=None,  # their scripts would come from another server
        redoc_url=None,
    )
    settings.telemetry.watch_queue(lambda: engine.batcher.waiting)
    app.include_router(_state(engine))
    app.include_router(_api(engine, settings), dependencies=_key(settings.api_key))
    app.include_router(_page(settings.page))
    _word_errors(app)
    app.add_middleware(BodyLimit)
    app.add_middleware(KnownHosts, hosts=settings.hosts)
    app.add_middleware(StrictHeaders)
    app.add_middleware(Counting, telemetry=settings.telemetry)
    app.openapi = _openapi(app, engine)  # type: ignore[method-assign]
    return app


def _api(engine: Engine, settings: Settings) -> APIRouter:
    api = APIRouter(responses=ERRORS)

    async def through(make: Callable[[], Asked[Body]]) -> Body:
        """Encoded, then scored: a place in both queues, given up when this is cancelled."""
        asked = await asyncio.wrap_future(engine.prepare(make))
        return asked.answer(await asyncio.wrap_future(engine.submit(asked, settings.deadline)))

    async def answer(request: Request, make: Callable[[], Asked[Body]]) -> Body:
        try:
            async with asyncio.timeout(settings.deadline):
                return await _while_there(request, through(make))
        except TimeoutError:
            raise DeadlineError(f"no answer within {settings.deadline:g} s; ask for less, or later") from None

    @api.post("/v1/rank", summary="Order candidates for a history")
    async def rank(body: RankRequest, request: Request) -> RankAnswer:
        return await answer(request, lambda: engine.rank(body))

    @api.post("/v1/recommend", summary="The best items of the whole catalogue for a history")
    async def recommend(body: RecommendRequest, request: Request) -> RecommendAnswer:
        return await answer(request, lambda: engine.recommend(body))

    @api.post("/v1/explain", summary="What each item of a history does to a candidate, by leaving it out")
    async def explain(body: ExplainRequest, request: Request) -> ExplainAnswer:
        return await answer(request, lambda: engine.explain(body))

    @api.get("/v1/items", summary="Search the catalogue by title or id")
    def items(
        query: Annotated[str, Query(max_length=MAX_NAME, description="Part of a title, or an id.")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_FOUND)] = 10,
    ) -> ItemsAnswer:
        found = engine.items.search(query, limit)
        return ItemsAnswer(items=[ItemBody(item_id=i.item_id, title=i.title) for i in found])

    @api.get("/v1/run", summary="What is served")
    async def run() -> RunAnswer:
        return RunAnswer(run=settings.name, model=settings.model, rankers=engine.rankers, items=len(engine.items))

    @api.get("/v1/example", summary="A row of the data under test")
    async def example(row: Annotated[int, Query(ge=0, le=2**31)] = 0) -> ExampleAnswer:
        return engine.example(row)

    @api.get("/metrics", summary="Counters, for Prometheus", response_class=Response)
    def metrics() -> Response:
        return Response(settings.telemetry.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return api


async def _while_there(request: Request, work: Coroutine[Any, Any, Body]) -> Body:
    """What `work` gives, which is cancelled when the client goes away.

    Raises:
        ClientGoneError: it has.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = working, _ = asyncio.create_task(work), asyncio.create_task(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client has gone")
        return working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _state(engine: Engine) -> APIRouter:
    router = APIRouter()

    @router.get("/healthz", summary="Does the server live?")
    async def healthz() -> StateAnswer:
        return StateAnswer(status="ok")

    @router.get("/readyz", summary="Does it take requests?", responses={503: ERRORS[503]})
    async def readyz() -> StateAnswer:
        if not engine.batcher.alive:
            raise StoppedError("the server is stopping")
        return StateAnswer(status="ready")

    return router


def _page(files: dict[str, tuple[str, bytes]]) -> APIRouter:
    """One route for each file of the page; no path is ever made from what a client sends."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, media_type: str, content: bytes) -> None:
        async def file() -> Response:
            return Response(content, media_type=media_type)

        router.add_api_route(path, file, response_class=Response)

    for path, (media_type, content) in files.items():
        add(path, media_type, content)
    return router


def _key(api_key: str | None) -> list[Any]:
    """The check of the key, as dependencies of the routes that need it."""
    if api_key is None:
        return []
    bearer = HTTPBearer(auto_error=False, description="The key that the server was started with.")

    async def check(given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
        # Bytes as they were sent: headers are read as Latin-1, and a comparison of texts refuses all but ASCII.
        if given is None or not hmac.compare_digest(given.credentials.encode("latin-1"), api_key.encode()):
            raise HTTPException(
                401, "a key is needed: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"}
            )

    check.__annotations__["given"] = Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    return [Depends(check)]


def _word_errors(app: FastAPI) -> None:
    """Every error as a `ProblemAnswer`."""

    @app.exception_handler(PrefrecError)
    async def ours(request: Request, error: PrefrecError) -> JSONResponse:
        return _worded(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"] if p not in NAME_KINDS)
        if first["type"] == "json_invalid":
            return problem(400, "no_json", f"the body is no JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        # What was given is not repeated: it may be long, and need not be text that can be written.
        return problem(422, "invalid", f"{place}: {first['msg']}".encode(errors="replace").decode())

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        codes = {400: "no_json", 401: "unauthorised", 404: "not_found", 405: "method_not_allowed"}
        code = codes.get(error.status_code, "error")
        return problem(error.status_code, code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        console.print("".join(traceback.format_exception(error)), highlight=False, markup=False)
        # The answer to what was not foreseen goes past the middleware.
        strict = {name.decode(): value.decode() for name, value in HEADERS.items()}
        return problem(500, "internal", "the server failed; its log says why", strict)


def _worded(error: PrefrecError) -> JSONResponse:
    if isinstance(error, UnknownItemsError):
        names = [
            UnknownName(given=u.given, near=[ItemBody(item_id=i.item_id, title=i.title) for i in u.near])
            for u in error.unknown
        ]
        body = ProblemAnswer(error=Problem(code="unknown_item", message=str(error), items=names))
        return JSONResponse(body.model_dump(), 404)
    if isinstance(error, UnknownRankerError):
        return problem(404, "unknown_ranker", str(error))
    if isinstance(error, QueueFullError):
        return problem(429, "queue_full", str(error), {"Retry-After": str(error.retry_after)})
    if isinstance(error, DeadlineError):
        return problem(504, "deadline", str(error))
    if isinstance(error, ClientGoneError):
        return problem(499, "client_gone", str(error))  # nobody reads it, but it is counted
    if isinstance(error, StoppedError):
        return problem(503, "stopping", str(error), {"Retry-After": "5"})
    if isinstance(error, TokenizerError):
        return problem(422, "too_long", str(error))
    if isinstance(error, DataError):
        return problem(422, "invalid", str(error))
    console.print(f"error: {error}", highlight=False, markup=False)
    code = "model" if isinstance(error, ModelError) else "internal"
    return problem(500, code, "the model could not answer; the server's log says why")


def _openapi(app: FastAPI, engine: Engine) -> Callable[[], dict[str, Any]]:
    """The schema, with examples that this very server can answer."""

    def schema() -> dict[str, Any]:
        if app.openapi_schema is None:
            whole = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path, example in _examples(engine).items():
                content = whole["paths"][path]["post"]["requestBody"]["content"]["application/json"]
                content["examples"] = {"titles": {"summary": "Items of the catalogue", "value": example}}
            app.openapi_schema = whole
        return app.openapi_schema

    return schema


def _examples(engine: Engine) -> dict[str, dict[str, Any]]:
    """Path → body of a request, made of items of the catalogue: the schema is open to all, users' rows are not."""
    titles = engine.items.plain_titles(8)
    history = titles[: len(titles) // 2]
    candidates = titles[len(history) :]
    question = {"history": history, "candidates": candidates}
    whole = {"history": history, "k": 5}
    return {"/v1/rank": question, "/v1/recommend": whole, "/v1/explain": question | {"target": candidates[0]}}

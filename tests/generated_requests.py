"""Requests that schemathesis makes of the served app's own OpenAPI, right ones and wrong ones."""

from __future__ import annotations

import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import GenerationMode

PATHS = ("/v1/rank", "/v1/recommend", "/v1/explain", "/v1/items", "/v1/run", "/v1/example", "/healthz", "/readyz")


def ask(app: FastAPI, path: str, examples: int, random: int | None = None) -> int:
    """Send generated requests to a path; how many.

    Args:
        app: the application.
        path: one of `PATHS`.
        examples: how many requests are tried.
        random: seeds their choice; None: as hypothesis likes.

    Raises:
        Exception: an answer with a 5xx, or one that the schema does not say.
    """
    (operation,) = schemathesis.openapi.from_asgi("/openapi.json", app)[path].values()
    kinds = [
        operation.as_strategy(generation_mode=mode) for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    ]
    asked = 0

    def send(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        case.call_and_validate()

    check = given(kinds[0] | kinds[1])(send)
    check = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)(
        check if random is None else seed(random)(check)
    )
    check()
    return asked

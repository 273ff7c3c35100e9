"""Requests that schemathesis makes of the served app's own OpenAPI, right ones and wrong ones."""

import schemathesis
from fastapi import FastAPI
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from drawn import try_drawn

TOO_LONG = "413"
"""Right and wrong bodies alike are refused unread where they are too long: no keyword of a schema says that."""

REFUSALS = {
    "negative_data_rejection": ["400", "401", "403", "404", "405", "406", "409", TOO_LONG, "415", "422", "429"],
    "positive_data_acceptance": ["2xx", "401", "403", "404", "409", TOO_LONG, "429"],
}
"""Check of schemathesis → statuses that it lets pass."""

QUESTIONS = (
    "rank",
    "recommend",
    "recommend-users",
    "also-bought",
    "similar",
    "explain",
    "items",
    "users",
    "run",
    "example",
)
PATHS = (*(f"/v1/{name}" for name in QUESTIONS), "/healthz", "/readyz")


def ask(app: FastAPI, path: str, examples: int, random: int | None = None) -> int:
    """Send generated requests to a path; how many. Raise if an answer is a 5xx, or not one of the schema."""
    checks = {name: {"expected-statuses": statuses} for name, statuses in REFUSALS.items()}
    config = SchemathesisConfig.from_dict({"checks": checks})
    (operation,) = schemathesis.openapi.from_asgi("/openapi.json", app, config=config)[path].values()
    right, wrong = (operation.as_strategy(generation_mode=GenerationMode[kind]) for kind in ("POSITIVE", "NEGATIVE"))
    asked: list[None] = []

    def send(case: schemathesis.Case) -> None:
        asked.append(None)
        case.call_and_validate()

    try_drawn(send, right | wrong, examples, random)
    return len(asked)

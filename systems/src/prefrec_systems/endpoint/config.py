"""Settings of a server and of a ranker behind it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError

from prefrec.rankers.config import RankerConfig

_ADDRESS = TypeAdapter(HttpUrl)


def _checked_address(url: str) -> str:
    try:
        _ADDRESS.validate_python(url)
    except ValidationError as e:
        reason = e.errors()[0]["msg"]
        raise ValueError(f"{url!r} is not an address such as http://localhost:8000/v1: {reason}") from None
    return url


class ServerSettings(BaseModel):
    """A server, one of its models, and the patience with which it is asked."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_checked_address)] = Field(
        "http://localhost:8000/v1", description="Base address; with most servers it ends with /v1."
    )
    model: str | None = Field(None, description="Name of the model there; None: the only one that is served.")
    key_variable: str = Field(
        "PREFREC_ENDPOINT_KEY", description="Environment variable with the API key, if the server wants one."
    )
    timeout: float = Field(120.0, gt=0, description="Seconds that an answer may take.")
    retries: int = Field(4, ge=0, description="Further tries if the server is busy, failing or away.")
    concurrency: int = Field(8, ge=1, description="Requests on their way at a time.")


PATIENCE = {"timeout", "retries", "concurrency", "key_variable"}
"""Settings of a server that its answers do not depend on."""


class EndpointConfig(ServerSettings, RankerConfig):
    """A model behind a server, asked as the recipe's own model is asked: the same prompt, the same tokens."""

    kind: Literal["endpoint"] = "endpoint"
    name: str = "endpoint"
    tokenizer: str | None = Field(
        None, description="Of the served model: a folder or hub id; None: that of the recipe's model."
    )
    prompts: Literal["tokens", "text"] = Field(
        "tokens", description="Form of the prompts: token ids, or text for servers that take no ids."
    )

"""Settings of a server, and of a served model as a ranker."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, TypeAdapter, ValidationError

from prefrec.rankers.config import RankerConfig

_ADDRESS = TypeAdapter(HttpUrl)

KEY_VARIABLE = "PREFREC_ENDPOINT_KEY"


def _checked_variable(name: str) -> str:
    # A run from elsewhere could otherwise send any secret of the environment to its own address.
    if not re.fullmatch(rf"{KEY_VARIABLE}(_\w+)?", name):
        raise ValueError(f"{name!r} does not begin with {KEY_VARIABLE}: set a variable such as {KEY_VARIABLE}_2")
    return name


def _checked_address(url: str) -> str:
    try:
        _ADDRESS.validate_python(url)
    except ValidationError as e:
        reason = e.errors()[0]["msg"]
        raise ValueError(f"{url!r} is not an address such as http://localhost:8000/v1: {reason}") from None
    return url


class ServerSettings(BaseModel):
    """A server and its model, with limits on time, retries and parallel requests."""

    model_config = ConfigDict(extra="forbid")

    url: Annotated[str, AfterValidator(_checked_address)] = Field(
        "http://localhost:8000/v1", description="Base address, which ends in /v1 on most servers."
    )
    model: str | None = Field(None, description="Name of the model on the server. Default: the only one served.")
    key_variable: Annotated[str, AfterValidator(_checked_variable)] = Field(
        KEY_VARIABLE,
        description="Environment variable with the API key, if the server needs one; its name begins with "
        f"{KEY_VARIABLE}.",
    )
    timeout: float = Field(120.0, gt=0, description="Seconds to wait for an answer.")
    retries: int = Field(4, ge=0, description="Number of retries when the server is busy, fails or is down.")
    concurrency: int = Field(8, ge=1, description="Requests to send in parallel.")


PATIENCE = {"timeout", "retries", "concurrency", "key_variable"}
"""Settings of a server that do not affect its answers."""


class EndpointConfig(ServerSettings, RankerConfig):
    """A served model, queried with the same prompts and tokens as the recipe's model."""

    kind: Literal["endpoint"] = "endpoint"
    name: str = Field("endpoint", description="Name in tables, and of the ranker's folder.")
    tokenizer: str | None = Field(
        None,
        description="Tokenizer of the served model: a folder or Hugging Face id. Default: that of the recipe's "
        "model.",
    )
    prompts: Literal["tokens", "text"] = Field(
        "tokens", description="Send prompts as token ids, or as text to servers that do not accept token ids."
    )

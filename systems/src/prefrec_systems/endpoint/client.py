"""A model on a server with OpenAI's HTTP protocol, such as vLLM, llama.cpp's server or `transformers serve`.

The package `openai` sends and retries requests. Answers are parsed here, because its types accept values of any kind,
but not None as the log-probability of a prompt's first token.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

import openai
from pydantic import BaseModel, Field, FiniteFloat, ValidationError, field_validator

from prefrec.errors import ConfigError, ModelError
from prefrec_systems.endpoint.config import ServerSettings

BUSY = (408, 409, 429)
"""Status codes below 500 after which `openai` retries."""


class LogProbs(BaseModel, strict=True):
    """Log-probabilities of the tokens of a prompt and its continuation; None for the first token."""

    token_logprobs: list[FiniteFloat | None] = []


class Choice(BaseModel, strict=True):
    """The answer to one prompt."""

    index: int
    text: str
    logprobs: LogProbs | None = None


class Completion(BaseModel, strict=True):
    """An answer of `/completions`: one choice per prompt, in the order of the prompts."""

    choices: list[Choice]
    usage: dict[str, Any] | None = None

    @field_validator("choices")
    @classmethod
    def _in_order(cls, choices: list[Choice]) -> list[Choice]:
        choices.sort(key=lambda choice: choice.index)
        if [choice.index for choice in choices] != list(range(len(choices))):
            raise ValueError("the indices of the choices are not those of the prompts")
        return choices


class _Said(BaseModel, strict=True):
    content: str | None = None


class _Turn(BaseModel, strict=True):
    message: _Said


class _Chat(BaseModel, strict=True):
    choices: list[_Turn] = Field(min_length=1)


class _Served(BaseModel, strict=True):
    id: str


class _Models(BaseModel, strict=True):
    data: list[_Served]


Reply = TypeVar("Reply", bound=BaseModel)


class OpenAIClient:
    """Queries one model of a server. All methods are thread-safe.

    Raises:
        ConfigError: the API key cannot be sent.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.url = settings.url.rstrip("/")
        # `openai` requires a key; servers without keys ignore it.
        self._openai = openai.OpenAI(
            base_url=self.url,
            api_key=_key(settings.key_variable) or "none",
            timeout=settings.timeout,
            max_retries=settings.retries,
        )

    @cached_property
    def model(self) -> str:
        """Name of the model on the server. Raise ModelError if it is not set and the server has not one model."""
        if self.settings.model is not None:
            return self.settings.model
        served = self.models()
        if len(served) != 1:
            raise ModelError(f"{self.url} serves {', '.join(served) or 'no model'}: set `model` to one of its models")
        return served[0]

    def models(self) -> list[str]:
        """Return the names of the models that the server offers."""
        return [model.id for model in self._ask("models", self._openai.models.with_raw_response.list, _Models).data]

    def completions(self, **body: Any) -> Completion:
        """Return the answer of `/completions` to these fields and the model.

        Raises:
            ModelError: the server is unreachable, refuses the key or the request, or has no such model.
        """
        create = self._openai.completions.with_raw_response.create
        return self._ask("completions", create, Completion, model=self.model, **body)

    def chat(self, **body: Any) -> str:
        """Return the text of the first choice of `/chat/completions`; raise errors of `completions`."""
        create = self._openai.chat.completions.with_raw_response.create
        answer = self._ask("chat/completions", create, _Chat, model=self.model, **body)
        return answer.choices[0].message.content or ""

    def many(self, ask: Callable[..., Any], bodies: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """Yield `ask(**body)` for each body, in order, with at most `concurrency` requests at a time.

        The first error ends it; requests that have not been sent are dropped.
        """
        _ = self.model  # query the name once, and not in each thread
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            yield from pool.map(lambda body: ask(**body), bodies)

    def strange(self, path: str, text: str) -> ModelError:
        """Return the error for an answer that does not follow the protocol."""
        return ModelError(
            f"{self.url}/{path}: the answer does not follow OpenAI's protocol: {text[:200]!r}; is `url` the base "
            "address of such a server?"
        )

    def _ask(self, path: str, call: Callable[..., Any], form: type[Reply], **body: Any) -> Reply:
        tries = self.settings.retries + 1
        try:
            text = call(**body).text
        except openai.APITimeoutError:
            raise ModelError(
                f"{self.url}: no answer within {self.settings.timeout:g} s in {tries} tries: raise `timeout` or "
                "lower `concurrency`"
            ) from None
        except openai.APIConnectionError as e:
            raise ModelError(
                f"no server answers at {self.url} in {tries} tries ({e.__cause__ or e}): start it, or correct `url`"
            ) from None
        except openai.APIStatusError as e:
            reason = f"{e.status_code}: {' '.join(e.response.text[:300].split()) or 'no message'}"
            raise self._refusal(path, e.status_code, reason) from None
        try:
            return form.model_validate_json(text)
        except ValidationError:
            raise self.strange(path, text) from None

    def _refusal(self, path: str, status: int, reason: str) -> ModelError:
        if status in (401, 403):
            return ModelError(
                f"{self.url} refuses the API key ({reason}): set the environment variable "
                f"{self.settings.key_variable} to a valid one"
            )
        if status in BUSY or status >= 500:
            return ModelError(f"{self.url} failed in {self.settings.retries + 1} tries ({reason})")
        if path != "models":
            with suppress(ModelError):
                served = self.models()
                if self.model not in served:
                    names = ", ".join(served)
                    return ModelError(f"{self.url} has no model {self.model!r}; it serves {names} ({reason})")
        hint = "; does the address end with /v1?" if status == 404 and not self.url.endswith("/v1") else ""
        return ModelError(f"{self.url}/{path} refuses the request ({reason}){hint}")


def _key(variable: str) -> str:
    """Return the API key in an environment variable; "" if it is unset."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # other characters are not allowed in a header
        raise ConfigError(
            f"the environment variable {variable} is not an API key: a key is one line of ASCII letters, digits and "
            "signs; set the variable to the key only"
        )
    return key

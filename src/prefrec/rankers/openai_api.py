"""A client for servers with OpenAI's HTTP protocol, such as vLLM, llama.cpp's server and `transformers serve`."""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, field_validator

from prefrec.errors import ConfigError, ModelError

RETRIED = (408, 429, 500, 502, 503, 504)
"""Status codes after which the same question may be answered."""
LONGEST_WAIT_S = 30.0


class ServerSettings(BaseModel):
    """A server, one of its models, and the patience with which it is asked."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field("http://localhost:8000/v1", description="Base address; with most servers it ends with /v1.")
    model: str | None = Field(None, description="Name of the model there; None: the only one that is served.")
    key_variable: str = Field(
        "PREFREC_ENDPOINT_KEY", description="Environment variable with the API key; if it is unset, none is sent."
    )
    timeout: float = Field(120.0, gt=0, description="Seconds that an answer may take.")
    retries: int = Field(4, ge=0, description="Further tries if the server is busy, failing or away.")
    backoff: float = Field(0.5, ge=0, description="Seconds before the first further try; they double with each.")
    concurrency: int = Field(8, ge=1, description="Requests on their way at a time.")


Reply = TypeVar("Reply")
_NAMES = TypeAdapter(list[str])
_TEXT = TypeAdapter[str | None](str | None)


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


class OpenAIClient:
    """Asks one model of a server. All methods may be called from several threads.

    Raises:
        ConfigError: httpx2 is not installed, or the address or the key is not one.
    """

    def __init__(self, settings: ServerSettings) -> None:
        try:
            self._http: Any = importlib.import_module("httpx2")
        except ModuleNotFoundError:
            raise ConfigError("asking a server needs httpx2: pip install 'prefrec[endpoint]'") from None
        self.settings = settings
        self.url = settings.url.rstrip("/")
        wrong = f"url: {settings.url!r} is not an address"
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"{wrong}; expected one such as http://localhost:8000/v1")
        try:
            host = self._http.URL(self.url).raw_host.decode("ascii")
            host.encode("idna")  # as it is when its number is looked up
        except (self._http.InvalidURL, UnicodeError) as e:
            raise ConfigError(f"{wrong}: {e}") from None
        if not host:
            raise ConfigError(f"{wrong}: it names no machine")
        key = _key(settings.key_variable)
        self._client = self._http.Client(
            timeout=settings.timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=self._http.Limits(max_connections=settings.concurrency),
        )
        weakref.finalize(self, self._client.close)
        self._ended = threading.Event()

    @cached_property
    def model(self) -> str:
        """The model's name on the server; ModelError if none is given and the server has not exactly one."""
        if self.settings.model is not None:
            return self.settings.model
        served = self.models()
        if len(served) != 1:
            raise ModelError(f"{self.url} serves {', '.join(served) or 'no model'}: name one (`model`)")
        return served[0]

    def models(self) -> list[str]:
        """Return the names of the models that the server offers."""
        return self._ask("GET", "models", None, lambda a: _NAMES.validate_python([m["id"] for m in a["data"]]))

    def completions(self, **body: Any) -> Completion:
        """Return the answer of `/completions` to these fields and the model.

        Raises:
            ModelError: the server is away, refuses the key or the question, or has no such model.
        """
        return self._ask("POST", "completions", {"model": self.model, **body}, Completion.model_validate)

    def chat(self, **body: Any) -> str:
        """Return the text of the first choice of `/chat/completions`; raises as `completions`."""

        def text(answer: Any) -> str:
            return _TEXT.validate_python(answer["choices"][0]["message"].get("content")) or ""

        return self._ask("POST", "chat/completions", {"model": self.model, **body}, text)

    def many(self, ask: Any, bodies: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """Yield `ask(**body)` for each body, in order; at most `concurrency` requests are on their way.

        The first error ends it; questions that have not been sent then are not sent.
        """
        _ = self.model  # asked for here, and not by each of the threads
        pool = ThreadPoolExecutor(self.settings.concurrency)
        waiting: deque[Future[Any]] = deque()
        try:
            for body in bodies:
                waiting.append(pool.submit(ask, **body))
                if len(waiting) >= 2 * self.settings.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BaseException:
            # Requests that wait for a further try give up.
            self._ended.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._ended.clear()

    def strange(self, path: str, text: str) -> ModelError:
        """Return the error for an answer that is not one of the protocol."""
        return ModelError(
            f"{self.url}/{path}: this is not an answer of OpenAI's protocol: {text[:200]!r}; is `url` the base "
            "address of such a server?"
        )

    def _ask(self, method: str, path: str, body: dict[str, Any] | None, parse: Callable[[Any], Reply]) -> Reply:
        response = self._request(method, path, body)
        status = response.status_code
        if response.is_success:
            try:
                return parse(response.json())
            # A ValidationError is a ValueError, too; a RecursionError comes of a deeply nested body.
            except (ValueError, RecursionError, KeyError, IndexError, TypeError, AttributeError):
                raise self.strange(path, response.text) from None
        reason = f"{status}: {_message(response)}"
        if status in (401, 403):
            raise ModelError(
                f"{self.url} refuses the key ({reason}): put the right one into the environment variable "
                f"{self.settings.key_variable}"
            )
        if status in RETRIED:
            raise ModelError(f"{self.url} is failing, {self.settings.retries + 1} tries ({reason})")
        if path != "models":
            served = []
            with suppress(ModelError):
                served = self.models()
            if served and self.model not in served:
                raise ModelError(
                    f"{self.url} knows no model {self.model!r}, it serves {', '.join(served)} ({reason})"
                )
        hint = "; does the address end with /v1?" if status == 404 and not self.url.endswith("/v1") else ""
        raise ModelError(f"{self.url}/{path} refuses the question ({reason}){hint}")

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        """Return the server's response, after further tries if it is busy, failing or away."""
        tries = self.settings.retries + 1
        for attempt in range(tries):
            wait = min(self.settings.backoff * 2**attempt, LONGEST_WAIT_S)
            try:
                response = self._client.request(method, f"{self.url}/{path}", json=body)
                if response.status_code not in RETRIED:
                    return response
                wait = max(wait, _retry_after(response.headers.get("Retry-After")))
                error = None
            except self._http.TransportError as e:
                error = e
            except self._http.DecodingError as e:
                raise self.strange(path, f"compressed, and damaged: {e}") from None
            if attempt < self.settings.retries and self._ended.wait(wait):
                raise ModelError(f"{self.url}: not asked again, another request has failed")
        if error is None:
            return response
        if isinstance(error, self._http.TimeoutException):
            wrong = f"{self.url}: no answer in {self.settings.timeout:g} s, {tries} tries"
            raise ModelError(f"{wrong}: raise `timeout` or lower `concurrency`")
        wrong = f"no server answers at {self.url}, {tries} tries ({error or type(error).__name__})"
        raise ModelError(f"{wrong}: start it, or give the right `url`")


def _key(variable: str) -> str:
    """Return the API key in an environment variable; "" if it is unset."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):  # a header must not have other characters
        raise ConfigError(
            f"the environment variable {variable} holds no API key: keys are ASCII letters, digits and signs in one "
            "line; set it to the key alone"
        )
    return key


def _retry_after(header: str | None) -> float:
    """Return the seconds of a `Retry-After` header; 0 for a date."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT_S)
    except ValueError:
        return 0.0


def _message(response: Any) -> str:
    """Return the server's message about an error on one line, in the forms that servers have for it."""
    message = None
    with suppress(ValueError, RecursionError):
        message = response.json()
    for name in ("error", "detail", "message"):
        message = message.get(name, message) if isinstance(message, dict) else message
    text = message if isinstance(message, str) else response.text
    return " ".join(text[:300].split()) or "no message"

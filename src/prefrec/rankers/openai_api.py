"""A client for servers that speak OpenAI's HTTP protocol, as vLLM, llama.cpp's server and `transformers serve` do."""

from __future__ import annotations

import importlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from prefrec.errors import ConfigError, ModelError

RETRIED = (408, 429, 500, 502, 503, 504)
"""Answers after which the same question may be answered."""
LONGEST_WAIT_S = 30.0


class ServerSettings(BaseModel):
    """Which server, which of its models, and how patiently it is asked."""

    model_config = ConfigDict(extra="forbid")

    url: str = Field("http://localhost:8000/v1", description="Base address; with most servers it ends with /v1.")
    model: str | None = Field(None, description="Name of the model there; None: the only one that is served.")
    key_variable: str = Field(
        "PREFREC_ENDPOINT_KEY", description="Environment variable with the API key; where it is unset, none is sent."
    )
    timeout: float = Field(120.0, gt=0, description="Seconds that an answer may take.")
    retries: int = Field(4, ge=0, description="Further tries where the server is busy, failing or away.")
    backoff: float = Field(0.5, ge=0, description="Seconds before the first further try; they double with each.")
    concurrency: int = Field(8, ge=1, description="Requests on their way at a time.")


class OpenAIClient:
    """Asks one model of a server. All methods may be called from several threads.

    Raises:
        ConfigError: httpx2 is not installed, or the address is none, or the key is none.
    """

    def __init__(self, settings: ServerSettings) -> None:
        try:
            self._http: Any = importlib.import_module("httpx2")
        except ModuleNotFoundError:
            raise ConfigError("asking a server needs httpx2: pip install 'prefrec[endpoint]'") from None
        self.settings = settings
        self.url = settings.url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"url: {settings.url!r} is no address; expected one as http://localhost:8000/v1")
        self._check_address()
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
        """The name by which the model is asked.

        Raises:
            ModelError: none is named, and the server has not exactly one.
        """
        if self.settings.model is not None:
            return self.settings.model
        served = self.models()
        if len(served) != 1:
            raise ModelError(f"{self.url} serves {', '.join(served) or 'no model'}: name one (`model`)")
        return served[0]

    def models(self) -> list[str]:
        """Names of the models that the server offers."""
        answer = self._request("GET", "models", None)
        try:
            names = [entry["id"] for entry in answer["data"]]
        except (KeyError, TypeError):
            raise self.strange("models", answer) from None
        if not all(isinstance(name, str) for name in names):
            raise self.strange("models", answer)
        return names

    def completions(self, **body: Any) -> dict[str, Any]:
        """The answer of `/completions` to these fields; the model is added.

        Raises:
            ModelError: the server is away, refuses the key or the question, or has no such model.
        """
        return self._request("POST", "completions", {"model": self.model, **body})

    def chat(self, **body: Any) -> str:
        """The text of the first choice of `/chat/completions`; errors as for `completions`."""
        answer = self._request("POST", "chat/completions", {"model": self.model, **body})
        try:
            said = answer["choices"][0]["message"].get("content")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise self.strange("chat/completions", answer) from None
        if not isinstance(said, str | None):
            raise self.strange("chat/completions", answer)
        return said or ""

    def many(self, ask: Any, bodies: Iterable[dict[str, Any]]) -> Iterator[Any]:
        """`ask(**body)` for each body, answers in order, at most `concurrency` of them on their way.

        The first error ends it; questions that have not been sent then are not sent.
        """
        _ = self.model
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
            self._ended.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            self._ended.clear()

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        for attempt in range(self.settings.retries + 1):
            wait = min(self.settings.backoff * 2**attempt, LONGEST_WAIT_S)
            last = attempt == self.settings.retries
            try:
                response = self._client.request(method, f"{self.url}/{path}", json=body)
            except self._http.TransportError as e:
                if last:
                    raise self._away(e) from None
            except self._http.DecodingError as e:
                raise self.strange(path, f"compressed, and damaged: {e}") from None
            else:
                if last or response.status_code not in RETRIED:
                    return self._read(response, path)
                wait = max(wait, _retry_after(response.headers.get("Retry-After")))
            if self._ended.wait(wait):
                raise ModelError(f"{self.url}: not asked again, another request has failed")
        raise AssertionError("unreachable: the last try returns or raises")

    def _read(self, response: Any, path: str) -> Any:
        """The JSON of a good answer."""
        status = response.status_code
        if response.is_success:
            try:
                return response.json()
            except (ValueError, RecursionError):
                raise self.strange(path, response.text) from None
        said = _message(response)
        if status in (401, 403):
            raise ModelError(
                f"{self.url} refuses the key ({status}: {said}): put the right one into the environment variable "
                f"{self.settings.key_variable}"
            )
        if status in RETRIED:
            raise ModelError(f"{self.url} is failing, {self.settings.retries + 1} tries ({status}: {said})")
        if path != "models" and self.model not in (served := self._served()) and served:
            raise ModelError(
                f"{self.url} knows no model {self.model!r}, it serves {', '.join(served)} ({status}: {said})"
            )
        hint = "; does the address end with /v1?" if status == 404 and not self.url.endswith("/v1") else ""
        raise ModelError(f"{self.url}/{path} refuses the question ({status}: {said}){hint}")

    def _served(self) -> list[str]:
        try:
            return self.models()
        except ModelError:
            return []

    def _away(self, error: Exception) -> ModelError:
        tries = self.settings.retries + 1
        if isinstance(error, self._http.TimeoutException):
            return ModelError(
                f"{self.url}: no answer in {self.settings.timeout:g} s, {tries} tries: raise `timeout` or lower "
                "`concurrency`"
            )
        return ModelError(
            f"no server answers at {self.url}, {tries} tries ({error or type(error).__name__}): start it, or give "
            "the right `url`"
        )

    def _check_address(self) -> None:
        try:
            host = self._http.URL(self.url).raw_host.decode("ascii")
            host.encode("idna")  # as it is when its number is looked up
        except (self._http.InvalidURL, UnicodeError) as e:
            raise ConfigError(f"url: {self.settings.url!r} is no address: {e}") from None
        if not host:
            raise ConfigError(f"url: {self.settings.url!r} is no address: it names no machine")

    def strange(self, path: str, answer: Any) -> ModelError:
        """The error that `answer` is none of the protocol."""
        return ModelError(
            f"{self.url}/{path}: this is no answer of OpenAI's protocol: {_beginning(answer)!r}; is `url` the base "
            "address of such a server?"
        )


def _key(variable: str) -> str:
    """The API key in an environment variable; "" where there is none.

    Raises:
        ConfigError: it has characters that no header may have.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"the environment variable {variable} holds no API key: keys are of ASCII letters, digits and signs, in "
            "one line; set it to the key alone"
        )
    return key


def _beginning(answer: Any, length: int = 200) -> str:
    try:
        return str(answer)[:length]
    except RecursionError:
        return f"a deeply nested {type(answer).__name__}"


def _retry_after(header: str | None) -> float:
    """Seconds of a `Retry-After` header; a date counts as none."""
    try:
        return min(max(float(header or 0), 0.0), LONGEST_WAIT_S)
    except ValueError:
        return 0.0


def _message(response: Any) -> str:
    """What the server says went wrong, in the forms that servers have for it, on one line."""
    try:
        found = response.json()
    except (ValueError, RecursionError):
        found = response.text
    for name in ("error", "detail", "message"):
        found = found.get(name, found) if isinstance(found, dict) else found
    return " ".join(_beginning(found, 300).split()) or "no message"

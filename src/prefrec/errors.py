"""Errors that a user can fix. Each message says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable
from typing import Any, TypeVar
from urllib.parse import quote, unquote

T = TypeVar("T")
NO_EXAMPLES = "lower data.min_history, keep more rows (data.max_…_rows), or choose another data.split"
"""The end of a message for a split without examples: what to do."""
# User, path and query of an address, which has one slash in a path. Punctuation at the end is not part of the query.
_QUERY = r"""\?[^\s"'<>]*[^\s"'<>\]):;,.]"""
_SHORTEST = 4
# Parts of messages of torch, the dynamic linker and the operating system.
_MEANS_NO_MEMORY = ("can't allocate memory", "out of memory", "failed to map segment", "Cannot allocate memory")
_ADDRESS = re.compile(rf"""\b([a-z][a-z0-9+.-]{{1,20}}:/+)([^\s/"'<>]*@)?([^\s"'<>?]*)({_QUERY})?""", re.IGNORECASE)


def without_secrets(value: T) -> T:
    """Replace the user and the query of addresses by ***, in a text or in the texts of lists and dicts."""
    shown: object = value
    if isinstance(value, str):
        shown = _ADDRESS.sub(lambda m: f"{m[1]}{'***@' * bool(m[2])}{m[3]}{'?***' * bool(m[4])}", value)
    elif isinstance(value, dict):
        shown = {name: without_secrets(inner) for name, inner in value.items()}
    elif isinstance(value, list):
        shown = [without_secrets(inner) for inner in value]
    return shown  # type: ignore[return-value]


def without_parts_of(address: str, text: str) -> str:
    """Replace the user and the query of an address by *** wherever a text repeats them, as messages of libraries do.

    A value of the query counts as a secret of its own if it has at least four characters.
    """
    secrets: set[str] = set()
    for _, user, _, query in _ADDRESS.findall(address):
        values = [pair.partition("=")[2] for pair in re.split("[&;]", query)]
        secrets |= {user, query, user[:-1].partition(":")[2]} | {value for value in values if len(value) >= _SHORTEST}
    secrets |= {form for secret in secrets for form in (quote(secret), quote(secret, safe=""), unquote(secret))}
    for secret in sorted(secrets - {""}, key=len, reverse=True):
        text = text.replace(secret, "?***" if secret.startswith("?") else "***@" if secret.endswith("@") else "***")
    return text


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the known name that is spelt most like this one, whatever its capitals; None if none is near."""
    lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=cutoff)
    return lower[found[0]] if found else None


def first_words(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_finite(what: str, *logps: Any) -> None:
    """Raise ModelError if an array of log-probabilities has NaN or infinity, because such values cannot be ranked."""
    if not all((abs(some) < math.inf).all() for some in logps):
        raise ModelError(f"{what}: a log-probability is not finite; use another dtype, or train again")


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return `; did you mean NAME?`, the end of a message about an unknown name, or "" if none is near."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else ""


def out_of_memory(error: BaseException) -> str | None:
    """Return the first line of an error, or its name, if it means that memory was not granted; None for others."""
    is_full = isinstance(error, MemoryError) or any(part in str(error) for part in _MEANS_NO_MEMORY)
    return (str(error).splitlines() or [type(error).__name__])[0] if is_full else None


class PrefrecError(Exception):
    """The base of all errors that the command line prints without a traceback; secrets in addresses are masked."""

    def __str__(self) -> str:
        return without_secrets(super().__str__())


class DataError(PrefrecError, ValueError):
    """An error in a log, catalogue or file of examples; the message names file, line and column."""


class StorageError(PrefrecError, OSError):
    """An error on writing a file, such as a full disk or a missing permission."""


class TemplateError(PrefrecError, ValueError):
    """An error in a prompt template; the message names the template."""


class TokenizerError(PrefrecError, ValueError):
    """A tokenizer without something that scoring needs, or an example that exceeds the maximum length."""


class ModelError(PrefrecError, ValueError):
    """A language model that cannot be found, loaded or used."""


class ConfigError(PrefrecError, ValueError):
    """An invalid recipe, setting or combination of settings; the message names the field."""

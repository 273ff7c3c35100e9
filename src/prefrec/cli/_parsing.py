"""Read the values and show the help of all verbs with cyclopts."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from cyclopts import App, CoercionError
from cyclopts.argument import ArgumentCollection
from cyclopts.help import DefaultFormatter, HelpPanel
from cyclopts.utils import UNSET
from rich.console import Console, ConsoleOptions

from prefrec.errors import ConfigError

SHOWN = 12
"""Options of a panel that `--help` shows."""


def as_values(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Turn what is given for fields of sections from text into values: None, numbers, lists and mappings.

    cyclopts does so for other parameters, but passes text to pydantic, and some fields refuse numbers that are texts.
    """
    for argument in arguments:
        if not argument.tokens or argument.tokens[0].implicit_value is not UNSET:  # a flag
            continue
        kinds = get_args(argument.hint) if get_origin(argument.hint) in (Union, UnionType) else (argument.hint,)
        first, texts = argument.tokens[0], [token.value for token in argument.tokens]
        if argument.keys:
            argument.tokens = [first.evolve(implicit_value=_value(texts, kinds, argument.name))]
        elif int in kinds and _is_fraction(texts[0]):
            raise CoercionError(argument=argument, token=first, target_type=int)  # cyclopts would round


def _value(texts: list[str], kinds: tuple[Any, ...], option: str) -> Any:
    """Return the value of a field of one of these kinds for the texts of its option. The section checks it."""
    first = get_origin(kinds[0]) or kinds[0]
    if texts == ["none"] and NoneType in kinds:
        return None
    if first is dict:
        return _mapping(texts, get_args(kinds[0])[1], option)
    is_union = len(kinds) > 1 + (NoneType in kinds)  # of a list and another kind: cyclopts takes one text
    if first in (list, tuple) and not is_union:
        return texts
    return _number(texts[0], first) if first in (int, float) else texts[0]


def _mapping(pairs: list[str], kind: Any, option: str) -> dict[str, Any]:
    """Return the mapping of KEY=VALUE, or of COLUMN=VALUE=FACTOR if its values, of type `kind`, are mappings.

    Raise ConfigError, which names the option, if a part of the latter is missing.
    """
    if get_origin(kind) is not dict:
        return dict(pair.partition("=")[::2] for pair in pairs)
    nested: dict[str, dict[str, float | str]] = {}
    for text in pairs:
        outer, _, pair = text.partition("=")
        inner, _, value = pair.rpartition("=")  # a value of the catalogue may contain the sign
        if not (outer and inner and value):
            raise ConfigError(f"{option} {text}: expected COLUMN=VALUE=FACTOR, such as brand=Acme=2")
        nested.setdefault(outer, {})[inner] = _number(value, float)
    return nested


def _number(text: str, kind: type[float]) -> float | str:
    """Return a text as a number; unchanged if it is none, so that the section refuses it."""
    with suppress(ValueError):
        return kind(text)
    return text


def _is_fraction(text: str) -> bool:
    number = _number(text, float)
    return isinstance(number, float) and not number.is_integer()


def shown_default(value: Any) -> str | None:
    """Return the text for a default in the help; None if it says nothing."""
    if value is None or value is False or value in ([], {}):
        return None
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


class Help(DefaultFormatter):
    """Help as cyclopts prints it, but without --help-all with at most `SHOWN` options of a panel."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        is_short = panel.format == "parameter" and "--help-all" not in sys.argv
        shown = panel.entries[:SHOWN] if is_short else panel.entries
        super().__call__(console, options, panel.copy(entries=shown))
        if more := len(panel.entries) - len(shown):
            console.print(f"--help-all shows {more} more options.")

"""Reads the order of titles, and the reason for it, out of what a language model wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefrec.prompts.answers import normalise_title, valid_choice

_MARKER = re.compile(r"^\s*(?:[-*•+]|#{1,6}|\(?\d{1,3}[.):])\s+")
_EMPHASIS = re.compile(r"^[*_]{1,3}(.+?)[*_]{1,3}(?=\W|$)")
_QUOTED = re.compile(r"^[\"“«](.+?)[\"”»](?=\W|$)")
_BREAK = re.compile(r"\s+[-–—|(]")
_REASON = re.compile(r"^\W*reason(?:ing|s)?\W*:\W*", re.IGNORECASE)
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_ARRAY = re.compile(r"\[[^\[\]]*\]", re.DOTALL)


@dataclass(frozen=True)
class Answer:
    """An answer, read.

    Attributes:
        text: as it was given.
        order: indices of the shown titles that it lists, best first; empty where it could not be read.
        reason: what it gives as its reason; None where it gives none.
        listed: entries of its list: the title that an entry names, or the entry as written where it names none.
        invented: those that name none.
    """

    text: str
    order: tuple[int, ...]
    reason: str | None
    listed: tuple[str, ...]
    invented: tuple[str, ...]


def read_answer(text: str, titles: Sequence[str]) -> Answer:
    """What `text` says about the order of `titles`.

    A line names a title where the whole line does after `prefrec.prompts.answers.normalise_title`; list markers,
    emphasis, quotes and a remark after a dash, bar or bracket may surround it. A JSON array of titles is read as
    well. A title counts where it is named first. What follows "Reason:" is not read for titles, nor is what a
    reasoning model thinks before `</think>`.
    """
    body, reason = _split_reason(_THOUGHT.sub("", text))
    order: list[int] = []
    listed, invented = [], []
    for forms, is_entry in _entries(body):
        choice = next((c for form in forms if (c := _named(form, titles)) is not None), None)
        if choice is not None:
            listed.append(titles[choice])
            order += [choice] if choice not in order else []
        elif is_entry:
            listed.append(forms[-1])
            invented.append(forms[-1])
    return Answer(text, tuple(order), reason, tuple(listed), tuple(invented))


def _split_reason(text: str) -> tuple[str, str | None]:
    lines = text.splitlines()
    for n, line in enumerate(lines):
        if found := _REASON.match(line):
            reason = " ".join(" ".join([line[found.end() :], *lines[n + 1 :]]).split())
            return "\n".join(lines[:n]), reason or None
    return text, None


def _entries(body: str) -> Iterator[tuple[list[str], bool]]:
    """Lines as they are and without list markers one by one, and whether there are any; or a JSON array's strings."""
    for found in _ARRAY.finditer(body):
        try:
            values = json.loads(found[0])
        except json.JSONDecodeError:
            continue
        if values and all(isinstance(v, str) for v in values):
            yield from (([v], True) for v in values)
            return
    for line in body.splitlines():
        forms = [line.strip()]
        while (bare := _MARKER.sub("", forms[-1]).strip()) != forms[-1]:
            forms.append(bare)
        if forms[-1]:
            yield forms, len(forms) > 1


def _named(entry: str, titles: Sequence[str]) -> int | None:
    """Index of the title that an entry names: as a whole, inside emphasis or quotes, or before a remark."""
    forms = [entry, *(found[1] for pattern in (_EMPHASIS, _QUOTED) if (found := pattern.match(entry)))]
    forms += [entry[: found.start()] for found in reversed(list(_BREAK.finditer(entry)))]
    for form in forms:
        if normalise_title(form) and (choice := valid_choice(form, titles)) is not None:
            return choice
    return None

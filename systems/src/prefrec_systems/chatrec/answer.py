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
_BREAK = re.compile(r"\s+[-–—|(]|:\s+(?=(?P<remark>.*))")
_REASON = re.compile(r"^\W*reason(?:ing|s)?\W*:\W*", re.IGNORECASE)
_THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
_JSON = json.JSONDecoder()


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
    emphasis, quotes and a remark after a dash, bar or bracket may surround it, or after a colon, where the remark has
    a word in small letters that a subtitle would not have. A JSON array of titles is read as well. A title
    counts where it is named first. What follows "Reason:" is not read for titles, nor is what a reasoning model
    thinks before `</think>`.
    """
    body, reason = _split_reason(_THOUGHT.sub("", text))
    order: list[int] = []
    listed, invented = [], []
    for forms, is_entry in _entries(body):
        choice = _named(forms, titles)
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
    """Lines, or the strings of a JSON array: each as it is and without list markers one by one, and whether it is one
    of a list.
    """
    if values := _array(body):
        yield from ((_without_markers(v), True) for v in values)
        return
    for line in body.splitlines():
        forms = _without_markers(line)
        if forms[-1]:
            yield forms, len(forms) > 1


def _array(body: str) -> list[str]:
    """The first JSON array of strings; empty where there is none."""
    for found in re.finditer(r"\[", body):
        try:
            values, _ = _JSON.raw_decode(body, found.start())
        except (ValueError, RecursionError):
            continue
        if values and all(isinstance(v, str) for v in values):
            return values
    return []


def _without_markers(entry: str) -> list[str]:
    """The entry, then with one list marker less each; emphasis that begins with the marker goes with it."""
    forms = [entry.strip()]
    while True:
        bare = entry = forms[-1]
        if found := _EMPHASIS.match(entry):
            bare = found[1] + entry[found.end() :]
        bare = _MARKER.sub("", bare if _MARKER.match(bare) else entry).strip()
        if bare == entry:
            return forms
        forms.append(bare)


def _named(forms: Sequence[str], titles: Sequence[str]) -> int | None:
    """Index of the title that an entry names: as a whole, inside emphasis or quotes, or before a remark."""
    for read in (_whole, _before_remarks):
        for title in (title for form in forms for title in read(form)):
            if normalise_title(title) and (choice := valid_choice(title, titles)) is not None:
                return choice
    return None


def _whole(form: str) -> list[str]:
    return [form, *(found[1] for pattern in (_EMPHASIS, _QUOTED) if (found := pattern.match(form)))]


def _before_remarks(form: str) -> list[str]:
    breaks = [b for b in _BREAK.finditer(form) if b["remark"] is None or _is_sentence(b["remark"])]
    return [form[: found.start()] for found in reversed(breaks)]


def _is_sentence(remark: str) -> bool:
    """Whether it has a word in small letters, of four at least: subtitles write short ones so ("of", "the")."""
    return any(len(word) > 3 and word[0].islower() for word in re.findall(r"\w+", remark))

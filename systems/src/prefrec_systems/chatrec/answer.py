"""Parse the order of titles, and the reason for it, from a language model's text."""

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
    """A parsed answer of a language model.

    Attributes:
        text: the whole answer.
        order: indices of the shown titles in the answer's list, best first; empty if none could be parsed.
        reason: the reason that the answer gives, or None.
        listed: entries of the answer's list: the title that an entry names, or the entry itself if it names none.
        invented: entries that name none of the shown titles.
    """

    text: str
    order: tuple[int, ...]
    reason: str | None
    listed: tuple[str, ...]
    invented: tuple[str, ...]


def read_answer(text: str, titles: Sequence[str]) -> Answer:
    """Return the order in which a text lists titles.

    Args:
        text: answer of a chat model.
        titles: titles of the items that the model was shown.

    A line names a title if the whole line does, after `prefrec.prompts.answers.normalise_title`. List markers,
    emphasis and quotes may surround the title. A remark may follow after a dash, bar, bracket or colon; after a
    colon, it must have a word in lower case, which distinguishes it from a subtitle. A JSON array of titles is
    parsed, too.

    Only the first mention of a title counts. Text after "Reason:", or before `</think>` of a reasoning model, is not
    searched for titles.
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
        if match := _REASON.match(line):
            reason = " ".join(" ".join([line[match.end() :], *lines[n + 1 :]]).split())
            return "\n".join(lines[:n]), reason or None
    return text, None


def _entries(body: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the forms of each line, or of each string of a JSON array, and whether it is an entry of a list.

    The forms are the text itself, then the text with its list markers removed one by one.
    """
    if values := _array(body):
        yield from ((_without_markers(v), True) for v in values)
        return
    for line in body.splitlines():
        forms = _without_markers(line)
        if forms[-1]:
            yield forms, len(forms) > 1


def _array(body: str) -> list[str]:
    """Return the first JSON array of strings, or an empty list."""
    for bracket in re.finditer(r"\[", body):
        try:
            values, _ = _JSON.raw_decode(body, bracket.start())
        except (ValueError, RecursionError):
            continue
        if values and all(isinstance(v, str) for v in values):
            return values
    return []


def _without_markers(entry: str) -> list[str]:
    """Return the entry, then the entry with its list markers removed one by one, with emphasis around a marker."""
    forms = [entry.strip()]
    while True:
        bare = entry = forms[-1]
        if emphasis := _EMPHASIS.match(entry):
            bare = emphasis[1] + entry[emphasis.end() :]
        bare = _MARKER.sub("", bare if _MARKER.match(bare) else entry).strip()
        if bare == entry:
            return forms
        forms.append(bare)


def _named(forms: Sequence[str], titles: Sequence[str]) -> int | None:
    """Return the index of the title that an entry names, as a whole, in emphasis or quotes, or before a remark."""
    for read in (_whole, _before_remarks):
        for title in (title for form in forms for title in read(form)):
            if normalise_title(title) and (choice := valid_choice(title, titles)) is not None:
                return choice
    return None


def _whole(form: str) -> list[str]:
    return [form, *(match[1] for pattern in (_EMPHASIS, _QUOTED) if (match := pattern.match(form)))]


def _before_remarks(form: str) -> list[str]:
    breaks = [b for b in _BREAK.finditer(form) if b["remark"] is None or _is_sentence(b["remark"])]
    return [form[: b.start()] for b in reversed(breaks)]  # longest title first


def _is_sentence(remark: str) -> bool:
    """Return True if a word of at least four letters is in lower case; in subtitles only short ones are ("of")."""
    return any(len(word) > 3 and word[0].islower() for word in re.findall(r"\w+", remark))

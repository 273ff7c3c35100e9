"""Matching of generated answers to titles, with the one normalisation that evaluation and rankers share."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_QUOTES = "\"'`“”‘’„‚«»‹›"
_TRAILING = ".,;:"


def normalise_title(text: str) -> str:
    """Return `text` in NFKC and casefolded, with single spaces and without outer quotes and final .,;:.

    "!", "?" and brackets stay, because titles end in them. A title of dropped characters only is kept whole.
    """
    plain = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
    trimmed = plain
    while (shorter := trimmed.strip(_QUOTES + " ").rstrip(_TRAILING + " ")) != trimmed:
        trimmed = shorter
    return trimmed or plain


def valid_choice(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Return the index of the candidate that `text` names, or None if it names none or more than one.

    A title that equals the text exactly is preferred, so that "Air" and "AIR" in one list stay distinct. Otherwise
    the normalised forms are compared.
    """
    verbatim = [i for i, title in enumerate(candidate_titles) if title.strip() == text.strip()]
    if len(verbatim) == 1:
        return verbatim[0]
    wanted = normalise_title(text)
    same = [i for i, title in enumerate(candidate_titles) if normalise_title(title) == wanted]
    return same[0] if wanted and len(same) == 1 else None

"""Which title an answer in text names: the one normalisation that evaluation and rankers compare titles by."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_QUOTES = "\"'`“”‘’„‚«»‹›"
_TRAILING = ".,;:"


def normalise_title(text: str) -> str:
    """`text` as it is compared: NFKC, casefolded, white space collapsed, outer quotes and final .,;: dropped.

    "!" and "?" stay, since titles end in them, and so do brackets ("(1997)", "(Series, #1)"). A title that
    consists of the dropped characters only is kept whole.
    """
    plain = " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).split())
    trimmed = plain
    while (shorter := trimmed.strip(_QUOTES + " ").rstrip(_TRAILING + " ")) != trimmed:
        trimmed = shorter
    return trimmed or plain


def valid_choice(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Index of the candidate that `text` names, or None where it names none, or more than one.

    A title that equals the text as it stands comes first, so that "Air" and "AIR" in one list stay apart;
    otherwise the normalised forms are compared. Two candidates that match alike are ambiguous: None.
    """
    verbatim = [i for i, title in enumerate(candidate_titles) if title.strip() == text.strip()]
    if len(verbatim) == 1:
        return verbatim[0]
    wanted = normalise_title(text)
    same = [i for i, title in enumerate(candidate_titles) if normalise_title(title) == wanted]
    return same[0] if wanted and len(same) == 1 else None

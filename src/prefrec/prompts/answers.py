"""Match generated answers to titles, with the normalisation that evaluation and rankers share."""

from __future__ import annotations

from collections.abc import Sequence

from prefrec.data.titles import normal_title

_QUOTES = "\"'`“”‘’„‚«»‹›"


def normalise_title(text: str) -> str:
    """Normalise a title: NFKC, casefolded, single spaces, no outer quotes and no final .,;:.

    "!", "?" and brackets stay, because titles end in them. A title that consists only of such characters is kept.
    """
    plain = trimmed = normal_title(text)
    while (shorter := trimmed.strip(_QUOTES + " ").rstrip(".,;: ")) != trimmed:
        trimmed = shorter
    return trimmed or plain


def valid_choice(text: str, candidate_titles: Sequence[str]) -> int | None:
    """Return the index of the candidate that `text` names, or None if it names none or more than one.

    An exact match takes precedence over a match of normalised forms, so that "Air" and "AIR" stay distinct.
    """
    verbatim = [i for i, title in enumerate(candidate_titles) if title.strip() == text.strip()]
    if len(verbatim) == 1:
        return verbatim[0]
    wanted = normalise_title(text)
    same = [i for i, title in enumerate(candidate_titles) if normalise_title(title) == wanted]
    return same[0] if wanted and len(same) == 1 else None

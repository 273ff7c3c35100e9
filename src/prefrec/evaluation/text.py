"""What counts as a valid generated answer, and whether it is a hit.

**Valid** means: the generated text is exactly one of the candidates' titles, after `normalise_title` on both
sides. The whole text is compared with whole titles, never a part: "It" is not "It Happened One Night", and an
answer that goes on after the title is invalid. An invalid answer is a miss (as in the S-DPO paper's HR@1),
and the Valid Ratio is the share of valid answers.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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


@dataclass(frozen=True)
class TextOutcome:
    """What generated answers came to.

    Attributes:
        choice: [B] index of the chosen candidate, -1 where the answer is invalid.
        valid: [B] 1 where the answer is one of the candidates' titles; its mean is the Valid Ratio.
        hit: [B] 1 where it is the target's title; its mean is HR@1 by generation.
    """

    choice: NDArray[np.int64]
    valid: NDArray[np.float64]
    hit: NDArray[np.float64]


def judge_texts(
    texts: Sequence[str],
    candidate_titles: Sequence[Sequence[str]],
    target_index: Sequence[int] | NDArray[np.int64],
) -> TextOutcome:
    """The outcome of B generated `texts`, given each row's candidate titles and the target's place there."""
    if not len(texts) == len(candidate_titles) == len(target_index):
        raise ValueError(
            f"expected one text a row, got {len(texts)} texts, {len(candidate_titles)} lists, "
            f"{len(target_index)} targets"
        )
    choices = [valid_choice(t, titles) for t, titles in zip(texts, candidate_titles, strict=True)]
    choice = np.array([-1 if c is None else c for c in choices], dtype=np.int64)
    hit = choice == np.asarray(target_index, dtype=np.int64)
    return TextOutcome(choice=choice, valid=(choice >= 0).astype(np.float64), hit=hit.astype(np.float64))

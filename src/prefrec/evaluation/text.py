"""Validity and hits of generated answers.

An answer is **valid** if it is exactly one of the candidates' titles, after `normalise_title` on both sides. The
whole text is compared with whole titles: "It" is not "It Happened One Night", and an answer that continues after the
title is invalid. An invalid answer is a miss (as in the S-DPO paper's HR@1). The Valid Ratio is the share of valid
answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefrec.prompts.answers import normalise_title, valid_choice

__all__ = ["TextOutcome", "judge_texts", "normalise_title", "valid_choice"]


@dataclass(frozen=True)
class TextOutcome:
    """The result of generated answers.

    Attributes:
        choice: [B] index of the chosen candidate, -1 if the answer is invalid.
        valid: [B] 1 if the answer is one of the candidates' titles; its mean is the Valid Ratio.
        hit: [B] 1 if it is the target's title; its mean is HR@1 by generation.
    """

    choice: NDArray[np.int64]
    valid: NDArray[np.float64]
    hit: NDArray[np.float64]


def judge_texts(
    texts: Sequence[str],
    candidate_titles: Sequence[Sequence[str]],
    target_index: Sequence[int] | NDArray[np.int64],
) -> TextOutcome:
    """Return the outcome of B generated `texts`, given each row's candidate titles and the target's index."""
    if not len(texts) == len(candidate_titles) == len(target_index):
        raise ValueError(
            f"expected one text per row, got {len(texts)} texts, {len(candidate_titles)} lists, "
            f"{len(target_index)} targets"
        )
    choices = [valid_choice(t, titles) for t, titles in zip(texts, candidate_titles, strict=True)]
    choice = np.array([-1 if c is None else c for c in choices], dtype=np.int64)
    hit = choice == np.asarray(target_index, dtype=np.int64)
    return TextOutcome(choice=choice, valid=(choice >= 0).astype(np.float64), hit=hit.astype(np.float64))

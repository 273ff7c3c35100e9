"""TALLRec as a ranker: one question a candidate, ranked by P(Yes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data import Catalogue, RankingExample
from prefrec.rankers.lm import LMRanker, load_lm
from prefrec.rankers.reference import pad_scores
from prefrec.rankers.tallrec.prompts import LikeTemplate, encode_question
from prefrec.rankers.tallrec.questions import Opinions, Question, history_of

QUESTIONS_AT_A_TIME = 64
"""Three lists of 20 candidates, and less than `MAX_TOKENS_PER_PASS`: a question is short."""


class TallrecRanker:
    """Ranks candidates by the probability that the answer is Yes and not No, end token included.

    P(Yes) = exp(l_Yes) / (exp(l_Yes) + exp(l_No)), with l the log-probability of an answer after the question
    about one candidate. It does not answer in text: its answer would be Yes or No, not a title.

    Args:
        lm: model, tokenizer, catalogue and name; its template is a `LikeTemplate`.
        opinions: which items of the histories were disliked.
    """

    def __init__(self, lm: LMRanker, opinions: Opinions) -> None:
        if not isinstance(lm.template, LikeTemplate):
            raise TypeError(f"TALLRec asks by a LikeTemplate, got {type(lm.template).__name__}")
        self.name = lm.name
        self.lm = lm
        self.template = lm.template
        self.opinions = opinions

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """P(Yes) of the candidates, [B, C]; −inf where a row has fewer candidates."""
        sets = [
            encode_question(Question(history, candidate), self.lm.catalogue, self.template, self.lm.encoder)
            for example in examples
            for history in [history_of(example, self.opinions)]
            for candidate in example.candidates
        ]
        logps = self.lm.score_sets(sets).reshape(-1, 2)
        yes = 1 / (1 + np.exp(np.clip(logps[:, 1] - logps[:, 0], -700, 700)))
        ends = list(accumulate(len(e.candidates) for e in examples))
        return pad_scores([yes[end - len(e.candidates) : end] for e, end in zip(examples, ends, strict=True)])


def load_tallrec(
    name: str,
    base: str,
    adapter: Path,
    catalogue: Catalogue,
    template: LikeTemplate,
    opinions: Opinions,
    *,
    loading: Mapping[str, Any] | None = None,
    batch_size: int = QUESTIONS_AT_A_TIME,
    **settings: Any,
) -> TallrecRanker:
    """The ranker of a trained adapter, on a GPU if there is one.

    Args:
        name: in the tables.
        base: a name for `prefrec.models.load_model`.
        adapter: folder of the adapter that was tuned on `tallrec_dataset`.
        catalogue: titles of all items.
        template: that it was tuned with.
        opinions: which items of the histories were disliked.
        loading: arguments of `prefrec.models.load_model`; None: bfloat16.
        batch_size: questions a batch.
        **settings: further arguments of `LMRanker`.

    Raises:
        ModelError: base or adapter cannot be found or read.
    """
    model, tokenizer = load_lm(base, adapter, **(loading or {}))
    return TallrecRanker(
        LMRanker(name, model, tokenizer, catalogue, template, batch_size=batch_size, **settings), opinions
    )

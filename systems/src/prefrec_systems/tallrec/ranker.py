"""TALLRec as a ranker: one question per candidate, ranked by P(Yes)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec import processes
from prefrec.console import track
from prefrec.data import Catalogue, Query
from prefrec.prompts import ChoiceSet
from prefrec.rankers.catalogue import CatalogueRanker
from prefrec.rankers.lm import LMRanker, load_lm
from prefrec.rankers.matrices import pad_scores
from prefrec_systems.tallrec.prompts import LikeTemplate, encode_question
from prefrec_systems.tallrec.questions import Opinions, Question, history_of


class TallrecRanker:
    """Ranks candidates by the probability of Yes against No, end token included.

    P(Yes) = exp(l_Yes) / (exp(l_Yes) + exp(l_No)), where l is the log-probability of an answer to the question about
    one candidate. The questions of an example begin with the same history. They are scored as a trie that branches
    where the titles differ, so that shared tokens are processed once. There is no `generate`, because answers are not
    titles.

    Args:
        lm: model, tokenizer, catalogue and name, with a `LikeTemplate`.
        opinions: disliked items.
    """

    def __init__(self, lm: LMRanker, opinions: Opinions) -> None:
        if not isinstance(lm.template, LikeTemplate):
            raise TypeError(f"TALLRec needs a LikeTemplate, got {type(lm.template).__name__}")
        self.name = lm.name
        self.lm = lm
        self.template = lm.template
        self.opinions = opinions
        self._tries = CatalogueRanker(lm)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return P(Yes) [B, C] of the candidates; −inf in empty columns."""
        share = processes.share(range(len(queries)))
        scored = [(i, self._yes(queries[i])) for i in track(share, f"{self.name}: scoring")]
        yes = dict(processes.pool(scored))
        return pad_scores([yes[i] for i in range(len(queries))])

    def _yes(self, query: Query) -> NDArray[np.float64]:
        history = history_of(query, self.opinions)
        questions = [
            encode_question(Question(history, c), self.lm.catalogue, self.template, self.lm.encoder)
            for c in query.candidates
        ]
        logps = [self._tries.logps(part) for part in together(questions)]
        yes, no = np.concatenate(logps).astype(np.float64).reshape(-1, 2).T
        return 1 / (1 + np.exp(np.clip(no - yes, -700, 700)))  # exp overflows beyond 709


def together(questions: Sequence[ChoiceSet]) -> Sequence[ChoiceSet]:
    """Return one choice set for all questions: the common prefix as prompt, then the rest of each with its answers.

    What the answers of a question have in common cancels in their comparison. Questions without a common prefix are
    returned unchanged, because a model needs a prompt.
    """
    columns = zip(*(q.prompt for q in questions), strict=False)
    prompt = tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, columns))
    if not prompt:
        return questions
    rests = [(q.prompt[len(prompt) :], q.answers) for q in questions]
    return [ChoiceSet(prompt, tuple(rest + a for rest, answers in rests for a in answers))]


def load_tallrec(
    name: str,
    base: str,
    adapter: Path,
    catalogue: Catalogue,
    template: LikeTemplate,
    opinions: Opinions,
    *,
    loading: Mapping[str, Any] | None = None,
    **settings: Any,
) -> TallrecRanker:
    """Return the ranker of a trained adapter, on a GPU if there is one.

    Args:
        name: name in tables.
        base: name of the base model.
        adapter: folder of the adapter, trained on `tallrec_dataset`.
        catalogue: all items.
        template: template that it was trained with.
        opinions: disliked items.
        loading: arguments of `prefrec.lm.models.load_model`.
        **settings: other arguments of `LMRanker`.

    Raises:
        ModelError: base or adapter cannot be found or read.
    """
    model, tokenizer = load_lm(base, adapter, **(loading or {}))
    # Answers are Yes and No, and not titles of the catalogue.
    lm = LMRanker(name, model, tokenizer, catalogue, template, objective="tokens", **settings)
    return TallrecRanker(lm, opinions)

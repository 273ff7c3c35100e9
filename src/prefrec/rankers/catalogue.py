"""A language model that is asked about the whole catalogue: the prompt shows the history and no candidates."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from prefrec import processes
from prefrec.console import track, warn
from prefrec.data import RankingExample
from prefrec.lm.catalogue import BLOCK_TOKENS, TrieLayout, catalogue_logps, trie_layout
from prefrec.lm.search import TopK, sample, top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.rankers.lm import LMRanker

Method = Literal["auto", "exact", "search"]
"""`exact` scores every title, `search` looks for the best ones; `auto` takes `exact` up to `EXACT_NODES`."""

EXACT_NODES = 1 << 14
"""Inner nodes of a trie that `auto` still reads whole: the catalogue of MovieLens-100K has less than half of it."""


@dataclass(frozen=True)
class Recommendation:
    """The best items for one history, best first.

    Attributes:
        item_ids: [≤ K] their ids; of items with the same score the first in the catalogue's order.
        logps: [≤ K] log-probabilities of their titles.
        proven: no item that is left out scores higher.
        method: how they were found, `exact` or `search`.
    """

    item_ids: list[str]
    logps: NDArray[np.float32]
    proven: bool
    method: Literal["exact", "search"]


class CatalogueRanker:
    """Ranks items by the log-probability of their titles after a prompt that shows the history alone.

    It takes lists of any length: titles are scored as a trie. With all items as candidates
    (`prefrec.evaluation.whole_catalogue`) its place in the table is that of a full ranking.

    Args:
        lm: model, tokenizer, catalogue, template and name.
        block_tokens: trie nodes a call.
    """

    def __init__(self, lm: LMRanker, *, block_tokens: int = BLOCK_TOKENS) -> None:
        self.name = lm.name
        self.lm = lm
        self.block_tokens = block_tokens
        self._layout: TrieLayout | None = None
        self._trie: tuple[tuple[tuple[int, ...], ...], Trie] | None = None

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Log-probabilities [B, C] of the candidates' titles; −inf where a row has fewer candidates."""
        out = np.full((len(examples), max((len(e.candidates) for e in examples), default=0)), -np.inf)
        mine = track(processes.share(range(len(examples))), f"{self.name}: scoring")
        found = [(i, self.logps(self._encode(examples[i].history, examples[i].candidates))) for i in mine]
        for i, logps in processes.pool(found):
            out[i, : len(logps)] = logps
        return out

    def logps(self, choices: ChoiceSet) -> NDArray[np.float32]:
        """Return log-probabilities [C] of the answers of one question that is already encoded, read as a trie.

        Within a catalogue its whole trie is read, whichever of its titles are asked about.
        """
        trie = self._trie_of(choices)
        logps = self._exact(choices.prompt, trie)
        within = self.lm.within
        if within is None:
            return logps
        by_node = dict(zip(trie.terminals.tolist(), logps.tolist(), strict=True))
        return np.array([by_node[within.terminal(a)] for a in choices.answers], dtype=np.float32)

    def recommend(
        self,
        history: Sequence[str],
        k: int,
        *,
        without: Collection[str] = (),
        method: Method = "auto",
        max_calls: int | None = None,
    ) -> Recommendation:
        """The k best items of the catalogue for a history.

        Args:
            history: item ids, oldest first.
            k: number of items, at least 1.
            without: ids of items to leave out, such as those that the user has seen.
            method: see `Method`.
            max_calls: of the model in a search, which may then end unproven.

        Raises:
            ValueError: k is less than 1.
            DataError: an id of the history is not in the catalogue.
            TokenizerError: the prompt does not fit.
            ModelError: a log-probability is no finite number.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        ids = self.lm.catalogue.ids
        choices = self._encode(history, ids)
        trie = self._trie_of(choices)
        gone = set(without)
        left_out = np.array([i for i, item in enumerate(ids) if item in gone], dtype=np.int64)
        searched = method == "search" or (method == "auto" and len(trie.inner) > EXACT_NODES)
        if searched:
            layout = self._layout_for(choices.prompt, trie)
            best = top_k(
                self.lm.model,
                choices.prompt,
                trie,
                k,
                without=left_out,
                layout=layout,
                max_calls=max_calls,
                within=self.lm.within,
            )
        else:
            best = _best(self._exact(choices.prompt, trie), k, left_out)
        return Recommendation(
            [ids[i] for i in best.items], best.logps, best.proven, "search" if searched else "exact"
        )

    def sample(
        self, history: Sequence[str], k: int, rng: np.random.Generator, *, without: Collection[str] = ()
    ) -> list[str]:
        """Draw k items of the catalogue without replacement, in proportion to their probabilities after a history.

        Args:
            history: item ids, oldest first.
            k: number of items; fewer come back where fewer are left.
            rng: of the draws.
            without: ids of items that are not drawn.
        """
        ids = self.lm.catalogue.ids
        choices = self._encode(history, ids)
        trie = self._trie_of(choices)
        left_out = [i for i, item in enumerate(ids) if item in without]
        layout = self._layout_for(choices.prompt, trie)
        drawn = sample(
            self.lm.model, choices.prompt, trie, k, rng, without=left_out, layout=layout, within=self.lm.within
        )
        return [ids[i] for i in drawn]

    def _encode(self, history: Sequence[str], candidates: Sequence[str]) -> ChoiceSet:
        titles = self.lm.catalogue.titles_of
        return self.lm.encoder.encode(self.lm.template, titles(history), (), titles(candidates))

    def _trie_of(self, choices: ChoiceSet) -> Trie:
        """The trie of the answers, or of the catalogue that they are scored in; kept for the next question."""
        if self.lm.within is not None:
            return self.lm.within.trie
        if self._trie is None or self._trie[0] != choices.answers:
            self._trie = choices.answers, Trie.build(choices.answers)
        return self._trie[1]

    def _exact(self, prompt: Sequence[int], trie: Trie) -> NDArray[np.float32]:
        layout = self._layout_for(prompt, trie)
        return catalogue_logps(
            self.lm.model, prompt, trie, layout=layout, block_tokens=self.block_tokens, within=self.lm.within
        )

    def _layout_for(self, prompt: Sequence[int], trie: Trie) -> TrieLayout:
        """Settled on the first question; said where it is not the fastest."""
        if self._layout is None:
            self._layout, reason = trie_layout(self.lm.model, prompt, trie)
            if self._layout != "cached":
                warn(f"{self.name}: a trie is read in the slower layout `{self._layout}`: {escape(reason)}")
        return self._layout


def _best(logps: NDArray[np.float32], k: int, left_out: NDArray[np.int64]) -> TopK:
    """The k best of all scores."""
    order = np.argsort(-logps, kind="stable")
    best = order[~np.isin(order, left_out)][:k]
    return TopK(best, logps[best], proven=True, calls=0)

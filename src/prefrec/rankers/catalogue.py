"""Full ranking by a language model: the prompt shows the history and no candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from threading import Lock
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape

from prefrec import processes
from prefrec.console import track, warn
from prefrec.data import Query
from prefrec.lm.attention import compute_dtype
from prefrec.lm.catalogue import TrieLayout, TrieReader, catalogue_logps, trie_layout, trie_reader
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.scoring import language_model
from prefrec.lm.search import TopK, rescored, sample, top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.rankers.base import Recommendation
from prefrec.rankers.lm import LMRanker
from prefrec.rankers.matrices import best_items, pad_scores

Method = Literal["auto", "exact", "search"]
"""`exact` scores every title, `search` finds the best ones; `auto` is `exact` up to `EXACT_NODES`."""
EXACT_NODES = 1 << 14
"""Most inner nodes of a trie that `auto` scores completely; MovieLens-100K has less than half as many."""
SPARE = 10
"""Items beyond the k best that are scored again in 16 bits, where rounding may have ranked a top item too low."""
# Threads with simultaneous first requests choose the layout once.
_CHOOSING = Lock()


class CatalogueRanker:
    """Ranks items by the log-probability of their titles after a prompt with only the history.

    Titles are scored as a trie, so there can be any number of candidates.
    """

    def __init__(self, lm: LMRanker) -> None:
        self.name = lm.name
        self.lm = lm
        self._layout: TrieLayout | None = None
        self._trie: tuple[tuple[tuple[int, ...], ...], Trie] | None = None

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates' titles; −inf in empty columns."""
        if self.lm.has_items:
            return self.lm.score(queries)
        share = track(processes.share(range(len(queries))), f"{self.name}: scoring")
        scored = [(i, self.logps(self.lm.choices_after(queries[i].history, queries[i].candidates))) for i in share]
        by_row = dict(processes.pool(scored))
        return pad_scores([by_row[i] for i in range(len(queries))])

    def logps(self, choices: ChoiceSet) -> NDArray[np.float32]:
        """Return log-probabilities [C] of the answers of one encoded example, scored as a trie.

        With the objective `catalogue`, all titles of the catalogue are scored, whatever the answers are.
        """
        trie, within = self._trie_of(choices), self.lm.within
        layout = self._layout_for(choices.prompt, trie)
        logps = catalogue_logps(self.lm.model, choices.prompt, trie, layout=layout, within=within)
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
        logps: NDArray[np.float32] | None = None,
    ) -> Recommendation:
        """Return the k best items of the catalogue for a history.

        Args:
            history: item ids, oldest first.
            k: number of items.
            without: ids of items to exclude, such as those that the user has seen.
            method: see `Method`.
            max_calls: most calls of the model in a search; the result may then not be exact. Default: no limit.
            logps: [I] result of `LMRanker.item_logps` for this history. Default: compute it for item-ID tokens.

        Raises:
            DataError: an id of the history is not in the catalogue.
            TokenizerError: the prompt does not fit.
            ModelError: a log-probability is not finite.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        ids = self.lm.catalogue.ids
        logps = next(self.lm.item_logps([history])) if logps is None else logps
        if logps is not None:
            items = best_items(logps, k, self._indices(without))
            return Recommendation([ids[i] for i in items], logps[items], True, "exact")
        prompt, trie, excluded = self._request(history, without)
        layout = self._layout_for(prompt, trie)
        model = self.lm.model
        within = self.lm.within
        # In 16 bits, find a few more items and score all again, in calls that do not depend on the method.
        is_rounded = compute_dtype(language_model(model), self.lm.scorer.device) != torch.float32
        most = k + SPARE if is_rounded else k
        is_search = method == "search" or (method == "auto" and len(trie.inner) > EXACT_NODES)
        if is_search:
            best = top_k(
                model, prompt, trie, most, without=excluded, layout=layout, max_calls=max_calls, within=within
            )
        else:
            logps = catalogue_logps(model, prompt, trie, layout=layout, within=within)
            items = best_items(logps, most, excluded)
            best = TopK(items, logps[items], exact=True, calls=0)
        if is_rounded:
            best = rescored(trie_reader(model, prompt, trie, layout, within), best)
        item_ids = [ids[i] for i in best.items[:k]]
        return Recommendation(item_ids, best.logps[:k], best.exact, "search" if is_search else "exact")

    def sample(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        rngs: Iterable[np.random.Generator],
        without: Iterable[Collection[str]],
    ) -> Iterator[list[str]]:
        """Sample items for each history without replacement, in proportion to their probabilities.

        Args:
            histories: item ids, oldest first.
            k: number of items per history; fewer if fewer are left.
            rngs: a generator per history.
            without: ids of items to exclude, per history.

        Errors are those of `recommend`.
        """
        for history, rng, excluded_items, logps in zip(
            histories, rngs, without, self.lm.item_logps(histories), strict=True
        ):
            if logps is not None:  # Gumbel top-k is such a sample
                items = best_items(logps + rng.gumbel(size=len(logps)), k, self._indices(excluded_items))
            else:
                reader, excluded = self.reader(history, excluded_items)
                items = sample(reader, k, rng, without=excluded)
            yield [self.lm.catalogue.ids[i] for i in items]

    def reader(self, history: Sequence[str], without: Collection[str] = ()) -> tuple[TrieReader, list[int]]:
        """Return a new reader of all titles after a history, and the indices of the items to exclude."""
        prompt, trie, excluded = self._request(history, without)
        layout = self._layout_for(prompt, trie)
        return trie_reader(self.lm.model, prompt, trie, layout, self.lm.within), excluded

    def _request(self, history: Sequence[str], without: Collection[str]) -> tuple[tuple[int, ...], Trie, list[int]]:
        """Return the prompt, the trie of all titles, and the indices of the items to exclude."""
        ids, within = self.lm.catalogue.ids, self.lm.within
        # How much history fits depends only on the longest title, and the objective `catalogue` already has the trie.
        choices = self.lm.choices_after(history, ids if within is None else [ids[self._longest]])
        return choices.prompt, self._trie_of(choices), self._indices(without)

    def _indices(self, items: Collection[str]) -> list[int]:
        index = self.lm.catalogue.index
        return [index[item] for item in {*items} if item in index]

    @cached_property
    def _longest(self) -> int:
        trie = cast(CatalogueSoftmax, self.lm.within).trie
        return int(trie.depths[trie.terminals].argmax())

    def _trie_of(self, choices: ChoiceSet) -> Trie:
        """Return the trie of the answers, or of all titles (objective `catalogue`), and keep it for the next call."""
        if self.lm.within is not None:
            return self.lm.within.trie
        kept = self._trie
        if kept is None or kept[0] != choices.answers:
            # A local name, because another thread may store the trie of other answers meanwhile.
            kept = self._trie = choices.answers, Trie.build(choices.answers)
        return kept[1]

    def _layout_for(self, prompt: Sequence[int], trie: Trie) -> TrieLayout:
        """Return the layout, chosen for the first request with a warning if it is not the fastest one."""
        with _CHOOSING:
            if self._layout is None:
                self._layout, reason = trie_layout(self.lm.model, prompt, trie)
                if self._layout != "cached":
                    warn(f"{self.name}: scoring the trie in the slower layout `{self._layout}`: {escape(reason)}")
            return self._layout

"""A language model that ranks the whole catalogue: the prompt shows the history and no candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from threading import Lock
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.markup import escape

from prefrec import processes
from prefrec.console import track, warn
from prefrec.data import RankingExample
from prefrec.lm.attention import compute_dtype
from prefrec.lm.catalogue import TrieLayout, catalogue_logps, check_finite, trie_layout
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.items import item_table, next_item_logps, padded_length
from prefrec.lm.scoring import language_model
from prefrec.lm.search import TopK, rescored, sample, top_k
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.rankers.lm import LMRanker
from prefrec.rankers.matrices import pad_scores

Method = Literal["auto", "exact", "search"]
"""`exact` scores every title, `search` looks for the best ones; `auto` is `exact` up to `EXACT_NODES`."""
EXACT_NODES = 1 << 14
"""Inner nodes of a trie that `auto` still reads whole; MovieLens-100K has less than half of them."""
SHARED = 32
"""Histories of item tokens that may share a call; more gain nothing on a CPU."""
SPARE = 10
"""Items beyond the k best that are scored again in 16 bits: rounding may have put the best too low."""
# Threads that ask their first question together choose the layout once.
_CHOOSING = Lock()


@dataclass(frozen=True)
class Recommendation:
    """The best items for one history, best first; those with the same score are in the catalogue's order."""

    item_ids: list[str]  # [≤ K]
    logps: NDArray[np.float32]  # [≤ K] log-probabilities of their titles
    exact: bool  # True if no item that is left out scores higher
    method: Literal["exact", "search"]


class CatalogueRanker:
    """Ranks items by the log-probability of their titles after a prompt that shows the history alone.

    Titles are scored as a trie, so lists may have any length.
    """

    def __init__(self, lm: LMRanker) -> None:
        self.name = lm.name
        self.lm = lm
        self._layout: TrieLayout | None = None
        self._trie: tuple[tuple[tuple[int, ...], ...], Trie] | None = None

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return log-probabilities [B, C] of the candidates' titles; −inf if a row has fewer candidates."""
        mine = processes.share(range(len(examples)))
        known = self.item_logps([examples[i].history for i in mine])
        scored = []
        for i, row in zip(track(mine, f"{self.name}: scoring"), known, strict=True):
            shown, listed = examples[i].history, examples[i].candidates
            own = self.logps(self._encode(shown, listed)) if row is None else row[[self._places[c] for c in listed]]
            scored.append((i, own))
        by_row = dict(processes.pool(scored))
        return pad_scores([by_row[i] for i in range(len(examples))])

    def logps(self, choices: ChoiceSet) -> NDArray[np.float32]:
        """Return log-probabilities [C] of the answers of one encoded question, read as a trie.

        With the objective `catalogue` the whole catalogue is read, whichever titles are asked about.
        """
        trie, within = self._trie_of(choices), self.lm.within
        layout = self._layout_for(choices.prompt, trie)
        logps = catalogue_logps(self.lm.model, choices.prompt, trie, layout=layout, within=within)
        if within is None:
            return logps
        by_node = dict(zip(trie.terminals.tolist(), logps.tolist(), strict=True))
        return np.array([by_node[within.terminal(a)] for a in choices.answers], dtype=np.float32)

    @property
    def has_items(self) -> bool:
        """True if items are tokens: one call scores all items after several histories."""
        return self.lm.within is not None and item_table(language_model(self.lm.model)) is not None

    def item_logps(self, histories: Sequence[Sequence[str]]) -> Iterator[NDArray[np.float32] | None]:
        """Yield the log-probabilities [I] of all items after each history; None where items are not tokens.

        Histories of similar length share calls. Errors are those of `recommend`.
        """
        if not self.has_items:
            yield from [None] * len(histories)
            return
        for start in range(0, len(histories), SHARED):
            prompts = [self._encode(h, self.lm.catalogue.ids[:1]).prompt for h in histories[start : start + SHARED]]
            lengths = [padded_length(prompt) for prompt in prompts]
            rows: dict[int, NDArray[np.float32]] = {}
            # Only histories of one padded length share a call, so that nobody's score depends on another's length.
            for _, alike in groupby(np.argsort(lengths, kind="stable").tolist(), lengths.__getitem__):
                call = list(alike)
                logps = next_item_logps(self.lm.model, [prompts[i] for i in call]).cpu().numpy()
                check_finite("the catalogue's items", logps)
                rows.update(zip(call, logps, strict=True))
            yield from (rows[i] for i in range(len(prompts)))

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
        """Return the k best items of the catalogue for a history of item ids, oldest first.

        Raise DataError if an id of the history is not in the catalogue, TokenizerError if the prompt does not fit,
        ModelError if a log-probability is not a finite number.

        Args:
            without: ids of items to leave out, such as those that the user has seen.
            method: see `Method`.
            max_calls: of the model in a search, whose result may then not be exact.
            logps: what `item_logps` gave for this history; None: it is asked, where items are tokens.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        ids = self.lm.catalogue.ids
        logps = next(self.item_logps([history])) if logps is None else logps
        if logps is not None:
            items = _best(logps, k, self._left_out(without))
            return Recommendation([ids[i] for i in items], logps[items], True, "exact")
        prompt, trie, left_out = self._question(history, without)
        layout, model, within = self._layout_for(prompt, trie), self.lm.model, self.lm.within
        # In 16 bits, a few more are found, and all are scored again in calls that do not depend on the method.
        is_rounded = compute_dtype(language_model(model), self.lm.scorer.device) != torch.float32
        most = k + SPARE if is_rounded else k
        is_search = method == "search" or (method == "auto" and len(trie.inner) > EXACT_NODES)
        if is_search:
            best = top_k(
                model, prompt, trie, most, without=left_out, layout=layout, max_calls=max_calls, within=within
            )
        else:
            logps = catalogue_logps(model, prompt, trie, layout=layout, within=within)
            items = _best(logps, most, left_out)
            best = TopK(items, logps[items], exact=True, calls=0)
        if is_rounded:
            best = rescored(model, prompt, trie, best, layout=layout, within=within)
        found = [ids[i] for i in best.items[:k]]
        return Recommendation(found, best.logps[:k], best.exact, "search" if is_search else "exact")

    def sample(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        rngs: Iterable[np.random.Generator],
        without: Iterable[Collection[str]],
    ) -> Iterator[list[str]]:
        """Sample items after each history without replacement, in proportion to their probabilities.

        Args:
            histories: item ids, oldest first.
            k: number of items per history; fewer if fewer are left.
            rngs: a generator per history.
            without: items to leave out, per history.

        Errors are those of `recommend`.
        """
        for history, rng, own, logps in zip(histories, rngs, without, self.item_logps(histories), strict=True):
            if logps is not None:  # the highest with Gumbel noise are such a sample
                items = _best(logps + rng.gumbel(size=len(logps)), k, self._left_out(own))
            else:
                prompt, trie, left_out = self._question(history, own)
                layout, model, within = self._layout_for(prompt, trie), self.lm.model, self.lm.within
                items = sample(model, prompt, trie, k, rng, without=left_out, layout=layout, within=within)
            yield [self.lm.catalogue.ids[i] for i in items]

    def _encode(self, history: Sequence[str], candidates: Sequence[str]) -> ChoiceSet:
        titles = self.lm.catalogue.titles_of
        return self.lm.encoder.encode(self.lm.template, titles(history), (), titles(candidates))

    def _question(self, history: Sequence[str], without: Collection[str]) -> tuple[tuple[int, ...], Trie, list[int]]:
        """Return the prompt, the trie of all titles, and the indices of the items to leave out."""
        ids, within = self.lm.catalogue.ids, self.lm.within
        # How much history fits depends on the longest title alone, and within the catalogue the trie is known.
        choices = self._encode(history, ids if within is None else [ids[self._longest]])
        return choices.prompt, self._trie_of(choices), self._left_out(without)

    def _left_out(self, without: Collection[str]) -> list[int]:
        return [self._places[item] for item in {*without} if item in self._places]

    @cached_property
    def _longest(self) -> int:
        trie = cast(CatalogueSoftmax, self.lm.within).trie
        return int(trie.depths[trie.terminals].argmax())

    @cached_property
    def _places(self) -> dict[str, int]:
        return {item: place for place, item in enumerate(self.lm.catalogue.ids)}

    def _trie_of(self, choices: ChoiceSet) -> Trie:
        """Return the trie of the answers, or of the whole catalogue for that objective; keep it for the next call."""
        if self.lm.within is not None:
            return self.lm.within.trie
        kept = self._trie
        if kept is None or kept[0] != choices.answers:
            # Bound to a name of this call: another thread may keep other answers' trie meanwhile.
            kept = self._trie = choices.answers, Trie.build(choices.answers)
        return kept[1]

    def _layout_for(self, prompt: Sequence[int], trie: Trie) -> TrieLayout:
        """Choose the layout for the first question, and warn if it is not the fastest."""
        with _CHOOSING:
            if self._layout is None:
                self._layout, reason = trie_layout(self.lm.model, prompt, trie)
                if self._layout != "cached":
                    warn(f"{self.name}: the trie is scored in the slower layout `{self._layout}`: {escape(reason)}")
            return self._layout


def _best(scores: NDArray[np.floating[Any]], k: int, without: Sequence[int]) -> NDArray[np.int64]:
    """Return the places of the k highest scores, those with the same score in their order, without some places."""
    scores = scores.copy()
    scores[without] = -np.inf
    k = min(k, len(scores) - len(without))
    if not k:
        return np.empty(0, dtype=np.int64)
    places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k where some are equal
    return places[np.argsort(-scores[places], kind="stable")][:k]

"""A language model that ranks the whole catalogue: the prompt shows the history and no candidates."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice
from typing import Literal, TypeVar, cast

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
from prefrec.rankers.rows import pad_scores

T = TypeVar("T")
Method = Literal["auto", "exact", "search"]
"""`exact` scores every title, `search` looks for the best ones; `auto` is `exact` up to `EXACT_NODES`."""
EXACT_NODES = 1 << 14
"""Inner nodes of a trie that `auto` still reads whole; MovieLens-100K has less than half of them."""
SHARED, CALL_ROWS = 64, 16
"""Histories of item tokens that are scored together, and in one call: on a CPU, more rows leave its caches."""
SPARE = 10
"""Items beyond the k best that are scored again in 16 bits: rounding may have put the best too low."""


@dataclass(frozen=True)
class Recommendation:
    """The best items for one history, best first; those with the same score are in the catalogue's order."""

    item_ids: list[str]  # [≤ K]
    logps: NDArray[np.float32]  # [≤ K] log-probabilities of their titles
    proven: bool  # True if no item that is left out scores higher
    method: Literal["exact", "search"]
    shortened: bool = False  # True if the oldest items of the history did not fit into the prompt


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
        mine = processes.share([*enumerate(examples)])
        scored = []
        for part in track(in_parts(mine), f"{self.name}: scoring"):
            rows = self._score_part([e for _, e in part])
            scored += [(i, row) for (i, _), row in zip(part, rows, strict=True)]
        by_row = dict(processes.pool(scored))
        return pad_scores([by_row[i] for i in range(len(examples))])

    def _score_part(self, examples: Sequence[RankingExample]) -> list[NDArray[np.float32]]:
        if self.has_items:
            scores = self.item_logps([e.history for e in examples])
            return [row[self._at(e.candidates)] for e, row in zip(examples, scores, strict=True)]
        return [self.logps(self._encode(e.history, e.candidates)) for e in examples]

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

    def item_logps(self, histories: Sequence[Sequence[str]]) -> list[NDArray[np.float32]]:
        """Return the log-probabilities [I] of all items after each history of item ids, where items are tokens.

        Errors are those of `recommend`.
        """
        prompts = [self._encode(history, self.lm.catalogue.ids[:1]).prompt for history in histories]
        rows: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(prompts)
        lengths = [padded_length(prompt) for prompt in prompts]
        # Only histories of one padded length share a call, so that nobody's score depends on another's length.
        for _, alike in groupby(np.argsort(lengths, kind="stable").tolist(), lengths.__getitem__):
            while call := list(islice(alike, CALL_ROWS)):
                logps = next_item_logps(self.lm.model, [prompts[i] for i in call]).cpu().numpy()
                check_finite("the catalogue's items", logps)
                for i, row in zip(call, logps, strict=True):
                    rows[i] = row
        return rows

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
            max_calls: of the model in a search, which may then end unproven.
            logps: what `item_logps` gave for this history; None: it is asked, where items are tokens.
        """
        if k < 1:
            raise ValueError(f"k is at least 1, got {k}")
        ids, prompt, trie, left_out, shortened = self._question(history, without)
        if self.has_items:
            scores = self.item_logps([history])[0] if logps is None else logps
            items = _best(scores, k, left_out)
            return Recommendation([ids[i] for i in items], scores[items], True, "exact", shortened)
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
            scores = catalogue_logps(model, prompt, trie, layout=layout, within=within)
            items = _best(scores, most, left_out)
            best = TopK(items, scores[items], proven=True, calls=0)
        if is_rounded:
            best = rescored(model, prompt, trie, best, layout=layout, within=within)
        found = [ids[i] for i in best.items[:k]]
        how: Literal["exact", "search"] = "search" if is_search else "exact"
        return Recommendation(found, best.logps[:k], best.proven, how, shortened)

    def sample(
        self, history: Sequence[str], k: int, rng: np.random.Generator, *, without: Collection[str] = ()
    ) -> list[str]:
        """Draw k items of the catalogue without replacement, in proportion to their probabilities after a history.

        Arguments are as for `recommend`; fewer items are drawn if fewer are left.
        """
        ids, prompt, trie, left_out, _ = self._question(history, without)
        layout = self._layout_for(prompt, trie)
        drawn = sample(self.lm.model, prompt, trie, k, rng, without=left_out, layout=layout, within=self.lm.within)
        return [ids[i] for i in drawn]

    def _encode(self, history: Sequence[str], candidates: Sequence[str]) -> ChoiceSet:
        return self._fit(history, candidates)[0]

    def _fit(self, history: Sequence[str], candidates: Sequence[str]) -> tuple[ChoiceSet, int]:
        titles = self.lm.catalogue.titles_of
        return self.lm.encoder.fit(self.lm.template, titles(history), (), titles(candidates))

    def _question(
        self, history: Sequence[str], without: Collection[str]
    ) -> tuple[Sequence[str], tuple[int, ...], Trie, list[int], bool]:
        """Return all item ids, the prompt, the trie of all titles, the places of `without`, and `shortened`."""
        ids, within = self.lm.catalogue.ids, self.lm.within
        # How much history fits depends on the longest title alone, and within the catalogue the trie is known.
        choices, dropped = self._fit(history, ids if within is None else [ids[self._longest]])
        left_out = self._at(item for item in {*without} if item in self._places)
        return ids, choices.prompt, self._trie_of(choices), left_out, dropped > 0

    def _at(self, items: Iterable[str]) -> list[int]:
        """Return the places of items in the catalogue."""
        return [self._places[item] for item in items]

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
        if self._trie is None or self._trie[0] != choices.answers:
            self._trie = choices.answers, Trie.build(choices.answers)
        return self._trie[1]

    def _layout_for(self, prompt: Sequence[int], trie: Trie) -> TrieLayout:
        """Choose the layout for the first question, and warn if it is not the fastest."""
        if self._layout is None:
            self._layout, reason = trie_layout(self.lm.model, prompt, trie)
            if self._layout != "cached":
                warn(f"{self.name}: a trie is read in the slower layout `{self._layout}`: {escape(reason)}")
        return self._layout


def in_parts(questions: Sequence[T]) -> list[Sequence[T]]:
    """Return parts of a list that are answered together."""
    return [questions[i : i + SHARED] for i in range(0, len(questions), SHARED)]


def _best(scores: NDArray[np.float32], k: int, without: Sequence[int]) -> NDArray[np.int64]:
    """Return the places of the k highest scores, those with the same score in their order, without some places."""
    scores = scores.copy()
    scores[without] = -np.inf
    k = min(k, len(scores) - len(without))
    if not k:
        return np.empty(0, dtype=np.int64)
    places = np.flatnonzero(scores >= np.partition(scores, -k)[-k])  # more than k where some are equal
    return places[np.argsort(-scores[places], kind="stable")][:k]

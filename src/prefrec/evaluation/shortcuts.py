"""Shortcuts: rules that score candidate sets without knowing the user's taste.

Each function returns scores [B, C] of the candidate sets under test (`EncodedSets`), -inf in empty columns. Some
learn from other candidate sets (`seen`). Docstrings name the published data in which a shortcut works.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import rankdata

from prefrec.data import Catalogue, RankingExample
from prefrec.evaluation.metrics import Floats, expected_hits
from prefrec.rankers.matrices import pad_codes, pad_scores


@dataclass(frozen=True, eq=False)
class EncodedSets:
    """B candidate sets as numbers."""

    codes: NDArray[np.int64]  # [B, C] catalogue index of each candidate, -1 in empty columns
    target: NDArray[np.int64]  # [B] column of the target
    last: NDArray[np.int64]  # [B] catalogue index of the last history item, -1 for an empty history

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of candidates [B] of each set."""
        return (self.codes >= 0).sum(axis=1)

    @property
    def target_codes(self) -> NDArray[np.int64]:
        """Catalogue indices [B] of the targets."""
        return self.codes[np.arange(len(self.codes)), self.target]

    def hits(self, scores: Floats) -> Floats:
        """Return the expected HR@1 [B] of `scores` [B, C]."""
        return expected_hits(scores, self.target)

    def take(self, rows: NDArray[Any]) -> EncodedSets:
        """Return some of the sets, by indices or a mask."""
        return EncodedSets(self.codes[rows], self.target[rows], self.last[rows])

    def masked(self, scores: Floats) -> Floats:
        """Return `scores` [B, C] with -inf in empty columns."""
        return np.where(self.codes < 0, -np.inf, scores)


def encode_sets(examples: Sequence[RankingExample], catalogue: Catalogue) -> EncodedSets:
    """Return the examples' candidate sets as numbers; raise DataError if an item is not in the catalogue."""
    index = catalogue.index
    for e in examples:
        catalogue.titles_of((*e.candidates, *e.history[-1:]))
    target = np.array([e.target_index for e in examples], dtype=np.int64)
    last = np.array([index[e.history[-1]] if e.history else -1 for e in examples], dtype=np.int64)
    return EncodedSets(pad_codes([e.candidates for e in examples], index), target, last)


Rule = Callable[[EncodedSets], Floats]
"""Candidate sets → scores [B, C]."""
HIGH = 0.6
"""Mean place of negatives by popularity above which they are more popular than uniform sampling makes them, 0.5."""
FOLDS = 5
"""Number of folds of targets. A cross-fitted rule learns from the candidate sets of the other folds."""


def cross_fitted(
    lists: EncodedSets, rule: Callable[[EncodedSets, EncodedSets], Floats], rng: np.random.Generator
) -> Floats:
    """Return the scores [B, C] of a rule (sets, seen sets) that learns from the sets under test with other targets.

    The same target may occur for many users, so the sets of other users would reveal it.
    """
    codes = np.unique(lists.target_codes, return_inverse=True)[1]
    fold = (rng.permutation(int(codes.max(initial=0)) + 1) % FOLDS)[codes]
    scores = np.full(lists.codes.shape, -np.inf)
    for inside in (fold == k for k in range(FOLDS)):
        if inside.any():
            scores[inside] = rule(lists.take(inside), lists.take(~inside))
    return scores


def target_position(lists: EncodedSets, seen: EncodedSets) -> Floats:
    """Return P(target at position p | number of candidates), from add-one counts in `seen` sets of that size."""
    width = max(lists.codes.shape[1], seen.codes.shape[1])
    counts = np.zeros((width + 1, width))
    np.add.at(counts, (seen.lengths, seen.target), 1.0)
    return lists.masked(counts[lists.lengths, : lists.codes.shape[1]] + 1.0)


def position_lookup(lists: EncodedSets, seen: EncodedSets) -> Floats:
    """Return P(c at position p | c is the target) = (n(c, p) + 1/C) / (n(c) + 1), counted in the `seen` sets.

    If the target is the seed of the shuffle, a target always has the same position: HR@1 0.55 on the published LastFM
    test examples, learnt from 2,767 validation examples.
    """
    width = max(lists.codes.shape[1], seen.codes.shape[1])
    n_items = 1 + max(lists.codes.max(initial=0), seen.codes.max(initial=0))
    at = sparse.csr_array((np.ones(len(seen.target)), (seen.target_codes, seen.target)), shape=(n_items, width))
    total = np.asarray(at.sum(axis=1)).ravel()
    codes = np.maximum(lists.codes, 0)  # −1 would read the last item; `masked` clears these columns
    counts = at.toarray()[codes, np.arange(codes.shape[1])[None, :]]
    return lists.masked((counts + 1.0 / np.maximum(lists.lengths, 1)[:, None]) / (total[codes] + 1.0))


def list_lookup(lists: EncodedSets, seen: EncodedSets) -> Floats:
    r"""Return the mean overlap of a candidate set with the `seen` sets whose target is c, without that target.

    overlap(c) = Σ_t |L ∩ L_t \ {c}| / n(c), shrunk towards the mean overlap of all pairs with the weight of one set,
    so that a candidate that was never a target is neither favoured nor excluded. If the target is the seed of the
    sampling, each set of that target has the same negatives.
    """
    n_items = 1 + max(lists.codes.max(initial=0), seen.codes.max(initial=0))
    others = np.where(np.arange(seen.codes.shape[1]) == seen.target[:, None], -1, seen.codes)
    b, c = np.nonzero(others >= 0)
    pairs = (seen.target_codes[b], others[b, c])
    together = sparse.csr_array((np.ones(len(b)), pairs), shape=(n_items, n_items))
    times = np.bincount(seen.target_codes, minlength=n_items)[np.maximum(lists.codes, 0)]
    overlap = np.zeros(lists.codes.shape)
    for column in lists.codes.T:
        wanted = np.broadcast_to(column[:, None], lists.codes.shape)
        real = (lists.codes >= 0) & (wanted >= 0)
        overlap[real] += np.asarray(together[lists.codes[real], wanted[real]]).ravel()
    mean = overlap.sum() / max(times[lists.codes >= 0].sum(), 1)
    return lists.masked((overlap + mean) / (times + 1.0))


def next_in_order(lists: EncodedSets, seen: EncodedSets, keys: Floats) -> Floats:
    """Prefer the candidate nearest after (or before) the last history item when items are sorted by `keys` [I].

    The direction is the one that is better on the `seen` sets. NaN keys are never chosen. Histories sorted by artist
    id instead of time give HR@1 0.78 on the published LastFM test examples.
    """

    def following(x: EncodedSets, keys: Floats) -> Floats:
        # Items that are not next get the lowest finite score, because −inf marks empty columns.
        gap = keys[x.codes] - keys[x.last][:, None]
        worst = -np.finfo(np.float64).max
        return x.masked(np.where((gap > 0) & (x.last >= 0)[:, None], -gap, worst))

    return _better(lists, seen, lambda x: following(x, keys), lambda x: following(x, -keys))


def id_keys(catalogue: Catalogue) -> dict[str, Floats]:
    """Return column → keys [I] to sort items by: `item_id`, and other integer columns `…_id`.

    If not all item ids are numbers, the key is the item's index in the catalogue.
    """
    numeric = all(i.isascii() and i.isdigit() for i in catalogue.ids)
    keys = {"item_id": np.array(catalogue.ids if numeric else range(len(catalogue)), dtype=np.float64)}
    for name, dtype in catalogue.frame.schema.items():
        if name.endswith("_id") and dtype.is_integer():
            keys[name] = catalogue.frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy()
    return keys


def title_length(lists: EncodedSets, seen: EncodedSets, catalogue: Catalogue) -> Floats:
    """Prefer the shortest or the longest title in characters, whichever is better on the `seen` sets."""
    lengths = np.array([len(t) for t in catalogue.titles_of(catalogue.ids)], dtype=np.float64)
    return _better(lists, seen, lambda x: x.masked(-lengths[x.codes]), lambda x: x.masked(lengths[x.codes]))


def in_history(examples: Sequence[RankingExample]) -> Floats:
    """Return 1 for candidates in the history of their example, 0 for others."""
    return pad_scores([np.isin(e.candidates, e.history).astype(np.float64) for e in examples])


def favours_popular(lists: EncodedSets, log: pl.DataFrame, catalogue: Catalogue) -> bool:
    """Return whether negatives were sampled by popularity: whether their mean place in the catalogue is above `HIGH`.

    A place is an item's mid-rank by interactions in `log`, from 0 for the rarest item to 1 for the most popular one.
    """
    counts = dict(log.group_by("item_id").len().iter_rows())
    popularity = np.array([counts.get(item, 0) for item in catalogue.ids], dtype=np.float64)
    place = (rankdata(popularity) - 0.5) / max(len(popularity), 1)
    negatives = lists.codes >= 0
    negatives[np.arange(len(lists.target)), lists.target] = False
    return bool(negatives.any()) and float(place[lists.codes[negatives]].mean()) > HIGH


def repeats(train_interactions: pl.DataFrame, window: int) -> NDArray[np.bool_]:
    """Return, for training users with two or more items, whether the last one is among the `window` before it."""
    logs = _sequences(train_interactions)
    return np.array([s[-1] in s[:-1][-window:] for s in logs if len(s) > 1 and window], dtype=np.bool_)


def _better(lists: EncodedSets, seen: EncodedSets, *rules: Rule) -> Floats:
    """Return the scores of `lists` by the rule with the highest HR@1 on `seen`; the first one wins ties."""
    gains = [seen.hits(rule(seen)).mean() if len(seen.target) else 0.0 for rule in rules]
    return rules[int(np.argmax(gains))](lists)


def shuffled_positions(seen: EncodedSets, rng: np.random.Generator) -> EncodedSets:
    """Return `seen` with each target moved to a random position, as a placebo for position rules."""
    rows = np.arange(len(seen.target))
    columns = np.floor(rng.random(len(rows)) * seen.lengths).astype(np.int64)
    codes = seen.codes.copy()
    codes[rows, columns] = seen.target_codes
    codes[rows, seen.target] = seen.codes[rows, columns]
    return replace(seen, codes=codes, target=columns)


def shuffled_sets(seen: EncodedSets, rng: np.random.Generator) -> EncodedSets:
    """Return `seen` with negatives exchanged between sets, as a placebo for list lookup.

    Only sets of equal size exchange negatives. Each keeps its target and the target's position.
    """
    codes = seen.codes.copy()
    for length in np.unique(seen.lengths):
        rows = np.flatnonzero(seen.lengths == length)
        givers = rng.permutation(rows)
        negative = np.arange(length)[None, :] != seen.target[:, None][rows]
        given = np.arange(length)[None, :] != seen.target[:, None][givers]
        block = codes[rows, :length]
        block[negative] = seen.codes[givers, :length][given]
        codes[rows, :length] = block
    return replace(seen, codes=codes)


def common_order(train_interactions: pl.DataFrame, catalogue: Catalogue) -> Floats | None:
    """Return the ranks [I] of the catalogue's items in an order that all histories follow; None if there is none.

    Histories that are sorted by anything but time (an id, a title, a database key) follow one order of all items.
    The next item in this order reveals the target, even if the key itself is not in the data. The published LastFM
    has such an order; MovieLens-100K, the chronological LastFM and Goodreads have none. Neighbours in histories are
    arcs of a graph, which has such an order if it has no cycle. Items without training interactions are NaN.
    """
    index = catalogue.index
    sorter: TopologicalSorter[int] = TopologicalSorter()
    for item in sorted({index[i] for i in train_interactions["item_id"].unique() if i in index}):
        sorter.add(item)
    for before, after in sorted(neighbours(train_interactions, index)):
        if before != after:
            sorter.add(after, before)
    try:
        order = [*sorter.static_order()]
    except CycleError:
        return None
    ranks = np.full(len(index), np.nan)
    ranks[order] = np.arange(len(order))
    return ranks


def agreement(train_interactions: pl.DataFrame, catalogue: Catalogue, ranks: Floats) -> float:
    """Return the share of neighbours in training sequences that follow the order of `ranks` [I]; 0 without any."""
    pairs = neighbours(train_interactions, catalogue.index)
    forward = sum(n for (a, b), n in pairs.items() if ranks[a] < ranks[b])
    return forward / (pairs.total() or 1)


def _sequences(train_interactions: pl.DataFrame) -> list[list[str]]:
    """Return the items of each user, in the order of the log."""
    return train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()


def neighbours(train_interactions: pl.DataFrame, index: dict[str, int]) -> Counter[tuple[int, int]]:
    """Return how often item b comes directly after item a in a user's sequence."""
    counts: Counter[tuple[int, int]] = Counter()
    for items in _sequences(train_interactions):
        counts.update(pairwise(index[i] for i in items if i in index))
    return counts

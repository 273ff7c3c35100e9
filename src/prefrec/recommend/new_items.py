"""Places for new items: items without interactions, which rankers seldom put among the first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefrec.data import PreparedData, Query
from prefrec.rankers.base import ListRanker, Ranker, Recommendation
from prefrec.rankers.baselines import TitleTfidfRanker


class NewItems:
    """The items of a catalogue without interactions in the log that rankers learn, and what ranks them.

    Args:
        data: catalogue and log.
        every: one place in as many goes to a new item where a request does not say; 0: none.
    """

    def __init__(self, data: PreparedData, every: int = 0) -> None:
        self.every = every
        self._data = data

    @cached_property
    def has_log(self) -> bool:
        """False for exported language models, so that nothing is known to be new."""
        return not self._data.known_interactions("test").is_empty()

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of the new items."""
        known = {*self._data.known_interactions("test")["item_id"].unique()}
        return frozenset(item for item in self._data.catalogue.ids if item not in known)

    def ranked_by(self, ranker: Ranker) -> Ranker:
        """Return the ranker for new items alone (`ByTitleIfEqual`)."""
        return ByTitleIfEqual(ranker, self._by_title)

    @cached_property
    def _by_title(self) -> TitleTfidfRanker:
        return TitleTfidfRanker.fit(self._data.catalogue)


class ByTitleIfEqual:
    """A ranker for new items: its own scores, or those of title TF-IDF where it gives all candidates the same.

    Counts do not tell new items apart, and sequential recommenders do not know them. Blends, title towers and
    language models do.
    """

    def __init__(self, ranker: Ranker, by_title: Ranker) -> None:
        self.name = ranker.name
        self._ranker, self._by_title = ranker, by_title
        if isinstance(ranker, ListRanker):
            self.is_of_list = True

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        scores = self._ranker.score(queries)
        is_known = ~np.isneginf(scores)
        highest = np.where(is_known, scores, -np.inf).max(axis=1)
        lowest = np.where(is_known, scores, np.inf).min(axis=1)
        return np.where((highest > lowest)[:, None], scores, self._by_title.score(queries))


def with_new(
    main: Recommendation,
    fresh: Recommendation,
    new: Collection[str],
    *,
    every: int,
    k: int,
    groups: Mapping[str, Any],
    at_most: int,
) -> Recommendation:
    """Return the first k items of a ranking, with at least n new items among the first n × `every`, if there are.

    The place n × `every` goes to the best new item that has none, unless the ranking itself has put n new items
    before. No item comes twice.

    Args:
        main: ranking of all items, of more than k if there are.
        fresh: ranking of new items.
        new: ids of the new items.
        every: one place in as many goes to a new item.
        k: number of items.
        groups: item → group; items without a group are not limited.
        at_most: maximum number of items per group.
    """
    items: list[str] = []
    scores: list[float] = []
    counts: Counter[Any] = Counter()
    taken: set[str] = set()

    def take(rows: Iterator[tuple[str, float]]) -> bool:
        """Add the first of the rows that the rules allow; return False if there is none."""
        for item, score in rows:
            group = groups.get(item)
            if item in taken or (group is not None and counts[group] >= at_most):
                continue
            items.append(item)
            scores.append(score)
            taken.add(item)
            counts[group] += 1
            return True
        return False

    mains = iter(zip(main.item_ids, main.logps.tolist(), strict=True))
    news = iter(zip(fresh.item_ids, fresh.logps.tolist(), strict=True))
    while len(items) < k:
        is_due = (len(items) + 1) // every > len(taken.intersection(new))
        if not (is_due and take(news)) and not take(mains):
            break
    values = np.array(scores, dtype=main.logps.dtype)
    return replace(main, item_ids=items, logps=values, exact=main.exact and fresh.exact)

"""One order of the items that as many training histories as possible agree with.

Histories that are sorted by anything but time (an id, a title, a database key) agree with one common order of
all items; then the next item in that order gives the target away, even where the key itself is not in the
data. Real histories disagree with each other: of neighbours in a log, 54–62% stand in the best common order on
MovieLens-100K, chronological LastFM and Goodreads, and all of them on the published LastFM.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from itertools import pairwise

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue


def common_order(train_interactions: pl.DataFrame, catalogue: Catalogue) -> NDArray[np.float64]:
    """Places [I] of the catalogue's items in the common order of the training users' sequences.

    The sequences' neighbours are the arcs of a graph; an order with few arcs that point backwards is found by
    the greedy rule of Eades, Lin and Smyth (1993): take a node that nothing points to, else the node with the
    largest surplus of leaving over arriving arcs. Items that no training user took are NaN.

    Args:
        train_interactions: `user_id, item_id, timestamp`, in the order of each user's history.
    """
    place = {item: i for i, item in enumerate(catalogue.ids)}
    arcs = _majorities(_neighbours(train_interactions, place))
    order = _remove_greedily(arcs, sorted({place[i] for i in train_interactions["item_id"].unique() if i in place}))
    places = np.full(len(place), np.nan)
    places[order] = np.arange(len(order))
    return places


def agreement(train_interactions: pl.DataFrame, catalogue: Catalogue, places: NDArray[np.float64]) -> float:
    """Share of neighbours in the training sequences that stand in the order `places` [I]; 0 without any."""
    place = {item: i for i, item in enumerate(catalogue.ids)}
    pairs = _neighbours(train_interactions, place)
    total = sum(pairs.values())
    forward = sum(n for (a, b), n in pairs.items() if places[a] < places[b])
    return forward / total if total else 0.0


def _neighbours(train_interactions: pl.DataFrame, place: dict[str, int]) -> Counter[tuple[int, int]]:
    """How often item b comes directly after item a in a user's sequence."""
    sequences = train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"]
    counts: Counter[tuple[int, int]] = Counter()
    for items in sequences.to_list():
        counts.update(pairwise(place[i] for i in items if i in place))
    return counts


def _majorities(pairs: Counter[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Arcs by majority: a → b weighs how much more often b follows a than a follows b."""
    surplus = {(a, b): n - pairs.get((b, a), 0) for (a, b), n in pairs.items() if a != b}
    return {arc: n for arc, n in surplus.items() if n > 0}


def _remove_greedily(arcs: dict[tuple[int, int], int], nodes: list[int]) -> list[int]:
    """The nodes in the order in which the greedy rule takes them; ties go to the smaller node."""
    after: dict[int, dict[int, int]] = {n: {} for n in nodes}
    before: dict[int, dict[int, int]] = {n: {} for n in nodes}
    for (a, b), n in arcs.items():
        after[a][b] = n
        before[b][a] = n
    leaving = {n: sum(after[n].values()) for n in nodes}
    arriving = {n: sum(before[n].values()) for n in nodes}
    free = deque(n for n in nodes if not arriving[n])
    heap = [(arriving[n] - leaving[n], n) for n in nodes]
    heapq.heapify(heap)
    left = set(nodes)
    order = []
    while left:
        node = free.popleft() if free else _largest_surplus(heap, left, leaving, arriving)
        if node not in left:
            continue
        left.remove(node)
        order.append(node)
        for other in left & after[node].keys():
            arriving[other] -= after[node][other]
            heapq.heappush(heap, (arriving[other] - leaving[other], other))
            if not arriving[other]:
                free.append(other)
        for other in left & before[node].keys():
            leaving[other] -= before[node][other]
            heapq.heappush(heap, (arriving[other] - leaving[other], other))
    return order


def _largest_surplus(
    heap: list[tuple[int, int]], left: set[int], leaving: dict[int, int], arriving: dict[int, int]
) -> int:
    """Pop the node with the largest surplus; entries that are out of date are dropped."""
    while True:
        deficit, node = heapq.heappop(heap)
        if node in left and deficit == arriving[node] - leaving[node]:
            return node

"""Chosen and rejected items that a log itself tells of: ratings, and items that were shown and not taken.

Next-item data hold no dislike: a negative is an item that nobody asked the user about. Here the rejected items are
those that the user rated low, or saw and left.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data.types import RankingExample
from prefrec.errors import DataError

RatedBy = Literal["value", "quantile"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Which ratings say that an item was liked or disliked.

    With `by` = `value` these are ratings. With `quantile` they are shares of the user's own ratings: 0.8 means the
    rating that 80% of them do not exceed. That fits counts, which differ between users by orders of magnitude.
    """

    liked: float = 5.0
    disliked: float = 2.0
    by: RatedBy = "value"


@dataclass(frozen=True, slots=True)
class PreferenceQuestion:
    """Some items that a user liked and some that the same user disliked, to be told apart.

    `candidates` are in random order; `liked` says of each whether it was liked.
    """

    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    liked: tuple[bool, ...]

    def example(self) -> RankingExample:
        """Return the question as a ranker reads it; its target is the first item that was liked."""
        target = self.candidates[self.liked.index(True)]
        return RankingExample(self.user_id, self.history, self.candidates, target)


def with_opinions(log: pl.DataFrame, learn: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Return `log` with a column `opinion`: 1 liked, −1 disliked, 0 neither or not rated.

    Args:
        log: interactions, `user_id, item_id, …, rating`.
        learn: training interactions, in which quantiles are taken. A user whose two quantiles are equal, or who has
            no rating there, has no opinions.
        thresholds: see `Thresholds`.

    Raises:
        DataError: the log has no ratings.
    """
    if "rating" not in log.columns or "rating" not in learn.columns:
        raise DataError(
            "rated negatives need ratings, and the log has none; name their column with --columns.rating "
            "(`columns.rating` in a recipe) and prepare the data again"
        )
    if thresholds.by == "value":
        bounded = log.with_columns(high=pl.lit(thresholds.liked), low=pl.lit(thresholds.disliked))
    else:
        shares = {"high": thresholds.liked, "low": thresholds.disliked}
        bounds = learn.group_by("user_id").agg(
            pl.col("rating").quantile(share, "linear").alias(name) for name, share in shares.items()
        )
        bounded = log.join(bounds, on="user_id", how="left", maintain_order="left")
    apart = pl.col("low") < pl.col("high")
    high, low = (pl.col("rating") >= pl.col("high")) & apart, (pl.col("rating") <= pl.col("low")) & apart
    signed = high.fill_null(False).cast(pl.Int8) - low.fill_null(False).cast(pl.Int8)
    return bounded.with_columns(opinion=signed).drop("high", "low")


def rated_rows(
    log: pl.DataFrame,
    negatives: int,
    *,
    earlier: pl.DataFrame | None = None,
    history_length: int = 10,
    min_history: int = 1,
    seed: int = 0,
) -> list[RankingExample]:
    """Return a row for each liked item, with the history before it and items that the same user disliked.

    The disliked ones are drawn from all of the user's in `log`, earlier and later ones. Users with fewer than
    `negatives` of them have no row. Candidates are in random order.

    Args:
        log: of `with_opinions`, each user's interactions in their order.
        negatives: disliked items of each row.
        earlier: interactions before those of `log`, of which only histories are made.
        history_length: items of a history at most.
        min_history: rows with a shorter history are left out.
        seed: of the draws, which depend on it and the user alone.
    """
    rows = []
    for user, before, items, opinions in _sequences(log, "opinion", earlier):
        disliked = [item for item, opinion in zip(items, opinions, strict=True) if opinion < 0]
        rng = _draws(user, seed)
        for place, (item, opinion) in enumerate(zip(items, opinions, strict=True)):
            history = [*before, *items[:place]][-history_length:]
            if opinion > 0 and len(disliked) >= negatives and len(history) >= min_history:
                rows.append(_row(user, history, item, disliked, negatives, rng))
    return rows


def impression_rows(
    log: pl.DataFrame,
    negatives: int,
    *,
    earlier: pl.DataFrame | None = None,
    history_length: int = 10,
    min_history: int = 1,
    seed: int = 0,
) -> list[RankingExample]:
    """Return a row for each item taken where `negatives` others or more were shown then and not taken.

    Items of the history are never rejected: they were taken before. Arguments as for `rated_rows`.

    Raises:
        DataError: the log has no impressions.
    """
    if "impressions" not in log.columns:
        raise DataError(
            "negatives from impressions need items that were shown and not taken, and the log tells of none; name "
            "the column with --columns.impressions or --columns.skipped (`columns` in a recipe) and prepare again"
        )
    rows = []
    for user, before, items, impressions in _sequences(log, "impressions", earlier):
        rng = _draws(user, seed)
        for place, (item, shown) in enumerate(zip(items, impressions, strict=True)):
            past = [*before, *items[:place]]
            left = [i for i in shown or [] if i != item and i not in past]
            if len(left) >= negatives and len(past) >= min_history:
                rows.append(_row(user, past[-history_length:], item, left, negatives, rng))
    return rows


def preference_questions(
    learn: pl.DataFrame,
    held_out: pl.DataFrame,
    users: Collection[str],
    *,
    of_each: int = 4,
    history_length: int = 30,
    seed: int = 0,
) -> list[PreferenceQuestion]:
    """Return one question for each of `users` who both liked and disliked something after the training part.

    Args:
        learn: training interactions, `user_id, item_id, …`; their last items are the history.
        held_out: later interactions, as `with_opinions` gives them.
        users: who is asked about; they come in the order of `held_out`.
        of_each: liked items at most, and disliked ones: those nearest to the history.
        history_length: items of the history at most.
        seed: of the order of candidates.
    """
    found = []
    own = held_out.filter(pl.col("user_id").is_in(list(users)))
    for user, before, items, opinions in _sequences(own, "opinion", learn):
        judged = list(zip(items, opinions, strict=True))
        kinds = [[item for item, opinion in judged if opinion == sign][:of_each] for sign in (1, -1)]
        if all(kinds):
            listed = [(item, liked) for kind, liked in zip(kinds, (True, False), strict=True) for item in kind]
            order = _draws(user, seed).permutation(len(listed)).tolist()
            candidates, liked = zip(*(listed[i] for i in order), strict=True)
            found.append(PreferenceQuestion(user, tuple(before[-history_length:]), candidates, liked))
    return found


def popularity_scores(learn: pl.DataFrame, rows: Sequence[RankingExample]) -> list[list[float]]:
    """Return of each candidate of each row how many users took it in the training part."""
    counts = learn.group_by("item_id").agg(pl.col("user_id").n_unique())
    known = dict(counts.iter_rows())
    return [[float(known.get(i, 0)) for i in e.candidates] for e in rows]


def mean_rating_scores(learn: pl.DataFrame, rows: Sequence[RankingExample], shrink: float = 5.0) -> list[list[float]]:
    """Return of each candidate of each row its mean rating in the training part.

    Means are shrunk to that of all ratings, m: (Σ ratings + shrink·m) / (n + shrink); an item without one has m.
    """
    rated = learn.drop_nulls("rating")
    overall = float(rated["rating"].to_numpy().mean()) if len(rated) else 0.0
    sums = rated.group_by("item_id").agg(pl.col("rating").sum().alias("sum"), pl.len().alias("n"))
    means = {item: (total + shrink * overall) / (n + shrink) for item, total, n in sums.iter_rows()}
    return [[means.get(i, overall) for i in e.candidates] for e in rows]


def _sequences(
    log: pl.DataFrame, column: str, earlier: pl.DataFrame | None
) -> Iterator[tuple[str, list[str], list[str], list[Any]]]:
    """Yield each user with the items before those of `log`, those of `log`, and what `column` says of these."""
    past: dict[str, list[str]] = {}
    if earlier is not None:
        past = dict(earlier.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    for user, items, values in log.group_by("user_id", maintain_order=True).agg("item_id", column).iter_rows():
        yield user, past.get(user, []), items, values


def _row(
    user: str, history: Sequence[str], item: str, rejected: Sequence[str], negatives: int, rng: np.random.Generator
) -> RankingExample:
    """Return a row of one chosen item and `negatives` of the rejected ones, in random order."""
    listed = [item, *(rejected[i] for i in rng.choice(len(rejected), negatives, replace=False).tolist())]
    order: NDArray[np.int64] = rng.permutation(len(listed))
    return RankingExample(user, tuple(history), tuple(listed[i] for i in order.tolist()), item)


def _draws(user: str, seed: int) -> np.random.Generator:
    """Return a generator of a user's own, so that other users do not change what is drawn."""
    return np.random.default_rng((seed, zlib.crc32(user.encode())))

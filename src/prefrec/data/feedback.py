"""Chosen and rejected items from explicit or implicit feedback: items rated low, or shown but not clicked."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import polars as pl

from prefrec.data.query import Query
from prefrec.data.rows import RankingExample
from prefrec.errors import DataError

RatedBy = Literal["value", "quantile"]
Choice = tuple[int, str, list[str]]
"""Position where the history ends, the chosen item, and the rejected items."""
AHEAD = 20
"""Number of interactions after a history from which the liked item and the disliked items come."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Lowest rating of a liked item, and highest rating of a disliked item.

    With `by` = `value` the bounds are ratings. With `quantile` they are quantiles of the user's own ratings. This
    suits play counts, which differ between users by orders of magnitude.
    """

    liked: float = 5.0
    disliked: float = 2.0
    by: RatedBy = "value"


@dataclass(frozen=True, slots=True)
class PreferenceQuestion:
    """Items that a user liked and items that the same user disliked, in random order."""

    user_id: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    liked: tuple[bool, ...]

    def example(self) -> RankingExample:
        """Return the question as a ranking example, whose target is the first liked item."""
        target = self.candidates[self.liked.index(True)]
        return RankingExample(self.user_id, self.history, self.candidates, target)


def with_opinions(log: pl.DataFrame, learn: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Return `log` with a column `opinion`: 1 liked, −1 disliked, 0 neither or not rated.

    A user's quantiles come from the training interactions `learn`. A user with two equal quantiles, or without a
    rating in `learn`, has no opinions. Raise DataError if the log has no ratings.
    """
    if "rating" not in log.columns or "rating" not in learn.columns:
        raise DataError(
            "rated negatives need ratings, but the log has none; name their column with --columns.rating "
            "(`columns.rating` in a recipe) and prepare the data again"
        )
    bounds = {"high": thresholds.liked, "low": thresholds.disliked}
    if thresholds.by == "value":
        bounded = log.with_columns(**{name: pl.lit(bound) for name, bound in bounds.items()})
    else:
        user_bounds = learn.group_by("user_id").agg(
            **{n: pl.col("rating").quantile(b, "linear") for n, b in bounds.items()}
        )
        bounded = log.join(user_bounds, on="user_id", how="left", maintain_order="left")
    rating, high, low = pl.col("rating"), pl.col("high"), pl.col("low")
    liked, disliked = ((c & (low < high)).fill_null(False).cast(pl.Int8) for c in (rating >= high, rating <= low))
    return bounded.with_columns(opinion=liked - disliked).drop("high", "low")


def rejected_rows(
    log: pl.DataFrame,
    by: Literal["rated", "impressions"],
    negatives: int,
    *,
    earlier: pl.DataFrame | None = None,
    history_length: int = 10,
    min_history: int = 1,
    seed: int = 0,
    with_liked: bool = False,
) -> list[RankingExample]:
    """Return one example per chosen item, with rejected items and the history before them.

    Candidates are in random order, which depends only on `seed` and user id.

    Args:
        log: each user's interactions in order; for `rated` the result of `with_opinions`.
        by: `rated`: liked items are chosen, and items that the same user disliked within `AHEAD` interactions are
            rejected; the history ends before both, so the order does not reveal the answer. `impressions`: clicked
            items are chosen, and items shown with them are rejected.
        negatives: maximum number of rejected items per example.
        earlier: earlier interactions, used only in histories.
        history_length: longest history, in items.
        min_history: shortest history, in items.
        seed: random seed of the order of candidates.
        with_liked: `rated`: add the other liked items to the candidates.

    Raises:
        DataError: the log has no impressions.
    """
    if by == "impressions" and "impressions" not in log.columns:
        raise DataError(
            "negatives from impressions need items that were shown but not clicked, but the log has none; name the "
            "column with --columns.impressions or --columns.skipped (`columns.impressions`, `columns.skipped` in a "
            "recipe) and prepare the data again"
        )
    column, choices = ("opinion", partial(_liked, too=with_liked)) if by == "rated" else ("impressions", _clicked)
    rows = []
    for user, before, items, values in _sequences(log, column, earlier):
        rng = _user_rng(user, seed)
        for end, item, others in choices(items, values, max(0, min_history - len(before)), rng):
            past = [*before, *items[:end]]
            rejected = [i for i in dict.fromkeys(others) if i != item and i not in past]
            if rejected and len(past) >= min_history:
                candidates = [item, *(rejected[i] for i in rng.permutation(len(rejected))[:negatives].tolist())]
                shuffled = tuple(candidates[i] for i in rng.permutation(len(candidates)).tolist())
                rows.append(RankingExample(user, tuple(past[-history_length:]), shuffled, item))
    return rows


def _liked(
    items: list[str], opinions: list[int], least: int, rng: np.random.Generator, too: bool = False
) -> Iterator[Choice]:
    """Yield per liked item: where its history ends, the item, and the disliked items among the next `AHEAD` ones.

    With `too`, liked items are added if there are disliked ones. Histories have at least `least` items if the liked
    item has that many predecessors.
    """
    for position in np.flatnonzero(np.array(opinions) > 0).tolist():
        end = max(min(least, position), position - int(rng.integers(AHEAD)))
        block = list(zip(items[end : end + AHEAD], opinions[end : end + AHEAD], strict=True))
        least_opinion = 1 if too and any(opinion < 0 for _, opinion in block) else -1
        yield end, items[position], [item for item, opinion in block if opinion and opinion <= least_opinion]


def _clicked(
    items: list[str], shown: list[list[str] | None], least: int, rng: np.random.Generator
) -> Iterator[Choice]:
    """Yield per clicked item: where its history ends, the item, and the items that were shown with it."""
    for position, (item, others) in enumerate(zip(items, shown, strict=True)):
        yield position, item, others or []


def preference_questions(
    learn: pl.DataFrame,
    held_out: pl.DataFrame,
    users: Collection[str],
    *,
    of_each: int = 4,
    history_length: int = 30,
    seed: int = 0,
) -> list[PreferenceQuestion]:
    """Return one question for each user who both liked and disliked something after the training part.

    Args:
        learn: training interactions; the last ones of a user are the history.
        held_out: later interactions from `with_opinions`; questions have the same order of users.
        users: ids of users.
        of_each: maximum number of liked items, and of disliked items, per question. The earliest are used. An item
            that the user judged several times, as with `repeats: keep`, has the first opinion.
        history_length: longest history, in items.
        seed: random seed of the order of candidates.
    """
    questions = []
    chosen = held_out.filter(pl.col("user_id").is_in(list(users)))
    for user, before, items, opinions in _sequences(chosen, "opinion", learn):
        likes: list[str] = []
        dislikes: list[str] = []
        judged: set[str] = set()
        for item, opinion in zip(items, opinions, strict=True):
            if opinion and item not in judged:
                judged.add(item)
                (likes if opinion > 0 else dislikes).append(item)
        likes, dislikes = likes[:of_each], dislikes[:of_each]
        if likes and dislikes:
            flagged = [*((item, True) for item in likes), *((item, False) for item in dislikes)]
            order = _user_rng(user, seed).permutation(len(flagged)).tolist()
            candidates, liked = zip(*(flagged[i] for i in order), strict=True)
            questions.append(PreferenceQuestion(user, tuple(before[-history_length:]), candidates, liked))
    return questions


def mean_rating_scores(learn: pl.DataFrame, rows: Sequence[Query], shrink: float = 5.0) -> list[list[float]]:
    """Return, per example and candidate, the item's mean rating in training.

    Means are shrunk towards the mean m of all ratings: (Σ ratings + shrink·m) / (n + shrink).
    """
    rated = learn.drop_nulls("rating")
    overall = float(rated["rating"].to_numpy().mean()) if len(rated) else 0.0
    mean = (pl.col("rating").sum() + shrink * overall) / (pl.len() + shrink)
    means = dict(rated.group_by("item_id").agg(mean).iter_rows())
    return [[means.get(i, overall) for i in e.candidates] for e in rows]


def centred_mean_scores(
    learn: pl.DataFrame, rows: Sequence[Query], by: RatedBy = "value", shrink: float = 5.0
) -> list[list[float]]:
    """Return, per example and candidate, the item's mean user-centred rating in training.

    The mean is Σ x / (n + shrink) over the item's n ratings, where x is the rating minus its user's mean rating. With
    `by` = `quantile`, x is the fraction of the user's ratings below it, minus ½. An item without ratings has 0.
    """
    rating = pl.col("rating")
    centred = rating - rating.mean() if by == "value" else (rating.rank("average") - 0.5) / pl.len() - 0.5
    rated = learn.drop_nulls("rating").with_columns(centred=centred.over("user_id"))
    means = dict(rated.group_by("item_id").agg(pl.col("centred").sum() / (pl.len() + shrink)).iter_rows())
    return [[means.get(i, 0.0) for i in e.candidates] for e in rows]


def _sequences(
    log: pl.DataFrame, column: str, earlier: pl.DataFrame | None
) -> Iterator[tuple[str, list[str], list[str], list[Any]]]:
    """Yield per user: the earlier items, the items of `log`, and the values of `column` for the latter."""
    earlier = log.clear() if earlier is None else earlier
    past = dict(earlier.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
    for user, items, values in log.group_by("user_id", maintain_order=True).agg("item_id", column).iter_rows():
        yield user, past.get(user, []), items, values


def _user_rng(user: str, seed: int) -> np.random.Generator:
    """Return a random generator for a user, which does not depend on other users."""
    return np.random.default_rng((seed, zlib.crc32(user.encode())))

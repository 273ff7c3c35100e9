"""Attributes of items, such as category and price, compared with those of the history."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from prefrec.data import Catalogue, Query
from prefrec.errors import ConfigError, did_you_mean
from prefrec.rankers.matrices import blocks, candidate_codes, history_matrix, quick_factor, score_by_rows

Comparison = Literal["same", "near"]
"""`same`: how much of the history has the item's value. `near`: how close its number is to those of the history."""
HALF_LIFE = 10.0
"""Number of history items after which the weight of an item is halved."""
_SEPARATORS = r"\s*[|;]\s*|\s*,\s+"
"""The separators of several values in a text, as in `Comedy|Drama` and `Comedy, Drama`."""


def attribute_name(column: str, comparison: Comparison) -> str:
    """Return the name of an attribute as a part of a blend."""
    return f"{comparison} {column}"


def attribute_ranker(catalogue: Catalogue, column: str, comparison: Comparison) -> SameValueRanker | NearNumberRanker:
    """Return the ranker that compares a column of the catalogue (`check_attribute`)."""
    name = attribute_name(column, comparison)
    values = catalogue.frame.select("item_id", value=column)
    return SameValueRanker.fit(values, name) if comparison == "same" else NearNumberRanker.fit(values, name)


def check_attribute(catalogue: Catalogue, column: str, comparison: Comparison, field: str) -> None:
    """Raise ConfigError if the catalogue has no such column, or its type does not suit the comparison.

    `field` of the recipe names the column.
    """
    schema = catalogue.frame.schema
    if column not in schema:
        raise ConfigError(
            f"{field}: the catalogue has no column {column!r}; it has {', '.join(schema)}"
            f"{did_you_mean(column, [*schema])}"
        )
    kind = schema[column]
    if comparison == "near" and not kind.is_numeric():
        raise ConfigError(f"{field}: near compares numbers, but {column!r} has the type {kind}: write {column}: same")
    if kind.is_nested() and kind != pl.List(pl.String):
        raise ConfigError(
            f"{field}: {column!r} has the type {kind}: store its values as texts, numbers or lists of texts"
        )


@dataclass(eq=False)
class SameValueRanker:
    """Score of candidate c = Σ w_i · cos(i, c) / Σ w_i over the history items i with a value.

    The weight w_i is 2^(−age_i / half_life). The cosine is 1 for items with the same value and 0 for others; that of
    items with several values is |V_i ∩ V_c| / √(|V_i|·|V_c|). So the score is the share of the history with the value
    of c. A candidate without a value gets the mean score of all items with one. A history without values gives 0.
    """

    vectors: sparse.csr_array
    index: dict[str, int]
    name: str
    half_life: float = HALF_LIFE

    @classmethod
    def fit(cls, values: pl.DataFrame, name: str) -> Self:
        """Keep a unit vector [V] for each item with a value.

        Args:
            values: frame `item_id, value`. A value is a text, a number, a truth value or a list of texts.
            name: name of the part.
        """
        kind = values.schema["value"]
        if kind.is_float():
            values = values.with_columns(pl.col("value").fill_nan(None))
        if kind != pl.List(pl.String):
            texts = pl.col("value").cast(pl.String).str.replace_all(_SEPARATORS, "\n")
            values = values.with_columns(value=texts.str.split("\n"))
        pairs = values.explode("value").with_columns(pl.col("value").str.strip_chars())
        pairs = pairs.filter(pl.col("value").str.len_chars() > 0).unique(maintain_order=True)
        items, kinds = (pairs[c].unique(maintain_order=True).to_list() for c in ("item_id", "value"))
        index = {item: n for n, item in enumerate(items)}
        place = {text: n for n, text in enumerate(kinds)}
        rows = [index[i] for i in pairs["item_id"]]
        columns = [place[v] for v in pairs["value"]]
        counts = np.bincount(rows, minlength=len(items))
        cells = (1 / np.sqrt(counts[rows]), (rows, columns))
        return cls(sparse.csr_array(cells, shape=(len(items), len(kinds)), dtype=np.float64), index, name)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        weights = history_matrix([q.history for q in queries], self.index, self.half_life)
        shares = sparse.csr_array(_per_row(weights) @ weights @ self.vectors)
        scores = score_by_rows(shares, lambda block: block @ self._factor, queries, self.index)
        return _with_means(scores, shares @ self._mean, queries, self.index)

    @cached_property
    def _factor(self) -> Any:
        return quick_factor(self.vectors.T.tocsr())

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        return np.asarray(self.vectors.sum(axis=0)) / max(1, len(self.index))


@dataclass(eq=False)
class NearNumberRanker:
    """Score of candidate c = −|x_c − m|, with m = Σ w_i · x_i / Σ w_i over the history items i with a number.

    The weight w_i is 2^(−age_i / half_life). x is the number on a log scale, where zeros count as the smallest number
    above 0; if some number is negative, x is the number itself. A candidate without a number gets the mean score of
    all items with one. A history without numbers gives 0.
    """

    values: NDArray[np.float64]
    index: dict[str, int]
    name: str
    half_life: float = HALF_LIFE

    @classmethod
    def fit(cls, values: pl.DataFrame, name: str) -> Self:
        """Keep the number of each item with one.

        Args:
            values: frame `item_id, value`, of numbers.
            name: name of the part.
        """
        known = values.with_columns(pl.col("value").cast(pl.Float64)).filter(pl.col("value").is_finite())
        numbers = known["value"].to_numpy()
        if len(numbers) and numbers.min() >= 0 and numbers.max() > 0:
            numbers = np.log(np.maximum(numbers, numbers[numbers > 0].min()))
        return cls(numbers, {item: n for n, item in enumerate(known["item_id"])}, name)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        weights = history_matrix([q.history for q in queries], self.index, self.half_life)
        is_known, means = weights.sum(axis=1) > 0, _per_row(weights) @ weights @ self.values
        codes = candidate_codes(queries, self.index)
        numbers = np.append(self.values, [0.0, -np.inf])  # the code -1 of empty columns reads the last value
        scores = np.empty((len(queries), codes.shape[1]))
        for rows in blocks(*scores.shape):
            shown = numbers[codes if len(codes) == 1 else codes[rows]]
            np.abs(shown - means[rows, None], out=scores[rows])
        scores = np.where(np.isinf(scores) | is_known[:, None], -scores, 0.0)
        return _with_means(scores, np.where(is_known, -self._mean_distances(means), 0.0), queries, self.index)

    def _mean_distances(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of |x − m| over all items, for each m [B]."""
        count = max(1, len(self.values))
        ordered = np.sort(self.values)
        below = np.searchsorted(ordered, means)
        sums = np.concatenate([[0.0], np.cumsum(ordered)])
        total: NDArray[np.float64] = (2 * below - len(ordered)) * means - 2 * sums[below] + sums[-1]
        return total / count


def _per_row(weights: sparse.csr_array) -> sparse.dia_array:
    """Return the diagonal matrix [B, B] that makes the sum of each row of weights [B, I] 1, unless it is 0."""
    sums = np.asarray(weights.sum(axis=1))
    return sparse.diags_array(1 / np.where(sums > 0, sums, 1.0))


def _with_means(
    scores: NDArray[np.float64],
    means: NDArray[np.float64],
    queries: Sequence[Query],
    index: dict[str, int],
) -> NDArray[np.float64]:
    """Return scores [B, C] with the mean [B] of a query's row for candidates outside `index`."""
    outside = candidate_codes(queries, index) == len(index)
    return np.where(outside, means[:, None], scores) if outside.any() else scores

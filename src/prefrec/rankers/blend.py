"""Blend rankers and item features by the weights of a conditional logit (`blend_learning`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol, Self
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator

from prefrec.data import PreparedData, Query
from prefrec.data.rows import take
from prefrec.equality import ByValue
from prefrec.errors import ConfigError
from prefrec.rankers.attributes import Comparison, attribute_name, check_attribute
from prefrec.rankers.base import ComposedRanker, Ranker, checked_scores
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.item_features import POPULARITY, TIME, feature_part
from prefrec.rankers.logit import Features, Logit, utility_by_fold
from prefrec.rankers.matrices import top_columns
from prefrec.rankers.own_past import NAMES as OF_PAST
from prefrec.rankers.own_past import PAST, OwnPast

BLEND_FILE = "blend.json"
"""File of the learnt weights, in the folder of the stage."""
RERANKED = 50
"""Number of a blend's best items that title models rerank."""
FOLDS = 4
"""Number of folds of users. A fold is scored with weights learnt on the others, to measure the blend."""


class BlendConfig(RankerConfig):
    """A weighted blend of rankers and item features, with weights learnt on validation examples."""

    kind: Literal["blend"] = "blend"
    name: str = Field("blend", description="Name in tables, and of the ranker's folder.")
    parts: list[str] = Field(
        ["title TF-IDF", "window co-occurrence", "transition graph"],
        min_length=1,
        description="Baselines and earlier rankers to blend. A language model that answers with titles is slow, so "
        f"it only reranks the {RERANKED} best items of the others.",
    )
    attributes: dict[str, Comparison] = Field(
        {},
        description="Columns of the catalogue as further parts. `category: same` is how much of the history has the "
        "item's category, `price: near` how close the item's price is to those of the history.",
    )
    rows: int | None = Field(
        2000, ge=1, description="Learn the weights from at most N validation examples. null: all."
    )
    select: bool = Field(
        False,
        description="Leave out parts that do not help: one by one, as long as the log-likelihood of validation "
        "examples, cross-fitted over users, does not fall by more than a standard error.",
    )

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"parts: a ranker is named twice ({', '.join(self.parts)})")
        for name in (POPULARITY, TIME, PAST):
            if name in self.parts:
                raise ValueError(f"parts: {name!r} is the name of features: give the ranker another name")
        if common := {*self.parts}.intersection(self.attribute_names):
            raise ValueError(f"parts: {common.pop()!r} is the name of an attribute: give the ranker another name")
        return self

    @property
    def attribute_names(self) -> dict[str, tuple[str, Comparison]]:
        """Name of a part → the column that it compares, and how."""
        return {attribute_name(column, how): (column, how) for column, how in self.attributes.items()}

    def needs(self) -> dict[str, list[str]]:
        return {"parts": self.parts}

    def check_data(self, data: PreparedData) -> None:
        if not data.validation:
            raise ConfigError(
                f"rankers.{self.name}: a blend learns its weights on validation examples, and the data have none: "
                "remove this entry, or prepare data with validation examples"
            )
        for column, comparison in self.attributes.items():
            check_attribute(data.catalogue, column, comparison, f"rankers.{self.name}.attributes")


def unit_of(scores: NDArray[np.float64]) -> float | None:
    """Return the mean of the positive scores of a part [B, C]; None if no score is positive, or one is negative."""
    finite = scores[np.isfinite(scores)]
    positive = finite[finite > 0]
    return float(positive.mean()) if len(positive) and finite.min() >= 0 else None


def scaled(scores: NDArray[np.float64], unit: float | None) -> NDArray[np.float32]:
    """Return a part's scores as a feature [B, C]: log1p(score / unit), or the score itself without a unit."""
    is_finite = np.isfinite(scores)
    if unit is None:
        out = scores.astype(np.float32)
    else:
        positive = np.maximum(scores, 0)
        positive /= unit
        out = np.log1p(positive, out=positive).astype(np.float32)
    if not is_finite.all():
        out[~is_finite] = np.nan
    return out


@dataclass(frozen=True, eq=False)
class Weights(ByValue):
    """Units and weights that a blend has learnt.

    Attributes:
        units: part → unit of its scores (`unit_of`), of the parts that are not left out.
        logits: name of the excluded part → weights without it; "" for the whole blend.
        reranked: weights of the blend's utility and of each title model; None without title models.
        folds, reranked_folds: weights of the whole blend and `reranked`, learnt without the users of each fold.
        left_out: part that was left out → what it would add to the log-likelihood of an example, and its standard
            error.
        reranked_without: title model → `reranked` without it, if there are other title models.
    """

    units: dict[str, float | None]
    logits: dict[str, Logit]
    reranked: Logit | None = None
    folds: tuple[Logit, ...] = ()
    reranked_folds: tuple[Logit, ...] = ()
    left_out: dict[str, tuple[float, float]] = field(default_factory=dict)
    reranked_without: dict[str, Logit] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self, dict_factory=_plain)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Return the weights that `to_json` turned into `value`."""
        logits = {name: _logit(v) for name, v in value["logits"].items()}
        reranked = _logit(value["reranked"]) if value["reranked"] else None
        folds, reranked_folds = (tuple(map(_logit, value[name])) for name in ("folds", "reranked_folds"))
        left_out = {part: (gain, error) for part, (gain, error) in value.get("left_out", {}).items()}
        less = {name: _logit(v) for name, v in value.get("reranked_without", {}).items()}
        return cls(dict(value["units"]), logits, reranked, folds, reranked_folds, left_out, less)


class Times(Protocol):
    """Features of items at the time of an example, such as `ItemFeatures`."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the features [F]."""
        ...

    def __call__(self, queries: Sequence[Query]) -> Features:
        """Return the features of the candidates [B, C, F], or [1, C, F] if they are those of all queries."""
        ...


class KeptColumns:
    """Features of one block of queries, for all blends of the same parts that score it one after the other.

    Without them, a blend and its blends without a part would each turn the same scores into features.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all features."""
        self._queries: list[Query] = []
        self._times: list[int | None] = []
        self._columns: dict[str, NDArray[np.float32]] = {}

    def of(self, name: str, queries: Sequence[Query], make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return the features of this name, which are made for the first blend that asks about these queries."""
        asked, times = list(queries), [q.time for q in queries]  # times do not count when queries are compared
        if self._times != times or self._queries != asked:
            self._queries, self._times, self._columns = asked, times, {}
        if name not in self._columns:
            self._columns[name] = make()
        return self._columns[name]


class BlendRanker:
    """Score of a candidate = Σ weight × feature; features are the parts' scores and `time_features`.

    With `past`, items that the user has get the features of `OwnPast` in addition, and all other weights change by an
    amount that is learnt for these items alone.

    Args:
        name: name in tables.
        parts: rankers to blend; those that were left out are not queried.
        times: item features; those that were left out do not count.
        weights: learnt weights.
        excluded: name of a part, `POPULARITY`, `TIME` or `PAST`, to blend without. Default: none.
        out_of_fold: score each user with weights learnt from the other folds.
        past: features of the user's own items, where the data keep repeats.
        kept: features that blends with the same parts, units and item features share in an evaluation, which begins
            with `use_predictions`. Default: none.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[Ranker],
        times: Times,
        weights: Weights,
        excluded: str = "",
        out_of_fold: bool = False,
        past: OwnPast | None = None,
        kept: KeptColumns | None = None,
    ) -> None:
        self.name = name
        asked = weights.units.keys() - {excluded}
        self.parts = [part for part in parts if part.name in asked]
        self.kept: KeptColumns | None = None
        self._offered = kept
        self.times = times
        left_out = {excluded, *weights.left_out}
        self.of_items = [n for n, feature in enumerate(times.names) if feature_part(feature) not in left_out]
        self.weights = weights
        whole = weights.logits[excluded if excluded in weights.logits else ""]
        self.logits = weights.folds if out_of_fold else (whole,)
        self.past = None if excluded == PAST else past

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return utilities [B, C] of the candidates; -inf in empty columns. Raise ModelError if a score is NaN."""
        columns = [self._column(part, queries) for part in self.parts] + self._item_columns(queries)
        shape = len(queries), columns[0].shape[1]
        columns[0] = np.broadcast_to(columns[0], shape)  # a blend without its only part has item features alone
        logits = [first_features(logit, len(columns)) for logit in self.logits]
        is_one = len(logits) == 1
        utility = logits[0].utility_of(columns) if is_one else utilities(logits, joined(columns), queries)
        if self.past is not None:
            self._add_past(utility, columns, queries, self.past)
        return utility

    def _column(self, part: Ranker, queries: Sequence[Query]) -> NDArray[np.float32]:
        """Return a part's scores as a feature [B, C]."""

        def make() -> NDArray[np.float32]:
            return scaled(checked_scores(part, queries), self.weights.units[part.name])

        return self._shared(part.name, queries, make)

    def _item_columns(self, queries: Sequence[Query]) -> list[NDArray[np.float32]]:
        """Return the item features that count, each [B, C] or [1, C]."""
        if not self.of_items:
            return []
        times = self._shared("", queries, lambda: self.times(queries))
        return [times[..., number] for number in self.of_items]

    def _shared(
        self, name: str, queries: Sequence[Query], make: Callable[[], NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        # A server must not keep the features of all requests.
        return self.kept.of(name, queries, make) if self.kept else make()

    def _add_past(
        self,
        utility: NDArray[np.float64],
        features: Sequence[NDArray[np.float32]],
        queries: Sequence[Query],
        past: OwnPast,
    ) -> None:
        """Add to utilities [B, C] what the features of own items, and the other ones of these items, add."""
        rows, columns, own = past.cells(queries)
        others = (np.broadcast_to(feature, utility.shape)[rows, columns] for feature in features)
        more = np.column_stack([own, *others])
        size = len(features)
        per_unit = np.stack([logit.weights[size:] / logit.scale[size:] for logit in self.logits])
        added = (more * per_unit[user_folds(queries, len(self.logits))[rows]]).sum(axis=1)
        utility[rows, columns] += np.nan_to_num(added)  # an empty score has -inf already

    def terms(self, queries: Sequence[Query], item: str) -> dict[str, NDArray[np.float64]]:
        """Return part, `POPULARITY`, `TIME` or `PAST` → its term [B] in the utility of `item`, up to a constant."""
        rows = np.arange(len(queries))
        columns = [q.candidates.index(item) for q in queries]
        units = self.weights.units
        values = [scaled(checked_scores(part, queries)[rows, columns], units[part.name]) for part in self.parts]
        features = self._item_columns(queries)
        values += [feature[rows if len(feature) > 1 else 0, columns] for feature in features]
        part_of = [*(part.name for part in self.parts), *(feature_part(self.times.names[n]) for n in self.of_items)]
        table, size = np.column_stack(values).astype(np.float64), len(part_of)
        per_unit = self.logits[0].weights / self.logits[0].scale
        weighted, terms = table * per_unit[:size], dict[str, NDArray[np.float64]]()
        if self.past is not None:
            own = self.past.of_item(queries, item)
            weighted += own[:, :1] * table * per_unit[size + len(OF_PAST) :]
            terms[PAST] = own @ per_unit[size : size + len(OF_PAST)]
        for name, term in zip(part_of, weighted.T, strict=True):
            terms[name] = terms[name] + term if name in terms else term
        return terms

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on to the parts that can use them."""
        self.kept = self._offered
        if self.kept:
            self.kept.forget()
        for part in self.parts:
            if isinstance(part, ComposedRanker):
                part.use_predictions(answers)


class RerankedBlend:
    """A blend whose `RERANKED` best items are reranked by title models, which are slow.

    With several `logits`, each user is scored by that of the user's fold.
    """

    is_of_list = True

    def __init__(self, blend: BlendRanker, models: Sequence[Ranker], logits: Sequence[Logit]) -> None:
        self.name = blend.name
        self.blend = blend
        self.models = models
        self.logits = logits

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C], where reranked items are above all others; -inf in empty columns."""
        scores = self.blend.score(queries)
        best = best_columns(scores)
        utility = utilities(self.logits, rerank_features(scores, best, self.models, queries), queries)
        real = np.isfinite(utility)
        above = scores.max(axis=1, keepdims=True) + 1
        lifted = above + utility - np.where(real, utility, np.inf).min(axis=1, keepdims=True)
        np.put_along_axis(scores, best, np.where(real, lifted, -np.inf), axis=1)
        return scores

    def terms(self, queries: Sequence[Query], item: str) -> dict[str, NDArray[np.float64]]:
        """Return part → its term [B] in the utility that reranks `item`, up to a constant."""
        per_unit = self.logits[0].weights / self.logits[0].scale
        terms = {name: per_unit[0] * term for name, term in self.blend.terms(queries, item).items()}
        alone = [q.among((item,)) for q in queries]
        models = {m.name: w * checked_scores(m, alone)[:, 0] for m, w in zip(self.models, per_unit[1:], strict=True)}
        return terms | models

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on to the blend."""
        self.blend.use_predictions(answers)


def first_features(logit: Logit, count: int) -> Logit:
    """Return the logit of the first features alone, with their weights."""
    mean, scale, weights, errors = (v[:count] for v in (logit.mean, logit.scale, logit.weights, logit.errors))
    return Logit(logit.names[:count], mean, scale, weights, errors, logit.n)


def with_past(features: Features, queries: Sequence[Query], past: OwnPast) -> Features:
    """Return features [B, C, F + P + F]: the given ones, the past of own items, and the given ones of own items."""
    size = features.shape[2]
    out = np.zeros((2 * size + len(OF_PAST), *features.shape[:2]), dtype=np.float32).transpose(1, 2, 0)
    out[..., :size] = features
    rows, columns, own = past.cells(queries)
    out[rows, columns, size:] = np.hstack([own, features[rows, columns]])
    return out


def user_folds(queries: Sequence[Query], count: int) -> NDArray[np.int64]:
    """Return the fold [B] of each query's user, from 0 to `count` − 1."""
    return folds_of(["-" if q.user_id is None else q.user_id for q in queries], count)


def folds_of(users: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return the fold [U] of each user, from 0 to `count` − 1."""
    return np.array([crc32(user.encode()) % count for user in users], dtype=np.int64)


def utilities(logits: Sequence[Logit], features: Features, queries: Sequence[Query]) -> NDArray[np.float64]:
    """Return utilities [B, C] of features [B, C, F], each query's by the logit of its user's fold."""
    if len(logits) == 1:
        return logits[0].utility(features)
    return utility_by_fold(logits, features, user_folds(queries, len(logits)))


def best_columns(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the columns [B, R] of the `RERANKED` best candidates of each example, in any order."""
    return top_columns(scores, min(RERANKED, scores.shape[1]))


def rerank_features(
    scores: NDArray[np.float64], best: NDArray[np.int64], models: Sequence[Ranker], queries: Sequence[Query]
) -> Features:
    """Return the blend's utility and the models' scores [B, R, 1 + M] of the best candidates; NaN in empty columns.

    Candidates in `best` [B, R] are sorted in place, so that empty columns are at the end. If the blend can score none
    of a query's candidates, all its columns are empty.
    """
    utility = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(~np.isfinite(utility), axis=1, kind="stable")
    best[:] = np.take_along_axis(best, order, axis=1)
    utility = np.take_along_axis(utility, order, axis=1)
    real = np.isfinite(utility)
    rows = np.flatnonzero(real.any(axis=1))
    reranked = []
    for q, columns, is_real in zip(take(queries, rows), best[rows], real[rows], strict=True):
        reranked.append(q.among(tuple(q.candidates[c] for c in columns[is_real])))
    features = np.full((*utility.shape, 1 + len(models)), np.nan, dtype=np.float32)
    features[..., 0] = np.where(real, utility, np.nan)
    for number, model in enumerate(models if reranked else ()):
        values = checked_scores(model, reranked)
        features[rows, : values.shape[1], 1 + number] = np.where(np.isfinite(values), values, np.nan)
    return features


def weights_sentence(name: str, weights: Weights) -> str:
    """Return the weights per standard deviation of the features, with standard errors, in a sentence."""

    def terms(logit: Logit) -> str:
        table = zip(logit.names, logit.weights, logit.errors, strict=True)
        return ", ".join(f"{feature} {weight:+.2f} ± {error:.2f}" for feature, weight, error in table)

    whole = weights.logits[""]
    last = weights.reranked
    more = f"; to rerank the {RERANKED} best, learnt on {last.n:,}: {terms(last)}" if last else ""
    if weights.left_out:
        listed = ", ".join(f"{part} {gain:+.4f} ± {error:.4f}" for part, (gain, error) in weights.left_out.items())
        more += f"; left out, because their gain in log-likelihood is within a standard error: {listed}"
    return f"{name}: weights learnt on {whole.n:,} validation examples: {terms(whole)}{more}"


def joined(columns: Sequence[NDArray[np.float32]]) -> Features:
    """Return features [B, C, F] of columns, each [B, C] or [1, C]."""
    return np.stack(np.broadcast_arrays(*columns)).transpose(1, 2, 0)


def _plain(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in fields}


def _logit(value: Mapping[str, Any]) -> Logit:
    arrays = {name: np.array(value[name], dtype=np.float64) for name in ("mean", "scale", "weights", "errors")}
    return Logit(tuple(value["names"]), **arrays, n=value["n"])

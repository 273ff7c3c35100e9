"""Blend rankers and item features by a conditional logit, learnt on validation examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol, Self
from zlib import crc32

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field, model_validator
from scipy.special import logsumexp

from prefrec.data import PreparedData, RankingExample
from prefrec.data.rows import take
from prefrec.equality import ByValue
from prefrec.errors import ConfigError
from prefrec.rankers.attributes import Comparison, attribute_name, check_attribute
from prefrec.rankers.base import ComposedRanker, Ranker, checked_scores
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.item_features import POPULARITY, TIME, feature_part
from prefrec.rankers.logit import Features, Logit, fit_logit, utility_by_fold
from prefrec.rankers.own_past import NAMES as OF_PAST
from prefrec.rankers.own_past import PAST, OwnPast

BLEND_FILE = "blend.json"
"""File of the learnt weights, in the folder of the stage."""
RERANKED = 50
"""Number of a blend's best items that title models rerank."""
FOLDS = 4
"""Number of folds of users. A fold is scored with weights learnt on the others, to measure the blend."""
RIDGES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Strengths of shrinkage to choose from, in units of examples."""
SELECTED_ON = 500
"""Candidates per example, beside the target, of the likelihoods that select parts and the strength of shrinkage."""


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

    def __call__(self, examples: Sequence[RankingExample]) -> Features:
        """Return the features of the candidates [B, C, F]."""
        ...


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
    ) -> None:
        self.name = name
        kept = weights.units.keys() - {excluded}
        self.parts = [part for part in parts if part.name in kept]
        self.times = times
        left_out = {excluded, *weights.left_out}
        self.of_items = [n for n, feature in enumerate(times.names) if feature_part(feature) not in left_out]
        self.weights = weights
        whole = weights.logits[excluded if excluded in weights.logits else ""]
        self.logits = weights.folds if out_of_fold else (whole,)
        self.past = None if excluded == PAST else past

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return utilities [B, C] of the candidates; -inf in empty columns. Raise ModelError if a score is NaN."""
        columns = [scaled(checked_scores(part, examples), self.weights.units[part.name]) for part in self.parts]
        columns += self._item_columns(examples)
        logits = [first_features(logit, len(columns)) for logit in self.logits]
        is_one = len(logits) == 1
        utility = logits[0].utility_of(columns) if is_one else utilities(logits, _joined(columns), examples)
        if self.past is not None:
            self._add_past(utility, columns, examples, self.past)
        return utility

    def _item_columns(self, examples: Sequence[RankingExample]) -> list[NDArray[np.float32]]:
        """Return the item features that count, [B, C] each."""
        if not self.of_items:
            return []
        times = self.times(examples)
        return [times[..., number] for number in self.of_items]

    def _add_past(
        self,
        utility: NDArray[np.float64],
        features: Sequence[NDArray[np.float32]],
        examples: Sequence[RankingExample],
        past: OwnPast,
    ) -> None:
        """Add to utilities [B, C] what the features of own items, and the other ones [B, C] of these items, add."""
        rows, columns, own = past.cells(examples)
        more = np.column_stack([own, *(feature[rows, columns] for feature in features)])
        size = len(features)
        per_unit = np.stack([logit.weights[size:] / logit.scale[size:] for logit in self.logits])
        added = (more * per_unit[user_folds(examples, len(self.logits))[rows]]).sum(axis=1)
        utility[rows, columns] += np.nan_to_num(added)  # an empty score has -inf already

    def terms(self, examples: Sequence[RankingExample], item: str) -> dict[str, NDArray[np.float64]]:
        """Return part, `POPULARITY`, `TIME` or `PAST` → its term [B] in the utility of `item`, up to a constant."""
        rows = np.arange(len(examples))
        columns = [e.candidates.index(item) for e in examples]
        units = self.weights.units
        values = [scaled(checked_scores(part, examples)[rows, columns], units[part.name]) for part in self.parts]
        values += [feature[rows, columns] for feature in self._item_columns(examples)]
        part_of = [*(part.name for part in self.parts), *(feature_part(self.times.names[n]) for n in self.of_items)]
        table, size = np.column_stack(values).astype(np.float64), len(part_of)
        per_unit = self.logits[0].weights / self.logits[0].scale
        weighted, terms = table * per_unit[:size], dict[str, NDArray[np.float64]]()
        if self.past is not None:
            own = self.past.of_item(examples, item)
            weighted += own[:, :1] * table * per_unit[size + len(OF_PAST) :]
            terms[PAST] = own @ per_unit[size : size + len(OF_PAST)]
        for name, term in zip(part_of, weighted.T, strict=True):
            terms[name] = terms[name] + term if name in terms else term
        return terms

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on to the parts that can use them."""
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

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C], where reranked items are above all others; -inf in empty columns."""
        scores = self.blend.score(examples)
        best = best_columns(scores)
        utility = utilities(self.logits, rerank_features(scores, best, self.models, examples), examples)
        real = np.isfinite(utility)
        above = scores.max(axis=1, keepdims=True) + 1
        lifted = above + utility - np.where(real, utility, np.inf).min(axis=1, keepdims=True)
        np.put_along_axis(scores, best, np.where(real, lifted, -np.inf), axis=1)
        return scores

    def terms(self, examples: Sequence[RankingExample], item: str) -> dict[str, NDArray[np.float64]]:
        """Return part → its term [B] in the utility that reranks `item`, up to a constant."""
        per_unit = self.logits[0].weights / self.logits[0].scale
        terms = {name: per_unit[0] * term for name, term in self.blend.terms(examples, item).items()}
        alone = [replace(e, candidates=(item,), target=item) for e in examples]
        models = {m.name: w * checked_scores(m, alone)[:, 0] for m, w in zip(self.models, per_unit[1:], strict=True)}
        return terms | models

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on to the blend."""
        self.blend.use_predictions(answers)


def first_features(logit: Logit, count: int) -> Logit:
    """Return the logit of the first features alone, with their weights."""
    mean, scale, weights, errors = (v[:count] for v in (logit.mean, logit.scale, logit.weights, logit.errors))
    return Logit(logit.names[:count], mean, scale, weights, errors, logit.n)


def with_past(features: Features, examples: Sequence[RankingExample], past: OwnPast) -> Features:
    """Return features [B, C, F + P + F]: the given ones, the past of own items, and the given ones of own items."""
    size = features.shape[2]
    out = np.zeros((2 * size + len(OF_PAST), *features.shape[:2]), dtype=np.float32).transpose(1, 2, 0)
    out[..., :size] = features
    rows, columns, own = past.cells(examples)
    out[rows, columns, size:] = np.hstack([own, features[rows, columns]])
    return out


def user_folds(examples: Sequence[RankingExample], count: int) -> NDArray[np.int64]:
    """Return the fold [B] of each example's user, from 0 to `count` − 1."""
    return folds_of([e.user_id for e in examples], count)


def folds_of(users: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return the fold [U] of each user, from 0 to `count` − 1."""
    return np.array([crc32(user.encode()) % count for user in users], dtype=np.int64)


def utilities(logits: Sequence[Logit], features: Features, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
    """Return utilities [B, C] of features [B, C, F], each example's by the logit of its user's fold."""
    if len(logits) == 1:
        return logits[0].utility(features)
    return utility_by_fold(logits, features, user_folds(examples, len(logits)))


@dataclass(frozen=True)
class Shrinkage:
    """A penalty that shrinks the weights of a blend to those of its best part alone, the more the fewer examples.

    Without it, a blend of a hundred examples has more weights than they can tell, and loses to its best part. A
    penalty towards 0 would not help: it makes all parts weak, and not the best one strong. The best part and the
    strength are chosen on all examples, also for the weights by fold.

    Attributes:
        ridge: strength of the penalty (`fit_logit`): the greatest of `RIDGES` whose cross-fitted likelihood is within
            a standard error of the highest.
        best_first: places of the features of rankers, the one that is best alone first.
    """

    ridge: float
    best_first: tuple[int, ...]

    @classmethod
    def learnt(
        cls, features: Features, targets: NDArray[np.int64], rankers: int, examples: Sequence[RankingExample]
    ) -> Self:
        """Choose the strength. The first features [B, C, F] are those of the rankers, of which one is the best."""
        features = _sampled_columns(features, targets)
        logps = {n: cross_fitted_logps(_columns(features, [n]), [""], examples).sum() for n in range(rankers)}
        best_first = tuple(sorted(logps, key=logps.__getitem__, reverse=True))
        names = [""] * features.shape[2]
        tried = {ridge: cross_fitted_logps(features, names, examples, cls(ridge, best_first).fit) for ridge in RIDGES}
        highest = max(tried.values(), key=np.sum)
        losses = {ridge: _mean_by_user(highest - logps, examples) for ridge, logps in tried.items()}
        return cls(max(ridge for ridge, (loss, error) in losses.items() if loss <= error), best_first)

    def fit(
        self,
        features: Features,
        targets: NDArray[np.int64],
        names: Sequence[str],
        *,
        start: NDArray[np.float64] | None = None,
    ) -> Logit:
        """Return the weights of features; the best part is the first of `best_first`."""
        best = self.best_first[0]
        towards = np.zeros(features.shape[2])
        towards[best] = fit_logit(_columns(features, [best]), targets, [names[best]]).weights[0]
        return fit_logit(features, targets, names, ridge=self.ridge, towards=towards, start=start)

    def kept(self, kept: Sequence[int]) -> Self:
        """Return the shrinkage of some of the features; without a ranker, the first feature stands for the best."""
        place = {n: at for at, n in enumerate(kept)}
        return replace(self, best_first=tuple(place[n] for n in self.best_first if n in place) or (0,))


class Fit(Protocol):
    """A function that learns weights, such as `fit_logit`."""

    def __call__(
        self,
        features: Features,
        targets: NDArray[np.int64],
        names: Sequence[str],
        *,
        start: NDArray[np.float64] | None = None,
    ) -> Logit:
        """Return the weights of features [B, C, F]."""
        ...


def cross_fitted(
    whole: Logit,
    features: Features,
    targets: NDArray[np.int64],
    examples: Sequence[RankingExample],
    fit: Fit = fit_logit,
) -> tuple[Logit, ...]:
    """Return the weights learnt without the users of each of `FOLDS` folds; 0 if no examples are left."""
    folds = user_folds(examples, FOLDS)
    logits = []
    for number in range(FOLDS):
        others = folds != number
        is_usable = np.isfinite(features[others, targets[others]]).all(axis=1).any()
        without = (
            fit(features[others], targets[others], whole.names, start=whole.weights)
            if is_usable
            else replace(whole, weights=np.zeros_like(whole.weights))
        )
        logits.append(without)
    return tuple(logits)


def best_columns(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the columns [B, R] of the `RERANKED` best candidates of each example, in any order."""
    size = min(RERANKED, scores.shape[1])
    return np.argpartition(-scores, size - 1, axis=1)[:, :size].astype(np.int64)


def rerank_features(
    scores: NDArray[np.float64], best: NDArray[np.int64], models: Sequence[Ranker], examples: Sequence[RankingExample]
) -> Features:
    """Return the blend's utility and the models' scores [B, R, 1 + M] of the best candidates; NaN in empty columns.

    Candidates in `best` [B, R] are sorted in place, so that empty columns are at the end. If the blend can score none
    of an example's candidates, all its columns are empty.
    """
    utility = np.take_along_axis(scores, best, axis=1)
    order = np.argsort(~np.isfinite(utility), axis=1, kind="stable")
    best[:] = np.take_along_axis(best, order, axis=1)
    utility = np.take_along_axis(utility, order, axis=1)
    real = np.isfinite(utility)
    rows = np.flatnonzero(real.any(axis=1))
    reranked = []
    for e, columns, is_real in zip(take(examples, rows), best[rows], real[rows], strict=True):
        listed = tuple(e.candidates[c] for c in columns[is_real])
        reranked.append(replace(e, candidates=listed, target=listed[0]))
    features = np.full((*utility.shape, 1 + len(models)), np.nan, dtype=np.float32)
    features[..., 0] = np.where(real, utility, np.nan)
    for number, model in enumerate(models if reranked else ()):
        values = checked_scores(model, reranked)
        features[rows, : values.shape[1], 1 + number] = np.where(np.isfinite(values), values, np.nan)
    return features


def learn_weights(
    parts: Sequence[Ranker],
    times: Times,
    examples: Sequence[RankingExample],
    *,
    select: bool = False,
    past: OwnPast | None = None,
) -> Weights:
    """Return the weights of a blend, learnt on these examples with all parts, and without each of them.

    Item features are the parts `POPULARITY` and `TIME`. With `select`, parts that do not help are left out
    (`select_parts`). With `past`, own items have features and weights of their own, the part `PAST`.
    """
    scores = {part.name: checked_scores(part, examples) for part in parts}
    units = {name: unit_of(values) for name, values in scores.items()}
    items = times(examples)
    columns = [scaled(values, units[name]) for name, values in scores.items()]
    features = _joined([*columns, *(items[..., number] for number in range(items.shape[2]))])
    names = [*scores, *times.names]
    part_of = [*scores, *map(feature_part, times.names)]
    targets = np.array([e.target_index for e in examples], dtype=np.int64)
    left_out = select_parts(features, targets, part_of, len(scores), examples) if select else {}
    if left_out:
        stay = [n for n, part in enumerate(part_of) if part not in left_out]
        features = _columns(features, stay)
        names, part_of = ([of[n] for n in stay] for of in (names, part_of))
        units = {name: unit for name, unit in units.items() if name not in left_out}
    base = len(names)
    if past is not None:
        features = with_past(features, examples, past)
        names += [*OF_PAST, *(f"own × {name}" for name in names)]
        part_of += [*[PAST] * len(OF_PAST), *part_of]
    shrinkage = Shrinkage.learnt(features, targets, len(units), examples)
    whole = shrinkage.fit(features, targets, names)
    logits = {"": whole}
    kept_parts = dict.fromkeys(part_of)
    for excluded in kept_parts if len(kept_parts) > 1 else ():
        kept = [n for n, part in enumerate(part_of) if part != excluded]
        if excluded == PAST:  # then own items have no weights apart either
            kept = [*range(base)]
        start = whole.weights[kept]
        fit = shrinkage.kept(kept).fit
        logits[excluded] = fit(features[..., kept], targets, [names[n] for n in kept], start=start)
    folds = cross_fitted(whole, features, targets, examples, shrinkage.fit)
    return Weights(units, logits, folds=folds, left_out=left_out)


def select_parts(
    features: Features,
    targets: NDArray[np.int64],
    part_of: Sequence[str],
    rankers: int,
    examples: Sequence[RankingExample],
) -> dict[str, tuple[float, float]]:
    """Return the parts to leave out, by backward elimination → what each adds to an example, and its standard error.

    The part that adds least to the log-likelihood of the examples, per standard error, is left out if that is at most
    one standard error; and so on with the others. Likelihoods are cross-fitted: those of a user are of weights learnt
    from other users. Errors are clustered by user. At least one ranker stays, because item features alone would give
    all users the same answer.

    Args:
        features: [B, C, F], those of the rankers first.
        targets: [B] column of each example's target.
        part_of: [F] name of the part of each feature; item features may share one.
        rankers: number of rankers.
        examples: [B] examples.
    """
    features = _sampled_columns(features, targets)
    kept = list(range(len(part_of)))
    left_out: dict[str, tuple[float, float]] = {}
    logps = cross_fitted_logps(features, part_of, examples)
    while True:
        has_one_ranker = sum(n < rankers for n in kept) == 1
        removable = dict.fromkeys(part_of[n] for n in kept if n >= rankers or not has_one_ranker)
        if not removable:
            break
        without = {part: [n for n in kept if part_of[n] != part] for part in removable}
        less = {
            part: cross_fitted_logps(_columns(features, some), [part_of[n] for n in some], examples)
            for part, some in without.items()
        }
        gains = {part: _mean_by_user(logps - other, examples) for part, other in less.items()}
        weakest = min(gains, key=lambda part: gains[part][0] / max(gains[part][1], 1e-12))
        gain, error = gains[weakest]
        if gain > error:
            break
        left_out[weakest] = gain, error
        kept = without[weakest]
        logps = less[weakest]
    return left_out


def cross_fitted_logps(
    features: Features, names: Sequence[str], examples: Sequence[RankingExample], fit: Fit = fit_logit
) -> NDArray[np.float64]:
    """Return log-probabilities [B] of the first candidates, by weights learnt from the users of other folds.

    An example whose target is ignored has 0.
    """
    targets = np.zeros(len(features), dtype=np.int64)
    logits = cross_fitted(fit(features, targets, names), features, targets, examples, fit)
    utility = utilities(logits, features, examples)
    is_usable = np.isfinite(utility[:, 0])
    return np.where(is_usable, np.where(is_usable, utility[:, 0], 0) - logsumexp(utility, axis=1), 0)


def _sampled_columns(features: Features, targets: NDArray[np.int64]) -> Features:
    """Return features [B, 1 + K, F]: those of the targets, and of at most `SELECTED_ON` random columns."""
    count = features.shape[1]
    columns = np.random.default_rng(0).choice(count, min(SELECTED_ON, count), replace=False)
    out = np.empty((features.shape[2], len(features), 1 + len(columns)), dtype=np.float32).transpose(1, 2, 0)
    out[:, 0] = features[np.arange(len(features)), targets]
    out[:, 1:] = features[:, columns]
    out[:, 1:][targets[:, None] == columns] = np.nan  # so that the target is there once
    return out


def _columns(features: Features, kept: Sequence[int]) -> Features:
    """Return the features of these columns, each contiguous in memory."""
    return np.ascontiguousarray(features.transpose(2, 0, 1)[kept]).transpose(1, 2, 0)


def _mean_by_user(values: NDArray[np.float64], examples: Sequence[RankingExample]) -> tuple[float, float]:
    """Return the mean of values [B], and its standard error over users."""
    _, users = np.unique([e.user_id for e in examples], return_inverse=True)
    mean = float(values.mean())
    sums = np.bincount(users, weights=values - mean)
    return mean, float(np.sqrt((sums**2).sum()) / len(values))


def learn_rerank(blend: BlendRanker, models: Sequence[Ranker], examples: Sequence[RankingExample]) -> Weights:
    """Return the blend's weights with those of title models, learnt on the examples whose target is among the best.

    Without such examples the title models reorder nothing: the blend's own weights are returned.
    """
    scores = blend.score(examples)
    targets = np.array([e.target_index for e in examples], dtype=np.int64)
    best = best_columns(scores)
    # A target that the blend cannot score can be in `best` nevertheless, if other candidates are few.
    is_scored = np.isfinite(scores[np.arange(len(scores)), targets])
    rows = np.flatnonzero((best == targets[:, None]).any(axis=1) & is_scored)
    if not len(rows):
        return blend.weights
    best = best[rows]
    sampled = take(examples, rows)
    features = rerank_features(scores[rows], best, models, sampled)
    columns = (best == targets[rows][:, None]).argmax(axis=1)
    names = ["blend", *(model.name for model in models)]
    whole = fit_logit(features, columns, names)
    without = dict[str, Logit]()
    for excluded in names[1:] if len(models) > 1 else ():
        kept = [n for n, name in enumerate(names) if name != excluded]
        without[excluded] = fit_logit(_columns(features, kept), columns, [names[n] for n in kept])
    folds = cross_fitted(whole, features, columns, sampled)
    return replace(blend.weights, reranked=whole, reranked_folds=folds, reranked_without=without)


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


def _joined(columns: Sequence[NDArray[np.float32]]) -> Features:
    """Return features [B, C, F] of columns [B, C]."""
    return np.stack(columns).transpose(1, 2, 0)


def _plain(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in fields}


def _logit(value: Mapping[str, Any]) -> Logit:
    arrays = {name: np.array(value[name], dtype=np.float64) for name in ("mean", "scale", "weights", "errors")}
    return Logit(tuple(value["names"]), **arrays, n=value["n"])

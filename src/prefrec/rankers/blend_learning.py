"""Learn the weights of a blend: choose its parts, the strength of shrinkage, and the weights by fold of users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.data.rows import take
from prefrec.rankers.base import Ranker, checked_scores
from prefrec.rankers.blend import (
    FOLDS,
    BlendRanker,
    Times,
    Weights,
    best_columns,
    joined,
    rerank_features,
    scaled,
    unit_of,
    user_folds,
    with_past,
)
from prefrec.rankers.item_features import feature_part
from prefrec.rankers.logit import CONVERGED, Choices, Features, Fit, Logit
from prefrec.rankers.own_past import NAMES as OF_PAST
from prefrec.rankers.own_past import PAST, OwnPast

RIDGES = (1.0, 10.0, 100.0, 1000.0, 10_000.0)
"""Strengths of shrinkage to choose from, in units of examples."""
SELECTED_ON = 500
"""Candidates per example, beside the target, of the likelihoods that select parts and the strength of shrinkage."""
ROUGHLY = 1e-4
"""Expected decrease of the loss at which fits end that only select. Their errors are some thousand times as large."""


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
    features = joined([*columns, *(items[..., number] for number in range(items.shape[2]))])
    names = [*scores, *times.names]
    part_of = [*scores, *map(feature_part, times.names)]
    targets = np.array([e.target_index for e in examples], dtype=np.int64)
    left_out = select_parts(features, targets, part_of, len(scores), examples) if select else {}
    if left_out:
        stay = [n for n, part in enumerate(part_of) if part not in left_out]
        features = some_features(features, stay)
        names, part_of = ([of[n] for n in stay] for of in (names, part_of))
        units = {name: unit for name, unit in units.items() if name not in left_out}
    base = len(names)
    if past is not None:
        features = with_past(features, examples, past)
        names += [*OF_PAST, *(f"own × {name}" for name in names)]
        part_of += [*[PAST] * len(OF_PAST), *part_of]
    shrinkage = Shrinkage.learnt(features, targets, len(units), examples)
    choices = Choices.of(features, targets, user_folds(examples, FOLDS), FOLDS)
    whole = shrinkage.fit(choices)
    logits = {"": choices.logit(whole, names)}
    kept_parts = dict.fromkeys(part_of)
    for excluded in kept_parts if len(kept_parts) > 1 else ():
        kept = [n for n, part in enumerate(part_of) if part != excluded]
        if excluded == PAST:  # then own items have no weights apart either
            kept = [*range(base)]
        logits[excluded] = choices.logit(shrinkage.fit(choices, kept, start=whole.weights[kept]), names)
    folds = [choices.logit(fit, names) for fit in shrinkage.fit_without_each_fold(choices, whole)]
    return Weights(units, logits, folds=tuple(folds), left_out=left_out)


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
        choices = _selected_on(features, targets, examples)
        likelihoods = {n: cross_fitted_logps(choices, [n])[0].sum() for n in range(rankers)}
        best_first = tuple(sorted(likelihoods, key=likelihoods.__getitem__, reverse=True))
        alone = _alone(choices, best_first[0])
        tried, start = dict[float, NDArray[np.float64]](), None
        for ridge in RIDGES:
            shrinkage = cls(ridge, best_first)
            whole = shrinkage.fit(choices, start=start, alone=alone[0], converged=ROUGHLY)
            folds = shrinkage.fit_without_each_fold(choices, whole, alone=alone[1:], converged=ROUGHLY)
            tried[ridge], start = choices.logps(folds), whole.weights
        highest = max(tried.values(), key=np.sum)
        losses = {ridge: _mean_by_user(highest - logps, examples) for ridge, logps in tried.items()}
        return cls(max(ridge for ridge, (loss, error) in losses.items() if loss <= error), best_first)

    def fit(
        self,
        choices: Choices,
        kept: Sequence[int] | None = None,
        *,
        start: NDArray[np.float64] | None = None,
        alone: float | None = None,
        converged: float = CONVERGED,
    ) -> Fit:
        """Return the weights of features, by default of all of them.

        Without the best ranker the next one stands for it, and without all rankers the first feature. `alone` is the
        weight of the best one alone, if it is known.
        """
        kept = range(len(choices.mean)) if kept is None else kept
        best = next((n for n in self.best_first if n in kept), kept[0])
        if alone is None:
            alone = choices.fit([best]).weights[0]
        towards = np.where(np.array(kept) == best, alone, 0.0)
        return choices.fit(kept, ridge=self.ridge, towards=towards, start=start, converged=converged)

    def fit_without_each_fold(
        self,
        choices: Choices,
        whole: Fit,
        *,
        alone: Sequence[float] | None = None,
        converged: float = CONVERGED,
    ) -> list[Fit]:
        """Return the weights of all features that are learnt without the users of each fold."""
        best = self.best_first[0]
        weights = _alone(choices, best)[1:] if alone is None else alone
        towards = [np.where(whole.kept == best, weight, 0.0) for weight in weights]
        return choices.fit_without_each_fold(whole, ridge=self.ridge, towards=towards, converged=converged)


def _alone(choices: Choices, feature: int) -> list[float]:
    """Return the weight of a feature alone, learnt on all examples, and without those of each fold."""
    whole = choices.fit([feature])
    return [float(fit.weights[0]) for fit in (whole, *choices.fit_without_each_fold(whole))]


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
    choices = _selected_on(features, targets, examples)
    kept = list(range(len(part_of)))
    left_out: dict[str, tuple[float, float]] = {}
    logps, weights = cross_fitted_logps(choices, kept)
    least = FOLDS * ROUGHLY / len(examples)  # errors below it would be those of where fits end
    while True:
        has_one_ranker = sum(n < rankers for n in kept) == 1
        removable = dict.fromkeys(part_of[n] for n in kept if n >= rankers or not has_one_ranker)
        if not removable:
            break
        without = {part: [n for n in kept if part_of[n] != part] for part in removable}
        less = {
            part: cross_fitted_logps(choices, some, start=weights[np.isin(kept, some)])
            for part, some in without.items()
        }
        gains = dict[str, tuple[float, float]]()
        for part, (other, _) in less.items():
            gain, error = _mean_by_user(logps - other, examples)
            gains[part] = gain, max(error, least)
        weakest = min(gains, key=lambda part: gains[part][0] / gains[part][1])
        gain, error = gains[weakest]
        if gain > error:
            break
        left_out[weakest] = gain, error
        kept = without[weakest]
        logps, weights = less[weakest]
    return left_out


def cross_fitted_logps(
    choices: Choices, kept: Sequence[int], start: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log-probabilities [B] of the targets, by weights of some features learnt from the users of other folds.

    The second value are the weights learnt from all. An example whose target is ignored has 0.
    """
    whole = choices.fit(kept, start=start, converged=ROUGHLY)
    folds = choices.fit_without_each_fold(whole, converged=ROUGHLY)
    return choices.logps(folds), whole.weights


def _selected_on(features: Features, targets: NDArray[np.int64], examples: Sequence[RankingExample]) -> Choices:
    """Return the choices among each target and at most `SELECTED_ON` random columns of [B, C, F]."""
    features = _sampled_columns(features, targets)
    return Choices.of(features, np.zeros(len(features), np.int64), user_folds(examples, FOLDS), FOLDS)


def _sampled_columns(features: Features, targets: NDArray[np.int64]) -> Features:
    """Return features [B, 1 + K, F]: those of the targets, and of at most `SELECTED_ON` random columns."""
    count = features.shape[1]
    columns = np.random.default_rng(0).choice(count, min(SELECTED_ON, count), replace=False)
    out = np.empty((features.shape[2], len(features), 1 + len(columns)), dtype=np.float32).transpose(1, 2, 0)
    out[:, 0] = features[np.arange(len(features)), targets]
    out[:, 1:] = features[:, columns]
    out[:, 1:][targets[:, None] == columns] = np.nan  # so that the target is there once
    return out


def some_features(features: Features, kept: Sequence[int]) -> Features:
    """Return these features of [B, C, F], each contiguous in memory."""
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
    choices = Choices.of(features, columns, user_folds(sampled, FOLDS), FOLDS)
    whole = choices.fit()
    without = dict[str, Logit]()
    for excluded in names[1:] if len(models) > 1 else ():
        kept = [n for n, name in enumerate(names) if name != excluded]
        without[excluded] = choices.logit(choices.fit(kept), names)
    folds = tuple(choices.logit(fit, names) for fit in choices.fit_without_each_fold(whole))
    reranked = choices.logit(whole, names)
    return replace(blend.weights, reranked=reranked, reranked_folds=folds, reranked_without=without)

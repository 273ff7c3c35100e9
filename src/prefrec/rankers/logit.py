"""Conditional logit: weights of features by maximum likelihood of a softmax over each example's candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from prefrec.equality import ByValue

Features = NDArray[np.float32]
"""[B, C, F]; a candidate whose features are not all finite is ignored. Sums over candidates are quick where each
feature is contiguous in memory.
"""
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

MOST_STEPS, CONVERGED = 50, 1e-7
"""Steps of Newton's method, and the expected decrease of the loss at which it ends."""
ROUNDING = 1e-6
"""Share of the loss by which rounding to float32 can raise it. A step that raises it by more is too long."""
CONSTANT = 1e-6
"""Largest standard deviation of a constant feature, as a share of its largest absolute value."""
CELLS = 250_000
"""Most numbers in a block of examples: about what the cache of a core holds."""


@dataclass(frozen=True, eq=False)
class Logit(ByValue):
    """Utility of a candidate = Σ weight × (feature − mean) / scale; probabilities are a softmax over candidates.

    Attributes:
        names: [F] names of the features.
        mean, scale: [F] mean and standard deviation of the features over the training candidates.
        weights: [F] weight per standard deviation of the feature.
        errors: [F] standard errors of the weights, from the Hessian.
        n: number of training examples.
    """

    names: tuple[str, ...]
    mean: Floats
    scale: Floats
    weights: Floats
    errors: Floats
    n: int

    def utility(self, features: Features) -> Floats:
        """Return utilities [B, C] of features [B, C, F]; -inf where there is no candidate."""
        return self.utility_of([features[..., number] for number in range(features.shape[2])])

    def utility_of(self, columns: Sequence[NDArray[np.float32]]) -> Floats:
        """Return utilities [B, C] of the features' columns; -inf where there is no candidate.

        A column is [B, C], or [1, C] if it is the same for all examples, such as the age of each item.
        """
        per_unit = self.weights / self.scale
        utility = np.zeros(np.broadcast_shapes(*(column.shape for column in columns)), dtype=np.float32)
        for column, weight in zip(columns, per_unit.astype(np.float32), strict=True):
            utility += weight * column
        is_real = np.isfinite(utility)
        if not is_real.all():  # otherwise all columns are finite
            is_real[:] = True
            for column in columns:
                is_real &= np.isfinite(column)
        out = np.subtract(utility, self.mean @ per_unit, dtype=np.float64)
        out[~is_real] = -np.inf
        return out


def utility_by_fold(logits: Sequence[Logit], features: Features, folds: Indices) -> Floats:
    """Return utilities [B, C] of features [B, C, F], each example's by the logit of its fold [B]."""
    out = np.empty(features.shape[:2])
    for number, logit in enumerate(logits):
        out[folds == number] = logit.utility(features[folds == number])
    return out


def fit_logit(
    features: Features,
    targets: NDArray[np.integer],
    names: Sequence[str],
    *,
    ridge: float = 1.0,
    towards: Floats | None = None,
) -> Logit:
    """Return the weights that maximise Σ_b log softmax(utility)[b, target] − ridge/2 · |weights − towards|².

    This is a conditional logit (McFadden 1974) whose weights are shrunk, by default to 0. Features are standardised
    over all candidates, so that `ridge` penalises all weights alike. An example whose target is ignored does not
    count.

    Args:
        features: [B, C, F].
        targets: [B] column of each example's target.
        names: [F] names of the features.
        ridge: L2 penalty on the weights, in units of examples.
        towards: [F] weights to which the penalty shrinks. Default: 0.

    Raises:
        ValueError: no example has its target among its candidates.
    """
    choices = Choices.of(features, targets)
    return choices.logit(choices.fit(ridge=ridge, towards=towards), names)


class Fit(NamedTuple):
    """What a fit of `Choices` finds.

    Attributes:
        kept: [F'] places of the features that it has.
        weights: [F'] their weights per standard deviation.
        errors: [F'] standard errors of the weights, from the Hessian.
        n: number of examples.
        by_fold: gradients and Hessians of the loss, without the penalty, of the examples of each fold.
        at: [F'] weights at which `by_fold` was computed: those of the last step but one.
    """

    kept: Indices
    weights: Floats
    errors: Floats
    n: int
    by_fold: _Moments
    at: Floats


class _Moments(NamedTuple):
    """The losses [K], gradients [K, F'] and Hessians [K, F', F'] of the examples of each of K folds."""

    losses: Floats
    gradients: Floats
    hessians: Floats

    def without(self, fold: int | None) -> tuple[float, Floats, Floats]:
        """Return the loss, the gradient [F'] and the Hessian [F', F'] of all folds but one."""
        others = [k for k in range(len(self.losses)) if k != fold]
        return float(self.losses[others].sum()), self.gradients[others].sum(axis=0), self.hessians[others].sum(axis=0)


class _Block(NamedTuple):
    """Some examples of one fold.

    Attributes:
        fold: their fold.
        rows: [b] their places among all examples.
        x: [F, b, C] standardised features of the candidates; 0 of those that are ignored.
        ignored: [b, C] mask of candidates that are ignored; None if there are none.
        gained: [F, b] features of the targets.
    """

    fold: int
    rows: Indices
    x: NDArray[np.float32]
    ignored: NDArray[np.bool_] | None
    gained: Floats

    def probabilities(self, weights: Floats, kept: Indices, x: NDArray[np.float32]) -> tuple[Features, Floats]:
        """Return the probabilities [b, C] of the candidates, and the log-probabilities [b] of the targets."""
        shape = x.shape[1:]
        utility = (weights.astype(np.float32) @ x.reshape(len(x), -1)).reshape(shape)
        if self.ignored is not None:
            utility[self.ignored] = -np.inf
        highest = utility.max(axis=1, keepdims=True)
        utility -= highest
        np.exp(utility, out=utility)
        total = utility.sum(axis=1, keepdims=True)
        utility /= total
        logps = weights @ self.gained[kept] - highest[:, 0] - np.log(total[:, 0], dtype=np.float64)
        return utility, logps


@dataclass(frozen=True, eq=False)
class Choices:
    """Examples from which logits learn, with standardised features, in blocks of the examples of a fold.

    Standardising is done once for the fits of all folds, penalties and selections of features. An example counts if
    all features of its target are finite, also where a fit has only some of them.

    Attributes:
        mean, scale: [F] mean and standard deviation of the features over all candidates that count.
        blocks: the examples that count.
        size: number of all examples B.
        folds: number of folds K.
    """

    mean: Floats
    scale: Floats
    blocks: list[_Block]
    size: int
    folds: int

    @classmethod
    def of(
        cls, features: Features, targets: NDArray[np.integer], fold_of: Indices | None = None, folds: int = 1
    ) -> Self:
        """Standardise features.

        Args:
            features: [B, C, F].
            targets: [B] column of each example's target.
            fold_of: [B] fold of each example. Default: all are of fold 0.
            folds: number of folds.

        Raises:
            ValueError: no example has its target among its candidates.
        """
        real = np.asarray(np.isfinite(features).all(axis=2))
        usable = real[np.arange(len(targets)), targets]
        if not usable.any():
            raise ValueError("no example has its target among its candidates")
        real[~usable] = False
        mean, scale, is_constant = _mean_and_scale(features, real)
        own_fold = np.zeros(len(targets), np.int64) if fold_of is None else fold_of
        blocks = []
        step = max(1, CELLS // (features.shape[1] * features.shape[2]))
        for fold in range(folds):
            of_fold = np.flatnonzero(usable & (own_fold == fold))
            for start in range(0, len(of_fold), step):
                rows = of_fold[start : start + step]
                blocks.append(_block(fold, rows, features, targets, real[rows], mean, scale, is_constant))
        return cls(mean, scale, blocks, len(targets), folds)

    def logit(self, fit: Fit, names: Sequence[str]) -> Logit:
        """Return the logit of a fit; `names` [F] are those of all features."""
        kept = fit.kept
        named = tuple(names[n] for n in kept)
        return Logit(named, self.mean[kept], self.scale[kept], fit.weights, fit.errors, fit.n)

    def fit(
        self,
        kept: Sequence[int] | None = None,
        *,
        ridge: float = 1.0,
        towards: Floats | None = None,
        start: Floats | None = None,
        without: int | None = None,
        converged: float = CONVERGED,
    ) -> Fit:
        """Return the weights that `fit_logit` describes.

        Args:
            kept: places of the features to fit [F'], in ascending order. Default: all.
            ridge: L2 penalty on the weights, in units of examples.
            towards: [F'] weights to which the penalty shrinks. Default: 0.
            start: [F'] initial weights, which save time and change nothing else. Default: 0.
            without: fold whose examples do not count. If no others are left, the weights are those of `towards`.
            converged: expected decrease of the loss at which the steps end.
        """
        places = np.arange(len(self.mean)) if kept is None else np.asarray(kept, dtype=np.int64)
        size = len(places)
        goal = np.zeros(size) if towards is None else np.asarray(towards, dtype=np.float64)
        weights = goal if start is None else np.asarray(start, dtype=np.float64)
        n = sum(len(block.rows) for block in self.blocks if block.fold != without)

        def at(tried: Floats) -> tuple[_Moments, float]:
            moments = self._moments(tried, places, without)
            distance = tried - goal
            return moments, moments.without(without)[0] + float(ridge / 2 * distance @ distance)

        moments, loss = at(weights)
        for _ in range(MOST_STEPS):
            _, gradient, hessian = moments.without(without)
            hessian += ridge * np.eye(size)
            slope = gradient + ridge * (weights - goal)
            step = np.linalg.solve(hessian, slope)
            if slope @ step < converged:
                break
            tried, after = at(weights - step)
            # Far from the minimum, a whole step can be too long.
            while after > loss + ROUNDING * abs(loss) and step @ step > CONVERGED:
                step /= 2
                tried, after = at(weights - step)
            weights, moments, loss = weights - step, tried, after
        else:
            step = np.zeros(size)
        errors = np.sqrt(np.diag(np.linalg.inv(hessian)))
        return Fit(places, weights - step, errors, n, moments, weights)

    def fit_without_each_fold(
        self,
        whole: Fit,
        *,
        ridge: float = 1.0,
        towards: Sequence[Floats] | None = None,
        converged: float = CONVERGED,
    ) -> list[Fit]:
        """Return the weights that are learnt without each fold; `towards` [K, F'] is that of each.

        A first step from the weights of all examples costs nothing: their gradient and Hessian are sums over folds.
        """
        fits = []
        for fold in range(self.folds):
            goal = np.zeros(len(whole.kept)) if towards is None else towards[fold]
            _, gradient, hessian = whole.by_fold.without(fold)
            hessian += ridge * np.eye(len(goal))
            start = whole.at - np.linalg.solve(hessian, gradient + ridge * (whole.at - goal))
            fits.append(
                self.fit(
                    whole.kept.tolist(), ridge=ridge, towards=goal, start=start, without=fold, converged=converged
                )
            )
        return fits

    def logps(self, by_fold: Sequence[Fit]) -> Floats:
        """Return log-probabilities [B] of targets, by the fit of their fold; 0 where an example does not count."""
        out = np.zeros(self.size)
        for block in self.blocks:
            fit = by_fold[block.fold]
            out[block.rows] = block.probabilities(fit.weights, fit.kept, self._kept(block, fit.kept))[1]
        return out

    def _kept(self, block: _Block, kept: Indices) -> NDArray[np.float32]:
        return block.x if len(kept) == len(self.mean) else block.x[kept]

    def _moments(self, weights: Floats, kept: Indices, without: int | None) -> _Moments:
        """Return losses, gradients and Hessians at these weights of all folds but one."""
        size = len(kept)
        sums = _Moments(np.zeros(self.folds), np.zeros((self.folds, size)), np.zeros((self.folds, size, size)))
        for block in self._of_others(without):
            x = self._kept(block, kept)
            shares, logps = block.probabilities(weights, kept, x)
            expected = np.matmul(x.transpose(1, 0, 2), shares[:, :, None])[:, :, 0].T
            centred = x - expected[:, :, None]
            weighted = centred * shares
            # Many small products are twice as quick as one whose sum has all candidates of the block.
            products = np.matmul(weighted.transpose(1, 0, 2), centred.transpose(1, 2, 0))
            sums.losses[block.fold] -= logps.sum()
            sums.gradients[block.fold] += (expected - block.gained[kept]).sum(axis=1)
            sums.hessians[block.fold] += products.sum(axis=0)
        return sums

    def _of_others(self, without: int | None) -> Iterator[_Block]:
        return (block for block in self.blocks if block.fold != without)


def _block(
    fold: int,
    rows: Indices,
    features: Features,
    targets: NDArray[np.integer],
    real: NDArray[np.bool_],
    mean: Floats,
    scale: Floats,
    is_constant: NDArray[np.bool_],
) -> _Block:
    x = np.empty((len(mean), *real.shape), np.float32)
    for number in range(len(mean)):
        if is_constant[number]:
            x[number] = 0
        else:
            centred = features[rows, :, number] - np.float32(mean[number])
            x[number] = np.where(real, centred / np.float32(scale[number]), np.float32(0))
    gained = x[:, np.arange(len(rows)), np.asarray(targets)[rows]].astype(np.float64)
    return _Block(fold, rows, x, None if real.all() else ~real, gained)


def _mean_and_scale(features: Features, real: NDArray[np.bool_]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Return the mean [F] and the scale [F] of the features of real candidates, and which [F] are constant."""
    count, size = real.sum(), features.shape[2]
    mean, scale, is_constant = np.zeros(size), np.ones(size), np.zeros(size, np.bool_)
    for number in range(size):
        own = np.where(real, features[..., number], np.float32(0))
        mean[number] = own.sum(dtype=np.float64) / count
        # The squares of a feature far from 0 would cancel, so they are those of its distance from the mean.
        centred = np.where(real, own - np.float32(mean[number]), np.float32(0))
        variance = np.square(centred).sum(dtype=np.float64) / count
        # A constant feature keeps weight 0. Rounding to float32 varies it by a share of its own size.
        is_constant[number] = variance <= (CONSTANT * float(max(own.max(), -own.min()))) ** 2
        scale[number] = 1.0 if is_constant[number] else np.sqrt(variance)
    return mean, scale, is_constant

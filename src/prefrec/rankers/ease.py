"""EASE: a linear item-to-item model in closed form (Steck 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import lapack

from prefrec.data import RankingExample
from prefrec.rankers.matrices import history_matrix, history_terms, mean_ndcg, score_by_rows, user_item_matrix

MOST_ITEMS = 12_000
"""Most items of a training log for EASE as a baseline: their inverse takes a minute and 3 GB.

The limit does not depend on the machine's free memory, so that the same recipe has the same rows everywhere.
"""
GRID = (250.0, 50.0, 1000.0)
"""L2 penalties to choose from."""


@dataclass(eq=False)
class EASERanker:
    """Score of candidate c = Σ over history items i of B[i, c], where B predicts each item from the others.

    With P = (XᵀX + λI)⁻¹ for the binary user × item matrix X, B[i, c] = −P[i, c] / P[c, c], and 0 on the diagonal.
    Items without training interactions score 0.
    """

    weights: NDArray[np.float64]  # [I, I]
    index: dict[str, int]
    regularisation: float = GRID[0]
    name: str = "EASE"

    @classmethod
    def fit(
        cls,
        train_interactions: pl.DataFrame,
        regularisation: float = GRID[0],
        *,
        validation: Sequence[RankingExample] = (),
    ) -> Self:
        """Invert an items × items matrix, which takes 24 bytes per pair of items.

        Args:
            train_interactions: frame with `user_id` and `item_id`.
            regularisation: λ, the L2 penalty.
            validation: examples that choose λ by NDCG@10, among the given value and `GRID`. The log must not contain
                their targets. The given value wins ties. Default: use the given value.
        """
        matrix, index = user_item_matrix(train_interactions)
        gram = sparse.csr_array(matrix.T @ matrix)
        if validation:
            targets = [e.target_index for e in validation]
            reached: dict[float, float] = {}
            for penalty in dict.fromkeys([regularisation, *GRID]):
                tried = cls(_weights(gram, penalty), index, penalty)
                reached[penalty] = mean_ndcg(tried.score(validation), targets)
            regularisation = max(reached, key=reached.__getitem__)
        return cls(_weights(gram, regularisation), index, regularisation)

    @property
    def settings(self) -> dict[str, float]:
        """Arguments of `fit` that give another log the chosen penalty."""
        return {"regularisation": self.regularisation}

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        histories = history_matrix([e.history for e in examples], self.index)
        return score_by_rows(histories, lambda block: block @ self.weights, examples, self.index)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        return history_terms(history, item, self.index, lambda column: self.weights[:, column])


def _weights(gram: sparse.csr_array, regularisation: float) -> NDArray[np.float64]:
    """Return B [I, I] of the item × item matrix XᵀX."""
    regular = gram.toarray(order="F")  # as LAPACK wants it, without a copy
    regular[np.diag_indices_from(regular)] += regularisation
    # The matrix is symmetric and positive definite: by its Cholesky factor, the inverse takes half of the time.
    factor, _ = lapack.dpotrf(regular, lower=1, overwrite_a=1)
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    weights: NDArray[np.float64] = np.tril(inverse, -1)
    weights += weights.T
    weights /= -np.diag(inverse)
    return weights

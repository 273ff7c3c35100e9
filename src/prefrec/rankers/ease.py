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

from prefrec.data import Query, RankingExample
from prefrec.errors import ModelError
from prefrec.rankers.matrices import (
    blocks,
    history_matrix,
    history_terms,
    mean_ndcg,
    score_by_rows,
    user_item_matrix,
)

MOST_BYTES = 2 * 10**9
"""Largest item × item matrix, a quarter of the memory of a laptop of 8 GB; that of 22,360 items.

It does not depend on the machine, so that a recipe has the same parts, keys and results everywhere. A run keeps two
matrices, of the log before validation examples and of the log before test examples.
"""
GRID = (250.0, 50.0, 1000.0)
"""L2 penalties to choose from."""


def matrix_bytes(items: int) -> int:
    """Return the size of the item × item matrix in float32."""
    return 4 * items * items


def too_large(items: int) -> str | None:
    """Return why EASE is left out for so many items; None if its matrix has at most `MOST_BYTES`."""
    needs = matrix_bytes(items)
    if needs <= MOST_BYTES:
        return None
    return (
        f"inverts a matrix of {items:,} × {items:,} items, which takes {needs / 1e9:.1f} GB, more than the "
        f"{MOST_BYTES / 1e9:.1f} GB that it may have"
    )


@dataclass(eq=False)
class EASERanker:
    """Score of candidate c = Σ over history items i of B[i, c], where B predicts each item from the others.

    With P = (XᵀX + λI)⁻¹ for the user × item matrix X (`user_item_matrix`), B[i, c] = −P[i, c] / P[c, c], and 0 on
    the diagonal. Items without training interactions score 0.
    """

    weights: NDArray[np.float32]  # [I, I]
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
        """Invert an items × items matrix in float32 and in place, which takes `matrix_bytes`.

        Args:
            train_interactions: frame with `user_id` and `item_id`.
            regularisation: λ, the L2 penalty.
            validation: examples that choose λ by NDCG@10, among the given value and `GRID`. The log must not contain
                their targets. The given value wins ties. Default: use the given value.
        """
        matrix, index = user_item_matrix(train_interactions)
        matrix = matrix.astype(np.float32)
        if validation:
            targets = [e.target_index for e in validation]
            reached: dict[float, float] = {}
            for penalty in dict.fromkeys([regularisation, *GRID]):
                # No name holds the matrix of a penalty while that of the next one is made.
                reached[penalty] = mean_ndcg(cls(_weights(matrix, penalty), index).score(validation), targets)
            regularisation = max(reached, key=reached.__getitem__)
        return cls(_weights(matrix, regularisation), index, regularisation)

    @property
    def settings(self) -> dict[str, float]:
        """Arguments of `fit` that give another log the chosen penalty."""
        return {"regularisation": self.regularisation}

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        # In float64, each product would begin with a copy of the weights in float64.
        histories = history_matrix([q.history for q in queries], self.index).astype(np.float32)
        return score_by_rows(histories, lambda block: block @ self.weights, queries, self.index)

    def contributions(self, history: Sequence[str], item: str) -> NDArray[np.float64]:
        return history_terms(history, item, self.index, lambda column: self.weights[:, column].astype(np.float64))


def _weights(matrix: sparse.csr_array, regularisation: float) -> NDArray[np.float32]:
    """Return B [I, I] of the user × item matrix X [U, I] in float32. All steps work on one array in place."""
    size = matrix.shape[1]
    weights = np.empty((size, size), dtype=np.float32)
    items = matrix.T.tocsr()
    for rows in blocks(size, size):
        weights[rows] = (items[rows] @ matrix).toarray()
    diagonal = np.einsum("ii->i", weights)  # a view
    diagonal += regularisation
    # The matrix is symmetric and positive definite: by its Cholesky factor, the inverse takes half of the time.
    # LAPACK works on columns. The lower triangle of the transpose is the upper one of `weights`.
    columns, failed = lapack.spotrf(weights.T, lower=1, overwrite_a=1)
    if not failed:
        columns, failed = lapack.spotri(columns, lower=1, overwrite_c=1)
    if failed:
        raise ModelError(f"EASE: with the penalty {regularisation:g}, XᵀX + λI has no inverse in float32")
    weights = columns.T
    _mirror(weights)
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    return weights


def _mirror(matrix: NDArray[np.float32]) -> None:
    """Copy the upper triangle of a matrix [I, I] to its lower one, without a copy of the whole."""
    for rows in blocks(len(matrix), len(matrix)):
        square = np.triu(matrix[rows, rows])
        matrix[rows, rows] = square + np.triu(square, 1).T
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T

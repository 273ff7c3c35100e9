"""Implicit ALS, a linear ranker of the user × item matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pydantic import Field

from prefrec.data import PreparedData, Query
from prefrec.errors import ConfigError
from prefrec.rankers.config import RankerConfig
from prefrec.rankers.matrices import history_matrix, score_by_rows, user_item_matrix


class ALSConfig(RankerConfig):
    """Implicit ALS (Hu et al. 2008), by the package `implicit` (`pip install implicit`)."""

    kind: Literal["als"] = "als"
    name: str = Field("ALS", description="Name in tables.")
    factors: int = Field(64, ge=1, le=4096, description="Length of the user and item vectors.")
    regularisation: float = Field(0.05, ge=0, description="L2 penalty on both vectors.")
    alpha: float = Field(10.0, gt=0, description="Confidence of an interaction, beyond that of none (α).")
    iterations: int = Field(15, ge=1, le=1000, description="Number of alternating iterations.")

    def check_data(self, data: PreparedData) -> None:
        check_implicit(self.name)


@dataclass(eq=False)
class ALSRanker:
    """Score of candidate c = u · v_c, where u is solved for the history as for a training user."""

    model: Any  # implicit's
    index: dict[str, int]
    name: str = "ALS"

    @classmethod
    def fit(cls, train_interactions: pl.DataFrame, config: ALSConfig, seed: int = 0) -> Self:
        """Factorise users × items; raise ConfigError if `implicit` is not installed."""
        check_implicit(config.name)
        from implicit.cpu.als import AlternatingLeastSquares  # the import takes a second

        matrix, index = user_item_matrix(train_interactions)
        model = AlternatingLeastSquares(
            factors=config.factors,
            regularization=config.regularisation,
            alpha=1 + config.alpha,  # implicit takes the confidence itself, which is 1 without an interaction
            iterations=config.iterations,
            random_state=seed,
            num_threads=1,  # with threads, the order of sums is not deterministic
        )
        model.fit(_as_matrix(matrix), show_progress=False)
        return cls(model, index, config.name)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        histories = history_matrix([q.history for q in queries], self.index)
        users = self.model.recalculate_user(np.arange(len(queries)), _as_matrix(histories))
        factors = np.asarray(self.model.item_factors, dtype=np.float64).T
        return score_by_rows(users.astype(np.float64), lambda block: block @ factors, queries, self.index)


def check_implicit(name: str) -> None:
    """Raise ConfigError if the package that ALS needs is not installed."""
    if find_spec("implicit") is None:
        raise ConfigError(
            f"rankers.{name}: ALS needs the package implicit: pip install implicit, or remove this entry"
        )


def _as_matrix(array: Any) -> Any:
    from scipy.sparse import csr_matrix  # implicit does not support sparse arrays

    return csr_matrix(array.astype(np.float32))

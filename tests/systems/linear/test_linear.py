"""ALS solves a user's normal equations."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import RankingExample
from prefrec.errors import ConfigError
from prefrec.runs.stage import stage_key
from prefrec_systems.linear.ranker import ALSConfig, ALSRanker, check_implicit
from prefrec_systems.linear.stage import ALSStage

ITEMS = [f"i{n}" for n in range(7)]


def _log(users: int = 25) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    matrix = (np.random.default_rng(0).random((users, len(ITEMS))) < 0.4).astype(float)
    matrix[0] = 1  # each item is in the log
    return make_log([(f"u{u:02}", ITEMS[i], 0) for u, i in zip(*np.nonzero(matrix), strict=True)]), matrix


EXAMPLES = [RankingExample("u", ("i1", "i4", "unknown"), ("i0", "i2", "new"), "i2")]
EXAMPLES += [RankingExample("v", (), ("i0", "i6"), "i0")]


def test_als_solves_the_history_as_a_user() -> None:
    pytest.importorskip("implicit")
    log, _ = _log()
    config = ALSConfig(factors=3, alpha=4.0, regularisation=0.1)
    ranker = ALSRanker.fit(log, config)
    items = np.asarray(ranker.model.item_factors, dtype=float)
    shown = items[[1, 4]]
    left = (
        items.T @ items + 0.1 * np.eye(3) + 4.0 * shown.T @ shown
    )  # 1 for every item, and alpha more for those of the history
    user = np.linalg.solve(left, 5.0 * shown.sum(axis=0))
    scores = ranker.score(EXAMPLES)
    assert scores[0, :2] == pytest.approx(items[[0, 2]] @ user, rel=1e-3)
    assert np.array_equal(scores, ALSRanker.fit(log, config).score(EXAMPLES))


def test_scores_of_another_weight_are_not_used() -> None:
    """An interaction's weight was alpha; predictions of that time have the key of the settings alone."""
    inputs: Any = SimpleNamespace(data_key="data", seed=0)
    config = ALSConfig()
    older = stage_key(**config.model_dump(exclude={"name"}), data="data", seed=0)
    assert ALSStage(inputs, config, Path(), {}).key != older


def test_what_als_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefrec_systems.linear.ranker.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rankers\.ALS: ALS needs the package implicit: pip install implicit"):
        check_implicit("ALS")

"""EASE equals a ridge regression of each item on the others, and ALS a user's normal equations."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import RankingExample
from prefrec.errors import ConfigError
from prefrec_systems.linear.ranker import ALSConfig, ALSRanker, EASEConfig, EASERanker, check_implicit
from prefrec_systems.linear.stage import check_memory

ITEMS = [f"i{n}" for n in range(7)]


def _log(users: int = 25) -> tuple[pl.DataFrame, np.ndarray[Any, Any]]:
    matrix = (np.random.default_rng(0).random((users, len(ITEMS))) < 0.4).astype(float)
    matrix[0] = 1  # each item is in the log
    return make_log([(f"u{u:02}", ITEMS[i], 0) for u, i in zip(*np.nonzero(matrix), strict=True)]), matrix


EXAMPLES = [RankingExample("u", ("i1", "i4", "unknown"), ("i0", "i2", "new"), "i2")]
EXAMPLES += [RankingExample("v", (), ("i0", "i6"), "i0")]


def test_ease_predicts_each_item_from_the_others() -> None:
    log, x = _log()
    scores = EASERanker.fit(log, 3.0).score(EXAMPLES)
    for column, item in enumerate((0, 2)):
        others = [i for i in range(len(ITEMS)) if i != item]
        a, b = x[:, others], x[:, item]
        ridge = np.linalg.solve(a.T @ a + 3.0 * np.eye(len(others)), a.T @ b)
        assert scores[0, column] == pytest.approx(ridge[others.index(1)] + ridge[others.index(4)])
    assert (scores[0, 2], scores[1].tolist()) == (0, [0, 0, -np.inf])


def test_ease_that_does_not_fit_into_memory_is_refused() -> None:
    data: Any = SimpleNamespace(train_interactions=pl.DataFrame({"item_id": range(10_000_000)}))
    with pytest.raises(ConfigError, match=r"rankers\.EASE: EASE of 10,000,000 items needs .* use kind als"):
        check_memory(EASEConfig(), data)


def test_als_solves_the_history_as_a_user() -> None:
    pytest.importorskip("implicit")
    log, _ = _log()
    config = ALSConfig(factors=3, alpha=4.0, regularisation=0.1)
    ranker = ALSRanker.fit(log, config)
    items = np.asarray(ranker.model.item_factors, dtype=float)
    shown = items[[1, 4]]
    left = items.T @ items + 0.1 * np.eye(3) + 3.0 * shown.T @ shown
    user = np.linalg.solve(left, 4.0 * shown.sum(axis=0))
    scores = ranker.score(EXAMPLES)
    assert scores[0, :2] == pytest.approx(items[[0, 2]] @ user, rel=1e-3)
    assert np.array_equal(scores, ALSRanker.fit(log, config).score(EXAMPLES))


def test_what_als_needs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefrec_systems.linear.ranker.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"rankers\.ALS: ALS needs the package implicit: pip install implicit"):
        check_implicit("ALS")

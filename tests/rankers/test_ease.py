"""EASE equals a ridge regression of each item on the others; validation chooses its penalty."""

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.rankers import baseline_rankers, baselines, ease
from prefrec.rankers.baselines import servable
from prefrec.rankers.ease import EASERanker
from prefrec.rankers.matrices import mean_ndcg

ITEMS = [f"i{n}" for n in range(7)]
MATRIX = (np.random.default_rng(0).random((25, len(ITEMS))) < 0.4).astype(float)
MATRIX[0] = 1  # each item is in the log
LOG = make_log([(f"u{u:02}", ITEMS[i], 0) for u, i in zip(*np.nonzero(MATRIX), strict=True)])
EXAMPLES = [
    RankingExample("u", ("i1", "i4", "unknown"), ("i0", "i2", "new"), "i2"),
    RankingExample("v", (), ("i0", "i6"), "i0"),
]


def test_ease_is_a_ridge_regression_of_each_item_on_the_others():
    scores = EASERanker.fit(LOG, 3.0).score(EXAMPLES)
    for column, item in enumerate((0, 2)):
        others = [i for i in range(len(ITEMS)) if i != item]
        a, b = MATRIX[:, others], MATRIX[:, item]
        ridge = np.linalg.solve(a.T @ a + 3.0 * np.eye(len(others)), a.T @ b)
        assert scores[0, column] == pytest.approx(ridge[others.index(1)] + ridge[others.index(4)])
    assert (scores[0, 2], scores[1].tolist()) == (0, [0, 0, -np.inf])


def test_validation_chooses_the_penalty_with_the_highest_ndcg(monkeypatch):
    monkeypatch.setattr(ease, "GRID", (1.0, 300.0))
    rng, rows = np.random.default_rng(4), []
    for user in range(200):
        order = rng.permutation(ITEMS).tolist()
        rows.append(RankingExample(f"t{user}", tuple(order[:2]), tuple(order[2:]), order[2]))
    by_penalty = {p: EASERanker.fit(LOG, p) for p in (40.0, 1.0, 300.0)}
    reached = {p: mean_ndcg(r.score(rows), [0] * len(rows)) for p, r in by_penalty.items()}
    best = max(reached, key=reached.__getitem__)
    assert reached[best] > reached[40.0] + 0.005
    np.testing.assert_array_equal(EASERanker.fit(LOG, 40.0, validation=rows).weights, by_penalty[best].weights)
    longer = make_log([*LOG.iter_rows(), ("later", "i1", 1), ("later", "i2", 2)])
    chosen = EASERanker.fit(LOG, 40.0, validation=rows)
    again = EASERanker.fit(longer, **chosen.settings)
    np.testing.assert_array_equal(again.weights, EASERanker.fit(longer, best).weights)


def test_a_log_of_many_items_has_no_ease_and_says_so(monkeypatch, capsys):
    catalogue = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": ITEMS}))
    assert "EASE" in servable(LOG)
    assert [r.name for r in baseline_rankers(LOG, catalogue, names=["EASE"])] == ["EASE"]
    monkeypatch.setattr(baselines, "MOST_ITEMS", 6)
    assert "EASE" not in servable(LOG)
    assert [r.name for r in baseline_rankers(LOG, catalogue, names=["popularity", "EASE"])] == ["popularity"]
    out, err = capsys.readouterr()
    assert "EASE is left out: it inverts an item × item matrix, of at most 6 items, not 7" in (out + err).replace(
        "\n", " "
    )

"""EASE equals a ridge regression of each item on the others; validation chooses its penalty."""

import numpy as np
import polars as pl
import pytest
from scipy import sparse

from drawn_logs import make_log
from prefrec.data import Catalogue, RankingExample
from prefrec.rankers import baseline_rankers, ease
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
        assert scores[0, column] == pytest.approx(ridge[others.index(1)] + ridge[others.index(4)], rel=1e-4)
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


def test_float32_equals_a_twin_in_float64_of_a_popular_log(monkeypatch):
    """Popular items make the matrix ill-conditioned: its largest eigenvalue is thousands of times the penalty."""
    rng = np.random.default_rng(7)
    matrix = (rng.random((4000, 90)) < np.linspace(0.02, 0.9, 90)).astype(np.float64)
    gram = matrix.T @ matrix
    assert np.linalg.eigvalsh(gram)[-1] > 1000 * 50
    inverse = np.linalg.inv(gram + 50 * np.eye(90))
    want = -inverse / np.diag(inverse)
    np.fill_diagonal(want, 0)
    for cells in (90 * 7, 8_000_000):  # in blocks of seven rows, and at once
        monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", cells)
        found = ease._weights(sparse.csr_array(matrix.astype(np.float32)), 50.0)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


def test_items_that_no_user_connects_score_exactly_zero():
    log = make_log([("a", "i0", 0), ("a", "i1", 1), ("b", "i2", 0), ("b", "i3", 1), ("c", "i0", 0)])
    (scores,) = EASERanker.fit(log).score([RankingExample("u", ("i0",), ("i1", "i2", "i3"), "i1")])
    assert scores[0] > 0
    assert scores[1:].tolist() == [0, 0]


def test_a_log_of_many_items_has_no_ease_and_says_so(monkeypatch, capsys):
    catalogue = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": ITEMS}))
    assert "EASE" in servable(LOG)
    assert [r.name for r in baseline_rankers(LOG, catalogue, names=["EASE"])] == ["EASE"]
    monkeypatch.setattr(ease, "MOST_BYTES", 4 * 6 * 6)
    assert "EASE" not in servable(LOG)
    assert [r.name for r in baseline_rankers(LOG, catalogue, names=["popularity", "EASE"])] == ["popularity"]
    out, err = capsys.readouterr()
    told = " ".join((out + err).split())
    assert "EASE is left out: it inverts a matrix of 7 × 7 items, which takes 0.0 GB, more than the 0.0 GB" in told
    monkeypatch.setattr(ease, "MOST_BYTES", 4 * 7 * 7)
    assert "EASE" in servable(LOG)


def test_every_machine_has_ease_of_20_000_items(monkeypatch):
    """Parts and keys of a blend once depended on the memory of the machine."""
    monkeypatch.setattr("os.sysconf", lambda name: 1)
    assert ease.too_large(20_000) is None
    assert "takes 2.5 GB, more than the 2.0 GB that it may have" in ease.too_large(25_000)

"""Window co-occurrence against a twin that walks over every pair of every user."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from drawn_logs import make_log
from prefrec.data import RankingExample
from prefrec.evaluation import evaluate
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers import WindowCooccurrenceRanker, baseline_rankers
from prefrec.rankers.window import GRID
from verdicts import NONE

ITEMS = [f"i{i}" for i in range(8)]
LOGS = st.lists(st.permutations(ITEMS).flatmap(lambda order: st.integers(0, 8).map(lambda n: order[:n])), max_size=6)
SETTINGS = st.sampled_from([(80, 20.0, (0.5, 0.5), 2.0), (2, 1.5, (0.25, 1.0), 0.7), (3, 9.0, (0.0, 0.0), 50.0)])


def frame(logs: list[list[str]]) -> pl.DataFrame:
    """Interactions of users whose rows do not stand together, each user's in order."""
    rows = sorted((t, f"u{u}", item) for u, items in enumerate(logs) for t, item in enumerate(items))
    return make_log([(user, item, t) for t, user, item in rows])


def slow_score(logs, history, candidate, reach, decay, exponents, half_life):
    total = 0.0
    for age, item in enumerate(reversed(history)):
        both = [items for items in logs if item != candidate and item in items and candidate in items]
        apart = [abs(items.index(item) - items.index(candidate)) for items in both]
        near = sum(math.exp(-(d - 1) / decay) for d in apart if d <= reach)
        for of, exponent in zip((item, candidate), exponents, strict=True):
            near /= max(1, sum(of in items for items in logs)) ** exponent
        total += 2 ** (-age / half_life) * near
    return total


@given(LOGS, st.lists(st.sampled_from([*ITEMS, "new"]), max_size=5), SETTINGS)
def test_scores_equal_their_slow_twin(logs, history, settings):
    named = dict(zip(("reach", "decay", "exponents", "half_life"), settings, strict=True))
    ranker = WindowCooccurrenceRanker.fit(frame(logs), **named)
    candidates = (*ITEMS, "unseen")
    (scores,) = ranker.score([RankingExample("x", tuple(history), candidates, "i0")])
    want = [slow_score(logs, history, c, *settings) for c in candidates]
    np.testing.assert_allclose(scores, want, atol=1e-12)


def test_movielens_100k():
    """What the rule reaches on the embedded data: a change of formula or of order would change these digits."""
    data = prepare(PrepareConfig())
    rankers = baseline_rankers(data.train_interactions, data.catalogue, names=["item-kNN", "window co-occurrence"])
    found = evaluate(rankers, data.test, data.catalogue, generate=False, audit=NONE)
    ndcg = {name: round(of["ndcg@10"].mean, 3) for name, of in found.metrics.items()}
    assert ndcg == {"item-kNN": 0.695, "window co-occurrence": 0.736}


@pytest.mark.parametrize("cells", [8_000_000, 30])
def test_validation_rows_choose_the_settings_with_the_highest_ndcg(cells, monkeypatch):
    monkeypatch.setattr("prefrec.rankers.matrices.CELLS_AT_A_TIME", cells)
    rng = np.random.default_rng(3)
    logs = [[f"i{(start + k) % 30}" for k in range(12)] for start in range(30)]
    logs += [[f"i{i}" for i in rng.permutation(30)[:12]] for _ in range(20)]
    lists = [("new", items[0], *rng.permutation(items[4:])[: 3 + n % 5]) for n, items in enumerate(logs)]
    rows = [RankingExample("u", tuple(of[3:0:-1]), shown, of[0]) for of, shown in zip(logs, lists, strict=True)]
    rows.append(RankingExample("u", (), ("i1", "i2"), "i1"))
    rows.append(RankingExample("u", ("new", "i3", "i3"), ("i4", "i2"), "i2"))

    def ndcg(scores, row) -> float:
        target = scores[row.target_index]
        rank = sum(score >= target for score in scores)  # of equal scores the target comes last
        return 1 / math.log2(rank + 1) if rank <= 10 else 0.0

    def fitted(settings) -> WindowCooccurrenceRanker:
        named = dict(zip(("decay", "exponents", "half_life"), settings, strict=True))
        return WindowCooccurrenceRanker.fit(frame(logs), **named)

    scores = {settings: fitted(settings).score(rows).tolist() for settings in GRID}
    reached = {settings: round(sum(map(ndcg, of, rows)) / len(rows), 12) for settings, of in scores.items()}
    best = max(reached, key=reached.get)
    assert len(set(reached.values())) > 5
    assert reached[GRID[0]] < max(reached.values())
    want, chosen = fitted(best), WindowCooccurrenceRanker.fit(frame(logs), validation=rows)
    assert chosen.half_life == best[2]
    np.testing.assert_array_equal(chosen.score(rows), want.score(rows))


def test_an_empty_log_leaves_all_items_tied_and_the_settings_as_they_are():
    rows = [RankingExample("u", ("i1", "i2"), ("i3", "i4"), "i3")]
    ranker = WindowCooccurrenceRanker.fit(frame([]), decay=7.0, half_life=3.0, validation=rows)
    assert ranker.settings == {"decay": 7.0, "exponents": (0.5, 0.5), "half_life": 3.0}
    assert ranker.score(rows).tolist() == [[0, 0]]

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
SETTINGS = st.sampled_from(
    [(80, 20.0, (0.5, 0.5), 2.0, 1.0), (2, 1.5, (0.25, 1.0), 0.7, 0.2), (3, 9.0, (0.0, 0.0), 50.0, 0.5)]
)


def frame(logs: list[list[str]]) -> pl.DataFrame:
    """Interactions of users whose rows do not stand together, each user's in order."""
    rows = sorted((t, f"u{u}", item) for u, items in enumerate(logs) for t, item in enumerate(items))
    return make_log([(user, item, t) for t, user, item in rows])


def slow_score(logs, history, candidate, reach, decay, exponents, half_life, backward):
    total = 0.0
    for age, item in enumerate(reversed(history)):
        both = [items for items in logs if item != candidate and item in items and candidate in items]
        apart = [items.index(candidate) - items.index(item) for items in both]
        near = sum(math.exp(-(abs(d) - 1) / decay) * (1 if d > 0 else backward) for d in apart if abs(d) <= reach)
        for of, exponent in zip((item, candidate), exponents, strict=True):
            near /= max(1, sum(of in items for items in logs)) ** exponent
        total += 2 ** (-age / half_life) * near
    return total


@given(LOGS, st.lists(st.sampled_from([*ITEMS, "new"]), max_size=5), SETTINGS)
def test_scores_equal_their_slow_twin(logs, history, settings):
    named = dict(zip(("reach", "decay", "exponents", "half_life", "backward"), settings, strict=True))
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
    everything = tuple(f"i{i}" for i in range(30))
    rows = [RankingExample("u", tuple(of[3:0:-1]), everything, of[0]) for of in logs]
    rows.append(RankingExample("u", (), everything, "i1"))
    rows.append(RankingExample("u", ("new", "i3", "i3"), everything, "i2"))
    rows.append(RankingExample("u", ("i3", "i2"), everything, "i2"))  # again, so that it stays among the candidates
    rows.append(RankingExample("u", ("i3",), (*everything, "new"), "new"))  # not in the log: it is never found

    def ndcg(scores, row) -> float:
        kept = [s for item, s in zip(row.candidates, scores, strict=False) if item not in row.history]
        target = scores[row.target_index]
        rank = sum(s >= target for s in kept) + (row.target in row.history)  # of equal scores the target comes last
        return 1 / math.log2(rank + 1) if rank <= 10 and row.target != "new" else 0.0

    def fitted(settings) -> WindowCooccurrenceRanker:
        return WindowCooccurrenceRanker.fit(frame(logs), **settings._asdict())

    scores = {settings: fitted(settings).score(rows) for settings in GRID}
    reached = {settings: round(sum(map(ndcg, of, rows)) / len(rows), 9) for settings, of in scores.items()}
    assert len(set(reached.values())) > 5
    assert reached[GRID[0]] < max(reached.values())
    chosen = WindowCooccurrenceRanker.fit(frame(logs), validation=rows)
    assert reached[chosen.chosen] == max(reached.values())
    assert chosen.settings == chosen.chosen._asdict()
    np.testing.assert_array_equal(chosen.score(rows), scores[chosen.chosen])


def test_an_empty_log_leaves_all_items_tied_and_the_settings_as_they_are():
    rows = [RankingExample("u", ("i1", "i2"), ("i3", "i4"), "i3")]
    ranker = WindowCooccurrenceRanker.fit(frame([]), decay=7.0, half_life=3.0, validation=rows)
    assert ranker.settings == {"decay": 7.0, "exponents": (0.5, 0.5), "half_life": 3.0, "backward": 1.0}
    assert ranker.score(rows).tolist() == [[0, 0]]

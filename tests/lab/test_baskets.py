"""Next baskets: metrics against ir_measures and all orders of ties, and whole baskets of a log."""

from itertools import pairwise, permutations

import ir_measures
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, R, Success, nDCG

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation.metrics import target_ranks
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers import PopularityRanker
from prefrec_lab.baskets import basket_metrics, baskets_of, evaluate_baskets

MEASURES = {"hr@2": Success @ 2, "recall@2": R @ 2, "ndcg@2": nDCG @ 2, "ndcg@9": nDCG @ 9, "mrr": RR}
DAY, START = 86_400, 10**9


def metrics_of(scores: np.ndarray, baskets: list[list[int]]) -> dict[str, np.ndarray]:
    """Return our metrics of baskets [B] of columns of the scores [B, C]."""
    rows = [(b, t) for b, basket in enumerate(baskets) for t in basket]
    ranks = target_ranks(scores[[b for b, _ in rows]], [t for _, t in rows])
    return basket_metrics(*ranks, np.array([b for b, _ in rows]), (2, 9))


def judged(scores: np.ndarray, baskets: list[list[int]]) -> dict[str, list[float]]:
    qrels = [ir_measures.Qrel(str(b), str(t), 1) for b, basket in enumerate(baskets) for t in basket]
    run = [ir_measures.ScoredDoc(str(b), str(c), s) for b, row in enumerate(scores) for c, s in enumerate(row)]
    found = {(m.query_id, m.measure): m.value for m in ir_measures.iter_calc([*MEASURES.values()], qrels, run)}
    return {name: [found[str(b), of] for b in range(len(baskets))] for name, of in MEASURES.items()}


SUBSETS = st.sets(st.integers(0, 5), min_size=1).map(sorted)


@given(st.lists(st.tuples(st.permutations(range(6)), SUBSETS), min_size=1, max_size=4))
def test_metrics_equal_ir_measures(questions):
    scores, baskets = np.array([order for order, _ in questions], float), [basket for _, basket in questions]
    ours, theirs = metrics_of(scores, baskets), judged(scores, baskets)
    for name, want in theirs.items():
        np.testing.assert_allclose(ours[name], want, atol=1e-12, err_msg=name)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=5, max_size=5), st.sets(st.integers(0, 4), min_size=1))
def test_metrics_are_means_over_all_orders_of_equal_scores(scores, basket):
    fitting = [o for o in permutations(range(5)) if all(scores[a] >= scores[b] for a, b in pairwise(o))]
    orders = -np.argsort(np.array(fitting), axis=1).astype(float)
    want = metrics_of(orders, [sorted(basket)] * len(orders))
    for name, own in metrics_of(np.array([scores]), [sorted(basket)]).items():
        np.testing.assert_allclose(own, want[name].mean(), atol=1e-12, err_msg=name)


def shop(split: str, tmp_path) -> PreparedData:
    """Forty users who buy two items at a time, and come back every ten days."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u}", f"i{i}", START + (10 * visit + u % 10) * DAY)
        for u in range(40)
        for visit, pair in enumerate(rng.permutation(30)[:20].reshape(10, 2))
        for i in pair
    ]
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    titles = {"item_id": [f"i{i}" for i in range(30)], "title": [f"Title {i}" for i in range(30)]}
    pl.DataFrame(titles).write_csv(tmp_path / "items.csv")
    files = {"source": "files", "interactions": str(tmp_path / "log.csv"), "items": str(tmp_path / "items.csv")}
    return prepare(PrepareConfig(**files, split=split, candidates={"size": 5}))


def test_baskets_of_a_log_are_whole_and_know_nothing_of_each_other(tmp_path):
    data = shop("time", tmp_path)
    baskets, seen = baskets_of(data, "test")
    assert sum(map(len, baskets)) == len(data.test) > 50
    assert {len(basket) for basket in baskets} == {2}
    for basket, own in zip(baskets, seen, strict=True):
        targets = {row.target for row in basket}
        assert len({row.history for row in basket}) == len({row.time for row in basket}) == 1
        assert not targets & own
        assert {*basket[0].history} <= own
    log = pl.concat([data.train_interactions, data.held_out_interactions])
    for basket in baskets[:5]:
        user, time = basket[0].user_id, basket[0].time
        at = log.filter((pl.col("user_id") == user) & (pl.col("timestamp") == time))["item_id"]
        assert {*at} == {row.target for row in basket}


def test_an_evaluation_of_baskets_is_that_of_the_ranks_by_hand(tmp_path):
    data = shop("time", tmp_path)
    popular = PopularityRanker.fit(data.train_interactions)
    found = evaluate_baskets([popular, PopularityRanker({}, name="flat")], data, ks=[3])
    baskets, seen = baskets_of(data, "test")
    recall, chance = [], []
    for basket, own in zip(baskets, seen, strict=True):
        left = [i for i in data.catalogue.ids if i not in own]
        order = np.array([popular.counts.get(i, 0) for i in left])
        for row in basket:
            mine = order[left.index(row.target)]
            above, same = (order > mine).sum(), (order == mine).sum()
            recall.append(np.clip((3 - above) / same, 0, 1))
        chance.append(3 / len(left))
    assert found.metrics["popularity"]["recall@3"].mean == pytest.approx(np.mean(recall))
    assert found.metrics["flat"]["recall@3"].mean == pytest.approx(np.mean(chance))
    assert [*found.metrics["flat"]] == ["hr@3", "recall@3", "ndcg@3", "mrr"]
    assert (found.n, found.users) == (len(baskets), len({b[0].user_id for b in baskets}))
    assert found.difference("flat", "popularity", "recall@3").mean == pytest.approx(np.mean(chance) - np.mean(recall))
    assert "RECALL@3" in repr(found)


def test_what_is_no_basket_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"the test split has no complete basket: .* \(data.split: time\)"):
        baskets_of(shop("leave-last-out", tmp_path), "test")
    row = RankingExample("u", ("a",), ("a", "b"), "b")
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    catalogue = Catalogue(pl.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}))
    with pytest.raises(DataError, match="the test split has no examples with dates"):
        baskets_of(PreparedData(catalogue, [], [], [row], log), "test")

"""prefrec_systems.retrieve against a slow twin that sorts lists, and over the whole catalogue."""

import math
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from full_ranks import full_ranks
from prefrec.data import Query, RankingExample
from prefrec.evaluation import metrics_for
from prefrec.prompts import load_template
from prefrec.rankers import LMRanker, PopularityRanker
from prefrec.rankers.baselines import RandomRanker, pad_scores
from prefrec_systems.retrieve import RetrieveThenRank
from slow import slow_logps
from tiny_lists import CATALOGUE, IDS

ROWS = [
    RankingExample("u0", ("i1", "i2"), ("i5", "i6", "i7", "i8"), "i5"),
    RankingExample("u1", ("i7",), ("i8", "i9"), "i9"),
    RankingExample("u2", ("i30", "i5"), ("i5", "i6", "i50"), "i50"),
]
SEEN = [("i10", "i11"), ("i9", "i12"), ()]
LISTS = st.lists(st.lists(st.sampled_from(IDS), min_size=1, max_size=12, unique=True), min_size=1, max_size=4)
ORDERS = st.permutations(range(len(IDS)))
POPULARITY = PopularityRanker({item: 60 - n for n, item in enumerate(IDS)})
"""i0 is the most popular item."""


@dataclass
class Fixed:
    """Scores items by a table, and keeps what it was asked."""

    table: dict[str, float]
    name: str = "fixed"
    asked: list[Query] = field(default_factory=list)

    def score(self, examples):
        self.asked += examples
        return pad_scores([[self.table[c] for c in e.candidates] for e in examples])


@given(LISTS, st.integers(1, 14), ORDERS, ORDERS)
def test_orders_equal_the_slow_twin(lists, k, first, second):
    liked, wanted = (dict(zip(IDS, map(float, order), strict=True)) for order in (first, second))
    examples = [RankingExample(f"u{n}", ("i1",), tuple(c), c[0]) for n, c in enumerate(lists)]
    scores = RetrieveThenRank("both", Fixed(liked), Fixed(wanted), k).score(examples)
    assert scores.shape == (len(lists), max(map(len, lists)))
    for row, e in zip(scores, examples, strict=True):
        retrieved = sorted(e.candidates, key=lambda i: -liked[i])  # no scores tie
        want = sorted(retrieved[:k], key=lambda i: -wanted[i]) + retrieved[k:]
        assert [e.candidates[c] for c in np.argsort(-row[: len(want)])] == want
        assert np.isneginf(row[len(e.candidates) :]).all()
        assert np.isfinite(row[: len(e.candidates)]).all()


def test_the_ranker_sees_the_retrieved_alone_in_a_random_order():
    ranker = Fixed(dict.fromkeys(IDS, 0.0))
    many = [RankingExample(f"u{n}", ("i1",), tuple(IDS[:30]), "i29") for n in range(200)]
    RetrieveThenRank("both", POPULARITY, ranker, 5).score(many)
    assert [(e.user_id, e.history) for e in ranker.asked] == [(e.user_id, e.history) for e in many]
    assert {frozenset(e.candidates) for e in ranker.asked} == {frozenset(IDS[:5])}
    places = np.array([e.candidates.index("i0") for e in ranker.asked])
    assert np.bincount(places, minlength=5).min() > 20
    assert not any(hasattr(e, "target") for e in ranker.asked), "a query tells the ranker no target"


def test_ties_of_both_are_kept_and_luck_decides_at_the_last_place():
    indifferent = Fixed(dict.fromkeys(IDS, 1.0))
    ranker = Fixed({i: float(int(i[1:]) % 2) for i in IDS})
    many = [RankingExample(f"u{n}", ("i1",), tuple(IDS[:10]), "i0") for n in range(300)]
    scores = RetrieveThenRank("both", indifferent, ranker, 4).score(many)
    for row, asked in zip(scores, ranker.asked, strict=True):
        # best, second, not retrieved
        groups = [2 if i not in asked.candidates else int(ranker.table[i] == 0) for i in IDS[:10]]
        for a, b in product(range(10), range(10)):
            assert (row[a] > row[b]) == (groups[a] < groups[b])
    retrieved = np.array([[i in e.candidates for i in IDS[:10]] for e in ranker.asked])
    assert np.abs(retrieved.mean(axis=0) - 0.4).max() < 0.12


def test_answers_do_not_depend_on_batch_or_order_of_candidates():
    pipeline = RetrieveThenRank("both", Fixed({i: float(int(i[1:]) // 9) for i in IDS}), RandomRanker(5), 6)
    rows = [RankingExample(f"u{n}", ("i1",), tuple(IDS[n:40]), "i39") for n in range(4)]
    whole = pipeline.score(rows)
    for n, e in enumerate(rows):
        assert pipeline.score([e])[0].tolist() == whole[n, : len(e.candidates)].tolist()
        turned = RankingExample(e.user_id, e.history, e.candidates[::-1], e.target)
        assert pipeline.score([turned])[0][::-1].tolist() == whole[n, : len(e.candidates)].tolist()


@pytest.mark.parametrize("k", [1, 8, 100])
def test_full_catalogue_metrics_of_a_language_model_equal_the_slow_twin(model, bpe_tokenizer, k):
    """Popularity's top K of what was not seen, in the pipeline's order, then the model, one sequence a title."""
    lm = LMRanker("lm", model, bpe_tokenizer, CATALOGUE, load_template("movies/1"), objective="tokens")
    pipeline = RetrieveThenRank("both", POPULARITY, lm, k)
    ranks, _ = full_ranks(pipeline, ROWS, CATALOGUE, SEEN)
    want = []
    for e, own in zip(ROWS, SEEN, strict=True):
        left_out = {*e.history, *own} - {e.target}
        order = sorted((i for i in IDS if i not in left_out), key=lambda i: -POPULARITY.counts[i])
        (draws,) = RandomRanker(0).score([RankingExample(e.user_id, e.history, tuple(order), e.target)])
        listed = sorted(order[:k], key=dict(zip(order, draws.tolist(), strict=True)).__getitem__)
        shown = CATALOGUE.titles_of(listed)
        with torch.no_grad():
            logps = slow_logps(model, lm.encoder.encode(lm.template, CATALOGUE.titles_of(e.history), shown, shown))
        said = dict(zip(listed, logps.tolist(), strict=True))
        want.append(1 + [*sorted(said, key=lambda i: -said[i]), *order[k:]].index(e.target))
    assert ranks.tolist() == want
    assert want[2] > 8 or k == 100  # a target that popularity does not retrieve
    metrics = {name: metric(ranks).mean() for name, metric in metrics_for((10,)).items()}
    assert metrics["hr@10"] == pytest.approx(sum(r <= 10 for r in want) / 3)
    assert metrics["ndcg@10"] == pytest.approx(sum(1 / math.log2(r + 1) for r in want if r <= 10) / 3)


def test_the_ranker_is_asked_at_the_time_of_the_example():
    asked = Fixed(dict.fromkeys(IDS, 1.0))
    rows = [replace(row, time=7 + n) for n, row in enumerate(ROWS)]
    RetrieveThenRank("two", POPULARITY, asked, 2).score(rows)
    assert [(e.user_id, e.history, e.time) for e in asked.asked] == [(e.user_id, e.history, e.time) for e in rows]

"""Scores from elsewhere: metrics against trec_eval (ir_measures), a slow twin for ties, and what is counted."""

from itertools import pairwise, permutations

import ir_measures
import numpy as np
import polars as pl
import pytest
from ir_measures import RR, R, Success, nDCG

from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import paired_difference
from prefrec.evaluation.external import evaluate_scores, user_values
from prefrec.evaluation.intervals import holm

ITEMS = [f"i{n}" for n in range(8)]
KS = (1, 3, 10)


def _frame(rows: list[tuple[str, str, float]], value: str = "score") -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, value: pl.Float64}, orient="row")


def _drawn(seed: int, users: int = 30, targets: int = 3) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Scores without ties of six of the items, and up to `targets` targets with gains 1 to 3."""
    rng = np.random.default_rng(seed)
    scores, wanted = [], []
    for user in (f"u{n}" for n in range(users)):
        scores += [(user, ITEMS[i], float(s)) for i, s in zip(rng.permutation(8)[:6], rng.random(6), strict=True)]
        chosen = rng.permutation(8)[: rng.integers(1, targets + 1)]
        wanted += [(user, ITEMS[i], float(rng.integers(1, 4))) for i in chosen]
    return _frame(scores), _frame(wanted, "gain")


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize(
    ("name", "measure"),
    [("ndcg@3", nDCG @ 3), ("ndcg@10", nDCG @ 10), ("recall@3", R @ 3), ("hr@3", Success @ 3), ("mrr", RR)],
)
def test_metrics_are_those_of_trec_eval(name, measure, targets):
    scores, wanted = _drawn(0, targets=targets)
    qrels = [ir_measures.Qrel(u, i, int(gain)) for u, i, gain in wanted.iter_rows()]
    run = [ir_measures.ScoredDoc(u, i, s) for u, i, s in scores.iter_rows()]
    expected = {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, run)}
    found = evaluate_scores({"run": scores}, wanted, KS).evaluation.metrics["run"][name]
    assert found.mean == pytest.approx(np.mean([*expected.values()]), abs=1e-9)
    assert (found.n, found.users) == (30, 30)


@pytest.mark.parametrize("seed", range(6))
def test_ties_are_the_mean_over_all_orders(seed):
    """The slow twin: each order of equal scores, ranked without ties."""
    rng = np.random.default_rng(seed)
    scores = {item: float(rng.integers(3)) for item in ITEMS[:6]}
    gains = {ITEMS[i]: float(rng.integers(1, 4)) for i in rng.permutation(8)[:3]}
    orders = [o for o in permutations(scores) if all(scores[a] >= scores[b] for a, b in pairwise(o))]
    each = [user_values({item: -n for n, item in enumerate(order)}, gains, (1, 3)) for order in orders]
    found = user_values(scores, gains, (1, 3))
    assert found == pytest.approx({name: np.mean([values[name] for values in each]) for name in found})


def test_by_hand():
    """Targets in places 2 and 4 of a list, and one that is not in it; their gains 1, 3 and 1."""
    found = user_values({"a": 9, "b": 8, "c": 7, "d": 6}, {"b": 1.0, "d": 3.0, "x": 1.0}, (3, 10))
    ideal = 3 + 1 / np.log2(3) + 1 / 2
    assert found["ndcg@10"] == pytest.approx((1 / np.log2(3) + 3 / np.log2(5)) / ideal)
    assert found["ndcg@3"] == pytest.approx(1 / np.log2(3) / ideal)
    assert (found["hr@3"], found["mrr"]) == (1, 0.5)
    assert (found["recall@3"], found["recall@10"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert set(user_values({}, {"b": 1.0}, (3,)).values()) == {0.0}


@pytest.mark.parametrize("targets", [1, 3])
def test_runs_are_compared_with_the_first_on_the_same_users(targets):
    (first, wanted), second, third = _drawn(0, targets=targets), _drawn(1)[0], _drawn(2)[0]
    runs = {"first": first, "second": second, "third": third}
    block = evaluate_scores(runs, wanted).evaluation
    of_user = {}
    for name, frame in runs.items():
        lists = {u: dict(part.select("item_id", "score").iter_rows()) for (u,), part in frame.group_by("user_id")}
        gains = {u: dict(part.select("item_id", "gain").iter_rows()) for (u,), part in wanted.group_by("user_id")}
        of_user[name] = [user_values(lists[u], gains[u], (10,))["ndcg@10"] for u in sorted(gains)]
    users = sorted(wanted["user_id"].unique())
    items = dict(wanted.select("user_id", "item_id").iter_rows())
    items = [items[u] for u in users] if targets == 1 else None
    slow = [paired_difference(of_user[name], of_user["first"], users, items) for name in ("second", "third")]
    found = [c for c in block.comparisons if c.metric == "ndcg@10"]
    assert [(c.ranker, c.against) for c in found] == [("second", "first"), ("third", "first")]
    assert [(c.mean, c.low, c.high) for c in found] == [pytest.approx((s.mean, s.low, s.high)) for s in slow]
    assert [c.adjusted_p for c in found] == pytest.approx(holm([s.p_value for s in slow]))


def test_users_that_only_one_side_has_are_counted():
    scores, wanted = _drawn(0)
    found = evaluate_scores({"run": scores}, wanted)
    fewer = scores.filter(pl.col("user_id") != "u0")
    more = pl.concat([fewer, _frame([("stranger", "i0", 1.0), ("other", "i0", 1.0)])])
    again = evaluate_scores({"run": more, "whole": scores}, wanted)
    assert (again.without_scores, again.without_targets) == ({"run": 1, "whole": 0}, {"run": 2, "whole": 0})
    metrics = again.evaluation.metrics
    assert metrics["run"]["mrr"].n == metrics["whole"]["mrr"].n == 30  # who has no score counts with 0
    assert metrics["run"]["mrr"].mean <= metrics["whole"]["mrr"].mean
    assert metrics["whole"]["mrr"].mean == found.evaluation.metrics["run"]["mrr"].mean


def test_what_cannot_be_evaluated_is_refused():
    scores, wanted = _drawn(0)
    strangers = scores.with_columns(pl.format("x{}", "user_id").alias("user_id"))
    with pytest.raises(DataError, match=r"run: none of its users has a target; .*'xu0' in the scores and 'u0' in"):
        evaluate_scores({"run": strangers}, wanted)
    with pytest.raises(DataError, match="the targets are empty"):
        evaluate_scores({"run": scores}, wanted.clear())
    with pytest.raises(ConfigError, match="at least one run"):
        evaluate_scores({}, wanted)
    with pytest.raises(ConfigError, match="cut-offs"):
        evaluate_scores({"run": scores}, wanted, (0,))


@pytest.mark.parametrize("form", [pl.DataFrame.to_pandas, pl.DataFrame.to_arrow])
def test_frames_of_other_libraries_and_ids_as_numbers_are_read(form):
    scores, wanted = _drawn(0)
    numbers = pl.col("user_id", "item_id").str.slice(1).cast(pl.Int64)
    plain = evaluate_scores({"run": scores}, wanted)
    found = evaluate_scores({"run": form(scores.with_columns(numbers))}, form(wanted.with_columns(numbers)))
    assert found.evaluation.metrics["run"]["ndcg@10"] == plain.evaluation.metrics["run"]["ndcg@10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.rename({"score": "points"}), r"run: no column score among user_id, item_id, points; rename"),
        (lambda f: f.with_columns(user_id=None), r"run, row 0: no user or no item \(180 rows\)"),
        (lambda f: f.with_columns(score=pl.lit("high")), r"run, row 0: no finite number as its score"),
        (lambda f: f.with_columns(score=float("inf")), r"run, row 0: no finite number as its score"),
        (lambda f: pl.concat([f, f[2:4]]), r"run, row 180: an earlier pair again \(2 rows\)"),
        (lambda f: 7, r"run: expected a frame of polars, pandas or Arrow, got int"),
    ],
)
def test_unfit_frames_of_scores_are_refused(change, message):
    scores, wanted = _drawn(0)
    with pytest.raises(DataError, match=message):
        evaluate_scores({"run": change(scores)}, wanted)

"""From rankers to a table: numbers by hand, pairing, JSON, and rankers that misbehave."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from fixed_rankers import CATALOGUE, Fixed
from prefrec.data import RankingExample
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation import Evaluation, audit_lists, evaluate, evaluate_predictions, rank_catalogue
from prefrec.evaluation.intervals import holm, mean_interval, paired_difference
from verdicts import NONE

A, B, C = Fixed("a", "abcdef"), Fixed("b", "badcfe"), Fixed("c", "fedcba")


class Talker(Fixed):
    """Says the title of its best candidate, every second time with an addition."""

    def generate(self, examples):
        best = [min(e.candidates, key=self.order.index) for e in examples]
        return [f"Title {c}" + (" or so" if i % 2 else "") for i, c in enumerate(best)]


@pytest.fixture
def examples() -> list[RankingExample]:
    return [
        RankingExample("u", ("f",), ("a", "b", "c"), "a"),
        RankingExample("u", ("f", "a"), ("c", "b", "d"), "b"),
        RankingExample("v", ("e",), ("d", "a"), "d"),
        RankingExample("w", (), ("a", "b", "e"), "a"),
    ]


def test_numbers_by_hand(examples):
    rankers = [Fixed("alphabet", "abcdef"), Talker("talker", "fedcba")]
    result = evaluate(rankers, examples, CATALOGUE, ks=(1, 2), audit=NONE)
    assert result.rankers == ["alphabet", "talker"]
    assert list(result.metrics["alphabet"]) == ["hr@1", "hr@2", "ndcg@2", "mrr"]
    assert result.values["alphabet"]["hr@1"].tolist() == [1, 1, 0, 1]
    assert result.metrics["alphabet"]["ndcg@2"].mean == pytest.approx((3 + 1 / np.log2(3)) / 4)
    assert result.values["talker"]["mrr"].tolist() == pytest.approx([1 / 3, 1 / 3, 1, 1 / 3])
    assert result.values["talker"]["valid_ratio"].tolist() == [1, 0, 1, 0]
    assert result.values["talker"]["gen_hr@1"].tolist() == [0, 0, 1, 0]
    assert result.predictions["generated"].to_list()[4:] == ["Title c", "Title d or so", "Title d", "Title e or so"]
    assert (result.n, result.users) == (4, 3)
    assert result.chance == pytest.approx((3 / 3 + 1 / 2) / 4)


def test_intervals_equal_the_single_functions(examples):
    examples = [replace(e, user_id=f"{e.user_id}{n}") for n in range(9) for e in examples]
    result = evaluate([A, B], examples, CATALOGUE, audit=NONE)
    values, groups = result.values, ([e.user_id for e in examples], [e.target for e in examples])
    assert result.metrics["a"]["mrr"] == mean_interval(values["a"]["mrr"], *groups)
    theirs = paired_difference(values["b"]["mrr"], values["a"]["mrr"], *groups)
    ours = result.difference("b", "a", "mrr")
    assert (ours.mean, ours.low, ours.high) == pytest.approx((theirs.mean, theirs.low, theirs.high))
    assert ours.p_value == pytest.approx(theirs.p_value)


def test_who_is_compared_with_whom(examples):
    rankers = [A, B, Talker("c", "fedcba")]

    def pairs(compare):
        found = evaluate(rankers, examples, CATALOGUE, compare=compare, audit=NONE).comparisons
        return list(dict.fromkeys((c.ranker, c.against) for c in found))

    assert pairs(None) == [("b", "a"), ("c", "b")]
    assert pairs("b") == [("a", "b"), ("c", "b")]
    assert pairs([("c", "a")]) == [("c", "a")]
    with pytest.raises(ConfigError, match="cannot compare with nobody: the rankers are a, b, c"):
        pairs("nobody")
    with pytest.raises(KeyError, match="a was not compared with c"):
        evaluate(rankers, examples, CATALOGUE, audit=NONE).difference("a", "c", "mrr")


def test_json_and_predictions_say_the_same(examples):
    frame = pl.DataFrame({"user_id": ["x", "y"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    audit = audit_lists(examples, examples, CATALOGUE, frame)
    result = evaluate([A, Talker("c", "fedcba")], examples, CATALOGUE, audit=audit)
    again = Evaluation.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False)))
    assert (again, again.audit.verdict) == (result, audit.verdict)
    shuffled = result.predictions.sample(fraction=1.0, shuffle=True, seed=1).sort("ranker")
    assert evaluate_predictions(shuffled, audit=audit) == result


def test_misbehaving_rankers_are_named(examples):
    class Broken(Fixed):
        answer = np.full((4, 3), np.nan)

        def score(self, examples):
            return self.answer

    class Short(Talker):
        def generate(self, examples):
            return ["x"]

    broken = Broken("broken", "abcdef")
    with pytest.raises(ModelError, match="'broken': 4 of 4 rows have NaN"):
        evaluate([broken], examples, CATALOGUE, audit=NONE)
    broken.answer = np.zeros((4, 2))
    with pytest.raises(ModelError, match=r"'broken': expected scores of shape \(4, 3\), got \(4, 2\)"):
        evaluate([broken], examples, CATALOGUE, audit=NONE)
    for answer, message in (
        (np.full((4, 3), np.inf), r"a score is \+inf"),
        (np.full((4, 3), "1.5"), "expected scores that are numbers, got the type <U3"),
        (np.ma.masked_array(np.zeros((4, 3)), mask=True), "scores are a masked array"),
    ):
        broken.answer = answer
        with pytest.raises(ModelError, match=f"'broken': {message}"):
            evaluate([broken], examples, CATALOGUE, audit=NONE)
        broken.answer = np.ma.repeat(answer, 2, axis=1) if np.ma.isMA(answer) else np.repeat(answer, 2, axis=1)
        with pytest.raises(ModelError, match=f"'broken': {message}"):
            rank_catalogue(broken, examples, CATALOGUE, [()] * 4)
    with pytest.raises(ConfigError, match=r"ks: cut-offs must be whole numbers of at least 1, got \[2.5\]"):
        evaluate([broken], examples, CATALOGUE, ks=(2.5,), audit=NONE)  # before it scores
    with pytest.raises(ModelError, match="'short': 1 texts for 4 examples"):
        evaluate([Short("short", "abcdef")], examples, CATALOGUE, audit=NONE)
    with pytest.raises(ConfigError, match="two rankers have the same name: a, a"):
        evaluate([A, A], examples, CATALOGUE, audit=NONE)
    with pytest.raises(DataError, match="nothing to evaluate: 1 rankers, 0 examples; give at least one of each"):
        evaluate([A], [], CATALOGUE, audit=NONE)


def test_rows_that_were_not_asked_for_text_count_neither_way():
    rows = [RankingExample(f"u{i // 2}", ("f",), ("a", "b", "c"), "a") for i in range(100)]
    named = evaluate([Talker("talker", "abcdef"), Talker("other", "bacdef")], rows, CATALOGUE, audit=NONE).predictions
    silent = (pl.col("row") >= 20) | (pl.col("row") % 2 == 1)  # every second text of a talker is invalid
    columns = [pl.when(~silent).then(c).alias(c) for c in ("generated", "choice")]
    result = evaluate_predictions(named.with_columns(columns), audit=NONE)
    for metric in ("gen_hr@1", "valid_ratio"):
        interval = result.metrics["talker"][metric]
        assert (interval.mean, interval.n, interval.users) == (1, 10, 10)
        assert len(result.values["talker"][metric]) == 10
    assert result.difference("other", "talker", "gen_hr@1").mean == -1
    assert result.difference("other", "talker", "gen_hr@1").n == 10
    assert result.metrics["talker"]["hr@1"].n == result.n == 100


def test_lists_of_different_candidates_are_not_paired(examples):
    def predictions(asked):
        both = zip((A, B), asked, strict=True)
        return pl.concat(evaluate([r], e, CATALOGUE, audit=NONE).predictions for r, e in both)

    turned = [replace(e, candidates=e.candidates[::-1]) for e in examples]
    assert evaluate_predictions(predictions([examples, turned]), audit=NONE).n == len(examples)
    others = [*examples[:-1], replace(examples[-1], candidates=("a", "b", "f"))]
    with pytest.raises(DataError, match="'a' and 'b' scored different candidate sets and cannot be compared"):
        evaluate_predictions(predictions([examples, others]), audit=NONE)


def test_predictions_of_different_rows_are_not_paired(examples):
    found = evaluate([A, B], examples, CATALOGUE, audit=NONE).predictions
    with pytest.raises(DataError, match="'a' and 'b' scored different examples"):
        evaluate_predictions(found.with_columns(row=(pl.col("row") + pl.col("ranker").eq("b"))), audit=NONE)


def test_rankers_may_have_answered_fewer_rows(examples):
    frame = evaluate([A, B, C], examples, CATALOGUE, audit=NONE).predictions
    # b misses the first row, and c all but the first.
    kept = frame.filter(pl.col("ranker").replace_strict({"a": 9, "b": 9, "c": 1}) > pl.col("row"))
    kept = kept.filter((pl.col("ranker") != "b") | (pl.col("row") > 0))
    result = evaluate_predictions(kept, compare=[("b", "a"), ("c", "a"), ("c", "b")], known_items={"a"}, audit=NONE)
    rest = evaluate([A, B], examples[1:], CATALOGUE, audit=NONE)
    assert result.metrics["b"] == rest.metrics["b"]
    assert result.metrics["a"] == evaluate([A], examples, CATALOGUE, audit=NONE).metrics["a"]
    for metric in rest.measured:
        ours, theirs = result.difference("b", "a", metric), rest.difference("b", "a", metric)
        assert (ours.mean, ours.n) == (theirs.mean, 3)
        assert result.difference("c", "a", metric).n == 1
    assert {(c.ranker, c.against) for c in result.comparisons} == {("b", "a"), ("c", "a")}
    groups = {name: list(g.metrics) for name, g in result.groups.items()}
    assert groups == {"warm": ["a", "b", "c"], "new": ["a", "b"]}
    json.dumps(result.to_json(), allow_nan=False)


def test_comparisons_of_a_table_are_corrected_together(examples):
    many = [replace(e, user_id=f"{e.user_id}{n}") for n in range(9) for e in examples]
    found = evaluate([A, B, C], many, CATALOGUE, compare="a", audit=NONE).comparisons
    family = [c for c in found if c.metric == "ndcg@10"]
    assert len(family) == 2
    assert [c.adjusted_p for c in family] == holm([c.p_value for c in family])
    assert [c.stands for c in family] == [c.adjusted_p < 0.05 for c in family]
    assert all(np.isnan(c.adjusted_p) and not c.stands for c in found if c.metric != "ndcg@10")


def test_rows_by_class_and_count_of_the_target_are_evaluations_of_their_own(examples):
    frame = evaluate([A, B], examples, CATALOGUE, audit=NONE).predictions
    classes = {"a": ("in training", "3–10"), "b": ("in validation only", "1–2"), "d": ("new", "0")}
    columns = {
        "item_id": [*classes],
        "class": [c for c, _ in classes.values()],
        "count": [n for _, n in classes.values()],
    }
    result = evaluate_predictions(frame, ks=(1, 2), items=pl.DataFrame(columns), audit=NONE)
    assert [*result.by_class] == ["in training", "in validation only", "new"]
    assert [*result.by_count] == ["0", "1–2", "3–10"]
    for item, (name, count) in classes.items():
        rows = [e for e in examples if e.target == item]
        alone = evaluate([A, B], rows, CATALOGUE, ks=(1, 2), audit=NONE)
        for group in (result.by_class[name], result.by_count[count]):
            assert (group.metrics, group.expected) == (alone.metrics, alone.expected)
            assert (group.n, group.users) == (alone.n, alone.users)
    again = Evaluation.from_json(json.loads(json.dumps(replace(result, logs={"a": "training"}).to_json())))
    assert (again.by_class, again.by_count, again.logs) == (result.by_class, result.by_count, {"a": "training"})


def test_rows_with_new_targets_are_an_evaluation_of_their_own(examples):
    frame = evaluate([A, B], examples, CATALOGUE, audit=NONE).predictions
    result = evaluate_predictions(frame, ks=(1, 2), known_items={"a", "c"}, audit=NONE)
    for name, rows in (("warm", [examples[0], examples[3]]), ("new", [examples[1], examples[2]])):
        alone, group = evaluate([A, B], rows, CATALOGUE, ks=(1, 2), audit=NONE), result.groups[name]
        assert (group.metrics, group.expected) == (alone.metrics, alone.expected)
        assert (group.n, group.users) == (alone.n, alone.users)
    assert result.groups["new"].expected["hr@1"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert Evaluation.from_json(json.loads(json.dumps(result.to_json(), allow_nan=False))) == result
    assert list(evaluate_predictions(frame, known_items=set("abcdef"), audit=NONE).groups) == ["warm"]
    assert evaluate_predictions(frame, audit=NONE).groups == {}


def test_two_predictions_of_a_row_by_one_ranker_are_refused(examples):
    found = evaluate([A, B], examples, CATALOGUE, audit=NONE).predictions
    twice = pl.concat([found, found.filter(ranker="b")])
    with pytest.raises(DataError, match=r"ranker 'b' has several predictions of row 0; .*rename the ranker of one"):
        evaluate_predictions(twice, audit=NONE)

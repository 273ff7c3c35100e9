"""Grids and the tables that a terminal shows of them: n, intervals, verdict, and their width."""

import io
import re
from dataclasses import replace

import polars as pl
import pytest
from rich.console import Console

from fixed_rankers import CATALOGUE, Fixed
from prefrec.data import RankingExample
from prefrec.evaluation import audit_lists, evaluate, evaluate_predictions
from prefrec.report.tables import (
    MARK,
    Printed,
    audit_table,
    comparisons_note,
    differences_grid,
    groups_grid,
    logs_notes,
    metrics_grid,
    metrics_note,
    outcome_grid,
    outcome_note,
    targets_grids,
)
from verdicts import NONE


class Talker(Fixed):
    """Names its best candidate."""

    def generate(self, examples):
        return [f"Title {min(e.candidates, key=self.order.index)}" for e in examples]


A, B, C = Talker("a", "abcdef"), Talker("b", "bacdef"), Talker("c", "fedcba")


def _rows(n: int) -> list[RankingExample]:
    return [RankingExample(f"u{i}", ("f",), ("a", "b", "c", "d"), "ab"[i % 2]) for i in range(n)]


def _shown(*tables, width: int = 200) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(*tables)
    return out.getvalue()


def test_no_interval_and_fewer_rows_are_shown():
    assert "no interval" in _shown(Printed(metrics_grid(evaluate([A], _rows(1), CATALOGUE, audit=NONE)), "ranker"))
    named = evaluate([A, B], _rows(40), CATALOGUE, audit=NONE).predictions
    columns = [pl.when(pl.col("row") < 10).then(c).alias(c) for c in ("generated", "choice")]
    shown = _shown(Printed(metrics_grid(evaluate_predictions(named.with_columns(columns), audit=NONE)), "ranker"))
    assert shown.count("n = 10") == 2 * 2
    assert "HR@1 generated" in shown


@pytest.mark.parametrize("width", [60, 120])
def test_all_tables_fit_into_the_terminal(width):
    orders = {"window co-occurrence": "abcdef", "retrieve-then-rank": "badcfe", "s-dpo": "fedcba"}
    rankers = [Talker(name, order) for name, order in orders.items()]
    frame = evaluate(rankers, _rows(60), CATALOGUE, generate=False, audit=NONE).predictions
    pairs = [("retrieve-then-rank", "window co-occurrence"), ("s-dpo", "window co-occurrence")]
    lists = evaluate_predictions(frame, compare=pairs, known_items={"a"}, audit=NONE)
    lists = replace(lists, best_reference="window co-occurrence")
    rest = frame.filter(pl.col("ranker") != "s-dpo")
    full = evaluate_predictions(rest, compare=pairs[:1], known_items={"a"}, audit=NONE)
    metrics = ["hr@1", "ndcg@10"]
    log = pl.DataFrame({"user_id": ["x", "y"], "item_id": ["a", "b"], "timestamp": [1, 2]})
    shown = _shown(
        Printed(metrics_grid(lists, full, metrics), "ranker", metrics_note(lists, full)),
        Printed(metrics_grid(lists, full), "ranker"),
        Printed(groups_grid(lists, full, ["ndcg@10"]), "ranker"),
        Printed(differences_grid(lists.comparisons, metrics), "ranker − against", comparisons_note(lists)),
        audit_table(audit_lists(_rows(8), _rows(8), CATALOGUE, log)),
        width=width,
    )
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width
    assert "…" not in shown
    assert not re.search(r"\[[^\]]*$", shown, flags=re.MULTILINE)  # no interval is broken
    text = " ".join(shown.split())
    compared = "Models are compared with window co-occurrence"
    for part in (compared, "n = 60 examples of 60 users", "p < 0.05", "Audit: "):
        assert part in text


def test_columns_that_compare_nothing_are_left_out():
    """Of lists of four the first five are all; of one ranker, or if nothing differs, columns stay."""
    both, alone = (evaluate(of, _rows(3), CATALOGUE, ks=[1, 4], audit=NONE) for of in ([A, B], [A]))
    assert {own["hr@4"].mean for own in both.metrics.values()} == {1.0}
    assert "HR@1" in metrics_grid(both).columns
    assert "HR@4" not in metrics_grid(both).columns
    assert "HR@4" in metrics_grid(alone).columns
    assert "HR@4" in metrics_grid(both, metrics=["hr@4"]).columns


def test_groups_need_rows_of_both_kinds():
    frame, few = (evaluate([A], _rows(n), CATALOGUE, audit=NONE).predictions for n in (40, 38))
    both = evaluate_predictions(frame, known_items={"a"}, audit=NONE)
    assert [heading for heading in groups_grid(both).columns if "new" in heading]
    assert groups_grid(evaluate_predictions(frame, known_items={"a", "b"}, audit=NONE)) is None
    assert groups_grid(evaluate_predictions(few, known_items={"a"}, audit=NONE)) is None  # 19 rows of each kind


def test_tables_by_class_and_count_of_targets_omit_groups_with_few_rows():
    items = pl.DataFrame({"item_id": ["a", "b"], "class": ["in training", "new"], "count": ["3–10", "0"]})
    frame, few = (evaluate([A, B], _rows(n), CATALOGUE, audit=NONE).predictions for n in (40, 38))
    lists, full = (evaluate_predictions(frame, audit=NONE, items=some) for some in (items, items))
    grids = dict(targets_grids(lists, full, ["ndcg@10"]))
    assert [*grids] == [
        "Targets by class",
        "Targets by known interactions",
        "Targets by class, full ranking",
        "Targets by known interactions, full ranking",
    ]
    assert grids["Targets by class"].columns == ["NDCG@10, in training (n = 20)", "NDCG@10, new (n = 20)"]
    assert grids["Targets by known interactions"].columns == ["NDCG@10, 0 (n = 20)", "NDCG@10, 3–10 (n = 20)"]
    assert targets_grids(evaluate_predictions(few, audit=NONE, items=items)) == []  # 19 rows of each kind
    assert targets_grids(evaluate_predictions(frame, audit=NONE)) == []


def test_a_table_says_whether_its_rankers_have_read_the_same_log():
    found = evaluate([A, B], _rows(4), CATALOGUE, audit=NONE)
    assert "log" not in metrics_note(found)
    same = replace(found, logs={"a": "training", "b": "training"})
    assert metrics_note(same).endswith("All rankers were trained on the same log: training")
    (note,) = logs_notes({"popularity": "training and validation", "sft": "training"})
    assert note.startswith("The rankers were not trained on the same log")
    assert note.endswith("training and validation: popularity; training: SFT")


def test_a_difference_that_stands_after_the_correction_has_a_mark():
    found = evaluate([A, B, C], _rows(40), CATALOGUE, compare="a", generate=False, audit=NONE)
    shown = [replace(c, adjusted_p=p) for c, p in zip(found.comparisons, [0.01, 0.2] * 9, strict=False)]
    grid = differences_grid([c for c in shown if c.metric == "ndcg@10"])
    marked = {name: MARK in cells[0].text for name, cells, _ in grid.rows}
    assert marked == {f"{c.ranker} − a": c.stands for c in shown if c.metric == "ndcg@10"}
    assert f"{MARK} p < 0.05 after Holm’s correction for the 2 comparisons of NDCG@10" in comparisons_note(found)
    one = replace(found, comparisons=[c for c in found.comparisons if c.ranker == "b"])
    assert "after Holm’s correction for the one comparison of NDCG@10" in comparisons_note(one)
    alone = replace(found, comparisons=[c for c in found.comparisons if c.metric == "mrr"])
    assert MARK not in comparisons_note(alone)


def test_a_mean_over_fewer_rows_is_not_the_best():
    both = [Talker("a", "bacdef"), Talker("b", "abcdef")]
    frame = evaluate(both, _rows(40), CATALOGUE, generate=False, audit=NONE).predictions
    some = evaluate_predictions(frame.filter((pl.col("ranker") == "a") | (pl.col("row") < 9)), ks=[1], audit=NONE)
    cells = {name: row[-1] for name, row, _ in metrics_grid(some, metrics=["mrr"]).rows}
    assert some.metrics["b"]["mrr"].mean > some.metrics["a"]["mrr"].mean
    assert (cells["a"].style, cells["b"].style) == ("best", "")
    assert "n = 9" in cells["b"].small


def test_the_outcome_has_a_line_for_each_ranker_and_pair_and_counts_the_baselines_that_it_folds():
    baselines = {"random": "fedcba", "popularity": "dcbafe", "item-kNN": "bacdef", "EASE": "cbadef"}
    names = baselines | {"sft": "badcef", "s-dpo": "abcdef", "blend": "abdcef"}
    frame = evaluate([Fixed(n, order) for n, order in names.items()], _rows(60), CATALOGUE, audit=NONE).predictions
    pairs = [("s-dpo", "sft"), ("s-dpo", "item-kNN"), ("blend", "item-kNN"), ("blend", "blend without sft")]
    less = frame.filter(pl.col("ranker") == "sft").with_columns(pl.lit("blend without sft").alias("ranker"))
    block = evaluate_predictions(pl.concat([frame, less]), compare=pairs, audit=NONE)
    block = replace(block, best_reference="item-kNN")
    block.metrics.pop("blend without sft")  # as in a run, where it is only compared
    grid, hidden = outcome_grid(block, ["ndcg@10", "hr@1"], ["popularity", "item-kNN"])
    assert hidden == 2
    assert [name for name, *_ in grid.rows] == ["popularity", "item-kNN", "SFT", "S-DPO", "blend", "S-DPO − SFT"]
    gain = next(c for c in block.comparisons if (c.ranker, c.against, c.metric) == ("s-dpo", "sft", "ndcg@10"))
    cells = {name: cells for name, cells, _ in grid.rows}
    assert [cell.text for cell in cells["S-DPO − SFT"][:2]] == ["–", "–"]
    assert cells["S-DPO − SFT"][2].text.startswith(f"{gain.mean:+.3f}".replace("-", "−"))
    assert cells["SFT"][2].text == "–"  # it was not compared with the best baseline
    assert cells["S-DPO"][2].text != "–"
    shown = _shown(Printed(grid, "ranker"), width=80)
    assert len(shown.splitlines()) == 2 + len(grid.rows)  # heading, rule, and one line for each
    note = outcome_note(block, "ndcg@10")
    assert "n = 60 examples of 60 users" in note
    assert "difference: NDCG@10 over item-kNN, the best baseline" in note

"""Trial E1's tables: which arms are compared, by which values, and histories of other users."""

import math

import numpy as np
import polars as pl
import pytest

from prefrec.data import RankingExample
from prefrec_lab.trials import budget_answers
from prefrec_lab.trials.budget_answers import (
    RANKED,
    SWAPPED,
    Budget,
    best_arms,
    budgets_of,
    by_seed,
    declared,
    divergence,
    known,
    means_of,
    ranked,
    swapped,
)


def test_a_swapped_history_is_that_of_the_next_other_user():
    rows = [RankingExample(u, (f"{u}{n}",), ("a", "b"), "a") for u, n in [("x", 1), ("x", 2), ("y", 1), ("z", 1)]]
    found = swapped(rows)
    assert [e.history for e in found] == [("y1",), ("y1",), ("z1",), ("x1",)]
    assert [(e.user_id, e.candidates, e.target) for e in found] == [(e.user_id, e.candidates, e.target) for e in rows]


def answers(users=2, **hits):
    """Two targets of each user; the hits of each ranker are repeated for all users."""
    frames = []
    for name, own in hits.items():
        values = pl.Series(own * users, dtype=pl.Float64)
        frame = pl.DataFrame({"row": range(2 * users), "target": [f"item {n}" for n in range(2 * users)]})
        frame = frame.with_columns(user_id=pl.col("row") // 2, ranker=pl.lit(name.replace("_", "-")))
        frames.append(frame.with_columns(**{"hr@1": values, "ndcg@10": values, "kl": values}))
    return pl.concat(frames)


def test_the_best_arm_of_each_objective_has_the_highest_hit_rate():
    tried = answers(sft=[1, 1], s_dpo_low=[0, 0], s_dpo_high=[1, 0], sft_more_low=[1, 1], sft_more=[0, 1])
    assert best_arms(tried) == {"S-DPO": "s-dpo-high", "SFT continued": "sft-more-low"}
    gains = pl.when(pl.col("ranker") == "sft-more").then(2.0).otherwise(0.0)
    tied = tried.with_columns(**{"hr@1": pl.lit(0.5), "ndcg@10": gains})
    assert best_arms(tied)["SFT continued"] == "sft-more"


def test_sft_is_compared_with_rules():
    values = answers(popularity=[1, 1], sft=[0, 1]).with_columns(kl=pl.lit(float("nan")))
    values = pl.concat([values, values.filter(ranker="sft").with_columns(ranker=pl.lit(SWAPPED), kl=pl.lit(0.25))])
    means = means_of([values])
    table = ranked(means, "title", RANKED)
    assert table["columns"] == ["model", "HR@1", "NDCG@10", "KL to SFT"]
    cells = {row[0]: row[1:] for row in table["rows"]}
    assert cells["popularity"][0].startswith("1.000")
    assert (cells["popularity"][-1], cells[SWAPPED][-1]) == ("–", "0.250")
    gaps = {row[0]: row[1] for row in known(means, "title")["rows"]}
    assert gaps["SFT − popularity"].startswith("−0.5000")
    assert gaps["SFT − histories of other users"].startswith("+0.0000")


def test_the_value_of_an_example_is_its_mean_over_the_seeds():
    seeds = [answers(sft=[1, 1]), answers(sft=[0, 1])]
    np.testing.assert_array_equal(means_of(seeds).values["sft", "hr@1"], [0.5, 1, 0.5, 1])
    np.testing.assert_array_equal(by_seed(seeds, "sft", "hr@1"), [[1, 1, 1, 1], [0, 1, 0, 1]])
    with pytest.raises(AssertionError):
        means_of([seeds[0], seeds[1].with_columns(target=pl.lit("another"))])


ARMS = {"sft": [0, 0], "softmax": [0, 1], "sft_more": [0, 0]}


def test_arms_chosen_on_validation_are_compared_on_test_examples(tmp_path, monkeypatch):
    monkeypatch.setattr(budget_answers, "ANSWERS", tmp_path)
    budgets = [Budget("movielens", "all", 300), Budget("movielens", "200", 300)]
    for budget in budgets:
        name = f"{budget.users}-{budget.rows}-0.parquet"
        tried = answers(20, **ARMS, s_dpo_low=[0, 0], s_dpo_high=[0, 1])
        tried.write_parquet(tmp_path / f"e1-movielens-validation-{name}")
        tested = answers(20, **ARMS, s_dpo_low=[1, 1], s_dpo_high=[0, 1])
        tested = tested.with_columns(pl.when(pl.col("row") == 0).then(0.0).otherwise(pl.col("hr@1")).alias("hr@1"))
        tested.write_parquet(tmp_path / f"e1-movielens-test-{name}")
    assert budgets_of("movielens", "test") == budgets
    others = ("SFT continued", "softmax")
    rows = declared([[(budget, other) for budget in budgets] for other in others], "test", "title")["rows"]
    assert [row[0] for row in rows] == [
        f"{budget} histories: S-DPO − {x}" for x in others for budget in ("all", "200")
    ]
    assert all(row[1] == "s-dpo-high" for row in rows)
    assert [row[6] for row in rows] == ["above 0", "above 0", "equivalent", "equivalent"]
    assert all(float(row[5]) >= float(row[4]) for row in rows)


def test_a_seed_that_says_the_opposite_takes_the_finding_away(tmp_path, monkeypatch):
    monkeypatch.setattr(budget_answers, "ANSWERS", tmp_path)
    first, second = answers(8, **ARMS, s_dpo=[0, 1]), answers(8, **ARMS | {"sft_more": [0, 1]}, s_dpo=[0, 0])
    for split in ("validation", "test"):
        first.write_parquet(tmp_path / f"e1-movielens-{split}-all-300-0.parquet")
    family = [(Budget("movielens", "all", 300), "SFT continued")]
    assert declared([family], "test", "title")["rows"][0][6] == "above 0"
    # A further seed has no validation examples: the first one has chosen the arms.
    second.write_parquet(tmp_path / "e1-movielens-test-all-300-1.parquet")
    row = declared([family], "test", "title")["rows"][0]
    assert row[3].startswith("+0.0000")
    assert float(row[4]) > 0.9
    assert "SFT on all histories, 16 test examples, 2 seeds" in [t["title"] for t in budget_answers.all_tables()]


def test_a_larger_dose_has_tables_and_a_family_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(budget_answers, "ANSWERS", tmp_path)
    arms = ARMS | {"dpo": [0, 1], "s_dpo": [0, 1]}
    for split in ("validation", "test"):
        answers(8, **arms).write_parquet(tmp_path / f"e1-movielens-{split}-all-300-0.parquet")
        answers(4, **arms).write_parquet(tmp_path / f"e1-movielens-{split}-all-1000-0.parquet")
    titles = {table["title"]: [row[0] for row in table["rows"]] for table in budget_answers.all_tables()}
    study = titles["The declared differences, test examples"]
    assert study == ["all histories: S-DPO − SFT continued", "all histories: S-DPO − softmax"]
    assert titles["The declared differences, test examples, larger dose"] == [
        f"all histories, 1,000 examples an arm: S-DPO − {other}" for other in ("SFT continued", "softmax", "DPO")
    ]
    assert "SFT on all histories, 16 test examples" in titles
    assert "SFT on all histories, 1,000 examples an arm, 8 test examples" in titles


def test_other_data_have_tables_and_families_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(budget_answers, "ANSWERS", tmp_path)
    for data, users in (("movielens", 8), ("lastfm", 4)):
        for split in ("validation", "test"):
            answers(users, **ARMS, s_dpo=[0, 1]).write_parquet(tmp_path / f"e1-{data}-{split}-all-300-0.parquet")
    titles = [table["title"] for table in budget_answers.all_tables()]
    assert titles[:2] == ["The declared differences, test examples", "SFT on all histories, 16 test examples"]
    own = [title for title in titles if "LastFM" in title]
    assert own[0] == "The declared differences, test examples, LastFM"
    assert own[1] == "SFT on all histories, 8 test examples, LastFM"
    assert len(own) == len(titles) / 2


def test_how_far_an_arm_has_moved_is_the_divergence_of_its_probabilities_of_the_list():
    same, other = [[0.0, math.log(3)], [5.0, 5.0]], [[7.0, 7.0], [5.0, 5.0]]
    frame = pl.DataFrame({"ranker": [*["sft"] * 2, *["dpo"] * 2], "scores": [*same, *other]})
    np.testing.assert_allclose(divergence(frame, "sft"), [0, 0], atol=1e-12)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    np.testing.assert_allclose(divergence(frame, "dpo"), [expected, 0], atol=1e-12)

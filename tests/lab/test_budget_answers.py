"""Trial E1's tables: which arms are compared, by which values, and histories of other users."""

import math
import sys
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.data import RankingExample

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
from budget_answers import best_arms, divergence, swapped, tables


def test_a_swapped_history_is_that_of_the_next_other_user():
    rows = [RankingExample(u, (f"{u}{n}",), ("a", "b"), "a") for u, n in [("x", 1), ("x", 2), ("y", 1), ("z", 1)]]
    found = swapped(rows)
    assert [e.history for e in found] == [("y1",), ("y1",), ("z1",), ("x1",)]
    assert [(e.user_id, e.candidates, e.target) for e in found] == [(e.user_id, e.candidates, e.target) for e in rows]


def answers(**hits):
    """Two users with two targets each; the hits of each ranker are its generated ones, all texts are valid."""
    frames = []
    for name, own in hits.items():
        values = pl.Series(own, dtype=pl.Float64)
        frame = pl.DataFrame({"row": [0, 1, 2, 3], "user_id": [*"uuvv"], "target": [*"abcd"]})
        frame = frame.with_columns(ranker=pl.lit(name.replace("_", "-")), **{"hr@1": values, "ndcg@10": values})
        text = values if name not in ("popularity",) else pl.Series([float("nan")] * 4)
        frames.append(frame.with_columns(**{"gen_hr@1": text, "valid_ratio": text * 0 + 1, "kl": text}))
    return pl.concat(frames)


def test_the_best_arm_of_each_objective_is_the_one_that_generates_best():
    tried = answers(
        sft=[1, 1, 1, 1],
        s_dpo_low=[0, 0, 0, 1],
        s_dpo_high=[1, 1, 1, 0],
        sft_more_low=[1, 0, 1, 0],
        sft_more=[0, 0, 0, 1],
    )
    assert best_arms(tried) == {"S-DPO": "s-dpo-high", "SFT continued": "sft-more-low"}
    ranked = pl.when(pl.col("ranker") == "sft-more").then(2.0).otherwise(0.0)
    tied = tried.with_columns(**{"gen_hr@1": pl.lit(0.5), "ndcg@10": ranked})
    assert best_arms(tied)["SFT continued"] == "sft-more"


def test_sft_is_compared_with_rules_and_the_chosen_arms_with_each_other():
    found, compared = tables(
        answers(
            popularity=[1, 1, 1, 1],
            sft=[0, 0, 1, 0],
            s_dpo_low=[1, 1, 1, 1],
            s_dpo_high=[1, 1, 1, 0],
            sft_more_low=[1, 0, 1, 0],
        ),
        "title",
        {"S-DPO": "s-dpo-high", "SFT continued": "sft-more-low"},  # chosen on other examples
    )
    cells = {row[0]: row[1:] for row in found["rows"]}
    assert cells["popularity"][:2] == ["–", "–"]
    assert cells["popularity"][2].startswith("1.000")
    assert cells["s-dpo-high"][0].startswith("0.750")
    assert cells["s-dpo-high"][-2].startswith("+0.5000")
    rule, ours = compared["rows"]
    assert rule[:4] == ["SFT − popularity", "sft", "popularity", "–"]
    assert rule[4].startswith("−0.7500")
    assert ours[:3] == ["S-DPO − SFT continued", "s-dpo-high", "sft-more-low"]
    assert ours[3].startswith("+0.2500")


def test_how_far_an_arm_has_moved_is_the_divergence_of_its_probabilities_of_the_list():
    same, other = [[0.0, math.log(3)], [5.0, 5.0]], [[7.0, 7.0], [5.0, 5.0]]
    frame = pl.DataFrame({"ranker": [*["sft"] * 2, *["dpo"] * 2], "scores": [*same, *other]})
    np.testing.assert_allclose(divergence(frame, "sft"), [0, 0], atol=1e-12)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    np.testing.assert_allclose(divergence(frame, "dpo"), [expected, 0], atol=1e-12)

"""`prefrec explain`: what machines get, and the same answers as in Python."""

import json

import pytest

from command import refused, succeed
from prefrec.pipeline.opened import open_run
from prefrec.recommend.explain import leave_one_out
from prefrec.recommender import Recommender


def test_json_holds_what_leave_one_out_says(adapted_run):
    answer = json.loads(succeed("explain", adapted_run, "--row", 3, "--ranker", "s-dpo", "--json"))
    opened = open_run(adapted_run)
    example = opened.data.test[3]
    asked = (answer["ranker"], answer["split"], answer["row"], answer["user_id"], answer["item_id"])
    assert asked == ("s-dpo", "test", 3, example.user_id, example.target)
    ranker = opened.ranker("s-dpo")
    want = leave_one_out(ranker, example, example.target)
    assert [item["item_id"] for item in answer["history"]] == list(example.history)
    assert [item["effect"] for item in answer["history"]] == pytest.approx([d for _, d in want])
    (scores,) = ranker.score([example])
    assert (answer["rank"], answer["of"]) == (1 + (scores > scores[example.target_index]).sum(), 6)
    assert answer["score"] == pytest.approx(scores[example.target_index])


def test_a_row_a_model_and_a_title_of_ones_own(adapted_run):
    opened = open_run(adapted_run)
    example = opened.data.validation[5]
    title = next(t for i, t in opened.data.catalogue.titles.items() if i not in example.candidates)
    asked = ("--row", 5, "--split", "validation", "--ranker", "sft", "--item", title)
    answer = json.loads(succeed("explain", adapted_run, *asked, "--json"))
    assert (answer["ranker"], answer["row"], answer["title"]) == ("sft", 5, title)
    assert "rank" not in answer
    assert len(answer["history"]) == len(example.history)
    assert title in succeed("explain", adapted_run, *asked)


@pytest.mark.parametrize("ranker", ["s-dpo", "item-kNN", "fused"])
def test_a_history_and_a_user_are_explained_as_in_python(run_with_rankers, ranker):
    asked = ("explain", run_with_rankers, "--ranker", ranker, "--item", "Wild Night", "--user", "u03")
    answer = json.loads(succeed(*asked, "--history", "red emma", "--history", "i7", "--json"))
    want = Recommender.from_run(run_with_rankers, ranker).explain(["Red Emma", "i7"], "Wild Night", user="u03")
    assert answer == json.loads(json.dumps(want.to_dict()))
    assert [row["item_id"] for row in answer["history"]][-2:] == ["i2", "i7"]
    printed = succeed(*asked)
    assert f"{ranker}: Wild Night has the score" in printed
    assert all(part in printed for part in want[0].parts)
    assert ("sft" in want[0].parts) == (ranker == "fused")


def test_what_is_missing_is_named(adapted_run):
    assert "give either --row, or --history or --user" in refused("explain", adapted_run, "--item", "Red Eye")
    assert "name the item to explain with --item" in refused("explain", adapted_run, "--user", "u03")
    asked = ("--user", "u03", "--item", "Red Eye", "--split", "train")
    assert "--split is the split of --row" in refused("explain", adapted_run, *asked)

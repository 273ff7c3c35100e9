"""`prefrec explain`: what machines get."""

import json

import pytest

from command import succeed
from prefrec.pipeline.opened import open_run
from prefrec.rankers.explain import leave_one_out


def test_json_holds_what_leave_one_out_says(adapted_run):
    answer = json.loads(succeed("explain", adapted_run, "--row", 3, "--json"))
    opened = open_run(adapted_run)
    example = opened.data.test[3]
    asked = (answer["ranker"], answer["split"], answer["row"], answer["user_id"], answer["target"])
    assert asked == ("s-dpo", "test", 3, example.user_id, example.target)
    ranker = opened.ranker("s-dpo")
    want = leave_one_out(ranker, example)
    assert [item["item_id"] for item in answer["history"]] == list(example.history)
    assert [item["delta_logp"] for item in answer["history"]] == pytest.approx([d for _, d in want])
    (scores,) = ranker.score([example])
    assert (answer["rank"], answer["of"]) == (1 + (scores > scores[example.target_index]).sum(), 6)
    assert 0 < answer["share"] < 1


def test_a_user_a_model_and_a_title_of_ones_own(adapted_run):
    opened = open_run(adapted_run)
    example = opened.data.validation[5]
    title = next(t for i, t in opened.data.catalogue.titles.items() if i not in example.candidates)
    asked = ("--user", example.user_id, "--split", "validation", "--ranker", "sft", "--target", title)
    answer = json.loads(succeed("explain", adapted_run, *asked, "--json"))
    assert (answer["ranker"], answer["row"], answer["title"], answer["rank"]) == ("sft", 5, title, None)
    assert len(answer["history"]) == len(example.history)
    assert title in succeed("explain", adapted_run, *asked)

"""`prefrec explain` on a tiny run: what is printed, what machines get, and what is refused."""

import json

import pytest

from command import succeed
from prefrec.pipeline.opened import open_run
from prefrec.rankers.explain import leave_one_out
from tiny_run import write_recipe


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    """A run of the tiny recipe, with the S-DPO alignment alone; to be read only."""
    folder = tmp_path_factory.mktemp("explain")
    align = place.recipe["align"][1:]
    evaluate = {"rows": 6, "zero_shot": False, "references": []}
    succeed("run", write_recipe(folder, place.recipe, align=align, evaluate=evaluate), "--out", folder / "run")
    return folder / "run"


def test_json_holds_what_leave_one_out_says(run):
    answer = json.loads(succeed("explain", run, "--row", 3, "--json"))
    opened = open_run(run)
    example = opened.data.test[3]
    assert answer["ranker"] == "s-dpo"
    assert (answer["user_id"], answer["target"], answer["split"], answer["row"]) == (
        example.user_id,
        example.target,
        "test",
        3,
    )
    got = [(item["item_id"], item["delta_logp"]) for item in answer["history"]]
    want = leave_one_out(opened.ranker("s-dpo"), example)
    assert [i for i, _ in got] == list(example.history)
    assert [d for _, d in got] == pytest.approx([d for _, d in want])
    ranks = opened.predictions().filter(ranker="s-dpo", row=3)
    assert (answer["rank"], answer["of"]) == (ranks["rank"][0], 6)
    assert 0 < answer["share"] < 1


def test_a_user_a_model_and_a_title_of_ones_own(run):
    opened = open_run(run)
    example = opened.data.validation[5]
    title = next(t for i, t in opened.data.catalogue.titles.items() if i not in example.candidates)
    asked = ("--user", example.user_id, "--split", "validation", "--ranker", "sft", "--target", title)
    answer = json.loads(succeed("explain", run, *asked, "--json"))
    assert (answer["ranker"], answer["row"], answer["title"], answer["rank"]) == ("sft", 5, title, None)
    assert len(answer["history"]) == len(example.history)

"""`prefrec explain` on a tiny run: what is printed, what machines get, and what is refused."""

import json

import pytest

from command import prefrec, succeed
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


def test_people_get_a_table(run):
    opened = open_run(run)
    example = opened.data.test[0]
    out = succeed("explain", run, "--user", example.user_id)
    titles = opened.data.catalogue.titles
    assert f"s-dpo on test row 0 (user {example.user_id}): {titles[example.target]}, rank " in out
    for item in example.history:
        assert titles[item] in out
    assert "log-probability of the title with the item − without it, oldest item first" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: give either --user or --row"),
        (("--user", "u01", "--row", 0), "error: give either --user or --row"),
        (("--user", "nobody"), "error: user 'nobody' has no test example in"),
        (("--row", 40), "error: row 40: the test split of"),
        (("--row", 0, "--split", "all"), "error: unknown split 'all'"),
        (("--row", 0, "--ranker", "dpo"), "no trained model 'dpo'; there are sft, s-dpo"),
        (("--row", 0, "--target", "Red Alein"), "error: no item with title or id 'Red Alein'"),
    ],
)
def test_refused(run, options, message):
    done = prefrec("explain", run, *options)
    assert (done.code, done.out) == (1, "")
    assert message in done.err
    assert "Traceback" not in done.err


def test_no_run_no_answer(tmp_path):
    done = prefrec("explain", tmp_path / "none", "--row", 0)
    assert done.code == 1
    assert "no such folder" in done.err

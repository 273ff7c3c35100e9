"""A run on a log of habits: repeats are kept, measured apart, blended, served and exported."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import prefrec
from command import succeed
from habits import grocery
from prefrec.evaluation.targets import NEW_TO_USER, REPEAT
from prefrec.pipeline.opened import open_run
from prefrec.recommend.succession import _rows, compare_served
from prefrec.recommender import Recommender

USERS = 160
RECIPE = {
    "evaluate": {"references": ["popularity", "buy again", "window co-occurrence"], "zero_shot": False},
    "rankers": [{"kind": "blend", "parts": ["buy again", "window co-occurrence"]}],
    "refit": True,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grocery") / "run"
    prefrec.fit(*grocery(users=USERS), RECIPE, out=folder)
    return folder


@pytest.fixture(scope="module")
def rec(folder):
    return Recommender.from_run(folder, "blend")


def _seen(rec, user):
    return {i for log in rec.data.logs for i in log.filter(log["user_id"] == user)["item_id"]}


def test_fit_keeps_the_repeats_that_it_sees(folder):
    data = open_run(folder).recipe.data
    longest = grocery(users=USERS)[0].group_by("user_id").len()["len"].max()
    assert (data.repeats, data.history_length) == ("keep", longest - 1)
    assert open_run(folder).data.keeps_repeats


def test_repeat_and_new_targets_are_measured_apart(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("evaluation", "full_catalogue"):
        whole, groups = metrics[name], metrics[name]["by_repeat"]
        assert [*groups] == [REPEAT, NEW_TO_USER]
        assert sum(group["n"] for group in groups.values()) == whole["n"] == USERS
        assert groups[REPEAT]["n"] > groups[NEW_TO_USER]["n"] > 0
    full = metrics["full_catalogue"]

    def reached(ranker, block=full):
        return block["metrics"][ranker]["ndcg@10"]["mean"]

    assert reached("buy again", full["by_repeat"][NEW_TO_USER]) < 0.01
    assert reached("popularity", full["by_repeat"][REPEAT]) < reached("buy again", full["by_repeat"][REPEAT])
    assert min(reached("buy again"), reached("blend")) > reached("popularity")
    page = (folder / "report.html").read_text()
    assert "Targets by repeats, full ranking" in page
    assert "ranked among all items" in page
    assert "all unseen items" not in page


def test_items_that_a_user_has_are_recommended_unless_a_rule_excludes_them(rec):
    seen = _seen(rec, "u0003")
    usual = [line.item_id for line in rec.recommend(user="u0003", k=10)]
    assert len(seen & {*usual}) > 5
    assert seen.isdisjoint(line.item_id for line in rec.recommend(user="u0003", k=10, exclude_seen=True))
    assert [line.item_id for line in rec.recommend(user="u0003", k=10, exclude_seen=False)] == usual
    everyone = rec.recommend_all(k=10)
    assert everyone.filter(everyone["user_id"] == "u0003")["item_id"].to_list() == usual
    (block,) = rec.recommend_blocks(k=10, users="u0003")
    assert block["item_id"].to_list() == usual
    without = rec.recommend_all(k=10, users="u0003", exclude_seen=True)
    assert seen.isdisjoint(without["item_id"])


def test_runs_are_compared_by_answers_that_may_hold_what_a_user_has(folder, tmp_path):
    run = open_run(shutil.copytree(folder, tmp_path / "run"))
    rec, (rows, _) = Recommender.from_run(folder), _rows(run, run, 20)
    served = [rec.recommend([*e.history], 10) for e in rows]
    gains = [
        sum(1 / np.log2(line.rank + 1) for line in one if line.item_id == e.target)
        for one, e in zip(served, rows, strict=True)
    ]
    assert any({line.item_id for line in one} & {*e.history} for one, e in zip(served, rows, strict=True))
    assert compare_served(run, run, 20).new.mean == pytest.approx(np.mean(gains))


def test_a_repeat_after_the_first_log_is_a_new_example_for_it(folder, tmp_path):
    """The pair of a user and an item does not say which of several purchases is the target."""
    before, after = open_run(folder), open_run(shutil.copytree(folder, tmp_path / "run"))
    newer = [replace(e, target=e.history[-1], time=e.time + 86_400) for e in after.data.test[:30]]
    rows, group = _rows(before, replace(after, data=replace(after.data, test=[*after.data.test, *newer])), 1000)
    assert group == "newest test examples"
    assert rows == newer


def test_an_item_is_not_similar_to_itself(rec):
    assert "i000" not in [line.item_id for line in rec.similar("i000", k=80)]


def test_the_command_line_recommends_and_excludes_them(folder, rec):
    told = succeed("recommend", str(folder), "--users", "u0003", "--ranker", "blend", "--json")
    assert [line["item_id"] for line in json.loads(told)] == [line.item_id for line in rec.recommend(user="u0003")]
    told = succeed("recommend", str(folder), "--users", "u0003", "--ranker", "blend", "--exclude-seen", "--json")
    assert _seen(rec, "u0003").isdisjoint(line["item_id"] for line in json.loads(told))


def test_an_exported_blend_recommends_them_too(folder, rec, tmp_path):
    succeed("export", str(folder), "--ranker", "blend", "--out", str(tmp_path / "out"))
    exported, history = Recommender.from_pretrained(tmp_path / "out"), ["i000", "i001", "i000", "i002"]
    usual = [line.item_id for line in exported.recommend(history, 5)]
    assert usual == [line.item_id for line in rec.recommend(history, 5)]
    assert {*usual} & {*history}
    assert {*history}.isdisjoint(line.item_id for line in exported.recommend(history, 5, exclude_seen=True))


def test_buy_again_explains_itself_by_its_own_purchases(folder):
    rec = Recommender.from_run(folder, "buy again")
    found = rec.explain(["i000", "i001", "i000"], "i000")
    assert [effect.effect > 0 for effect in found] == [True, False, True]


def test_dropped_repeats_leave_buy_again_out(tmp_path):
    log, items = grocery(users=20)
    rec = prefrec.fit(log, items, RECIPE | {"data": {"repeats": "drop"}}, out=tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "buy again" not in metrics["full_catalogue"]["metrics"]
    assert "buy again" not in metrics["full_catalogue"]["logs"]
    assert metrics["full_catalogue"]["by_repeat"] == {}
    assert _seen(rec, "u0003").isdisjoint(line.item_id for line in rec.recommend(user="u0003"))

"""A run on a log of habits: repeats are kept, measured apart, blended, served and exported."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

import prefrec
from command import succeed
from habits import grocery
from prefrec.data import Query
from prefrec.data.seen import items_before
from prefrec.evaluation.metrics import metrics_for, target_ranks
from prefrec.evaluation.targets import NEW_TO_USER, REPEAT
from prefrec.pipeline import best as module
from prefrec.pipeline.opened import open_run
from prefrec.rankers.baselines import PopularityRanker
from prefrec.recommend.questions import logged_users
from prefrec.recommend.succession import _rows, compare_served
from prefrec.recommender import Recommender
from prefrec_server.bodies import RecommendRequest
from prefrec_server.server import open_engine

USERS = 160
RECIPE = {
    "evaluate": {"baselines": ["popularity", "buy again", "window co-occurrence"], "zero_shot": False},
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
    assert "blend without own past" in json.dumps(full["comparisons"])
    page = (folder / "report.html").read_text()
    assert "Targets by repeats, full ranking" in page
    assert "ranked among all items" in page
    assert "all unseen items" not in page


def _slow_ndcg(ranker, example, hidden, catalogue):
    """NDCG@10 of a target among the items that are not hidden; with ties, the expectation."""
    listed = tuple(i for i in catalogue.ids if i == example.target or i not in hidden)
    scores = ranker.score([replace(example, candidates=listed)])
    return metrics_for([10])["ndcg@10"](*target_ranks(scores, [listed.index(example.target)])).item()


def test_the_default_is_chosen_for_repeats_and_for_new_items(folder):
    run = open_run(folder)
    best, data = run.results.best, run.data
    rows = data.examples("validation", module.ROWS)
    before = items_before(data, rows)
    repeats = [e.target in known for e, known in zip(rows, before, strict=True)]
    assert [*best.by_repeat] == [REPEAT, NEW_TO_USER]
    again, new = best.by_repeat[REPEAT], best.by_repeat[NEW_TO_USER]
    assert {*again.rows.values()} == {sum(repeats)}
    assert {*new.rows.values()} == {len(rows) - sum(repeats)}
    popular = PopularityRanker.fit(data.train_interactions)
    slow = {REPEAT: [], NEW_TO_USER: []}
    for e, known, is_repeat in zip(rows, before, repeats, strict=True):
        hidden = set() if is_repeat else known
        slow[REPEAT if is_repeat else NEW_TO_USER].append(_slow_ndcg(popular, e, hidden, data.catalogue))
    for kind, values in slow.items():
        assert best.by_repeat[kind].values["popularity"] == pytest.approx(np.mean(values))
    assert again.values["buy again"] > again.values["window co-occurrence"]
    assert new.values["buy again"] < new.values["window co-occurrence"]
    assert (run.default(), run.for_new or run.default()) == (best.ranker, new.ranker)
    assert f"for items that are new to the user, {new.ranker} is best ({new.values[new.ranker]:.3f}" in best.sentence
    page = (folder / "report.html").read_text()
    assert f"for repeats, {again.ranker} is best" in page
    table = page[page.index("Which ranker answers") :]
    for kind, of in {"all": best, **best.by_repeat}.items():
        assert f"NDCG@10, {kind} (n = {max(of.rows.values())})" in table
        assert f'<td class="best">{of.values[of.ranker]:.3f}</td>' in table


def test_a_kind_with_few_examples_has_no_default_of_its_own(folder, monkeypatch, tmp_path):
    run = open_run(folder)
    of_kind = {kind: max(of.rows.values()) for kind, of in run.results.best.by_repeat.items()}
    monkeypatch.setattr(module, "FEWEST", of_kind[NEW_TO_USER] + 1)
    stages = [run.stage(name) for name in run.plan.names]
    found = module.best_on_validation(run.recipe, run.data, stages, tmp_path, run.plan.inputs.baselines)
    assert [*found.by_repeat] == [REPEAT]
    assert found == replace(run.results.best, by_repeat=found.by_repeat)


@pytest.fixture(scope="module")
def shelves(folder):
    """The run, with popularity as the default for items that are new to the user."""
    run = open_run(folder)
    best = run.results.best
    new = replace(best.by_repeat[NEW_TO_USER], ranker="popularity")
    best = replace(best, ranker="buy again", leads={"buy again": 0.0}, by_repeat=best.by_repeat | {NEW_TO_USER: new})
    return replace(run, results=replace(run.results, best=best))


@pytest.mark.parametrize(("exclude", "ranker"), [(None, "buy again"), (False, "buy again"), (True, "popularity")])
def test_answers_without_seen_items_are_by_the_for_new_ones(shelves, folder, exclude, ranker):
    rec, named = Recommender.from_run(shelves), Recommender.from_run(folder, ranker)
    want = named.recommend(user="u0003", exclude_seen=exclude)
    found = rec.recommend(user="u0003", exclude_seen=exclude)
    assert (found, found.ranker) == (want, ranker)
    assert rec.recommend([["i000"]], exclude_seen=exclude)[0].ranker == ranker
    everyone = rec.recommend_all(users="u0003", exclude_seen=exclude)
    assert everyone["item_id"].to_list() == [line.item_id for line in want]
    by_name = Recommender.from_run(shelves, "blend").recommend(user="u0003", exclude_seen=exclude)
    assert by_name.ranker == "blend"
    engine = open_engine(shelves)
    assert (engine.rankers[0], engine.for_new) == ("buy again", "popularity")
    asked = engine.recommend(RecommendRequest(user_id="u0003", exclude_seen=exclude))
    answer = asked.answer(engine.submit(asked, 60).result(60))
    engine.close()
    assert (answer.ranker, [line.item_id for line in answer.ranking]) == (ranker, [line.item_id for line in want])


def test_the_command_line_asks_the_default_for_new_items(shelves, monkeypatch):
    monkeypatch.setattr("prefrec.recommender.open_run", lambda folder: shelves)
    for options, ranker in (([], "buy again"), (["--exclude-seen"], "popularity")):
        told = json.loads(succeed("recommend", str(shelves.folder), "--users", "u0003", "--json", *options))
        want = Recommender.from_run(shelves, ranker).recommend(user="u0003", exclude_seen=bool(options))
        assert [line["item_id"] for line in told] == [line.item_id for line in want]


def test_an_export_has_both_defaults(shelves, monkeypatch, tmp_path):
    monkeypatch.setattr("prefrec.cli.export.open_run", lambda folder: shelves)
    succeed("export", str(shelves.folder), "--out", str(tmp_path / "out"))
    exported, rec, history = Recommender.from_pretrained(tmp_path / "out"), Recommender.from_run(shelves), ["i000"]
    for exclude, ranker in ((None, "buy again"), (True, "popularity")):
        found = exported.recommend(history, exclude_seen=exclude)
        assert (found, found.ranker) == (rec.recommend(history, exclude_seen=exclude), ranker)
    assert "and popularity for answers without the items" in " ".join(
        (tmp_path / "out/README.md").read_text().split()
    )
    succeed("export", str(shelves.folder), "--ranker", "buy again", "--out", str(tmp_path / "one"))
    one = Recommender.from_pretrained(tmp_path / "one")
    assert one.recommend(history, exclude_seen=True).ranker == "buy again"


def test_runs_are_compared_by_their_answers_of_both_kinds(shelves, folder, tmp_path):
    after = open_run(shutil.copytree(folder, tmp_path / "run"))
    after = replace(after, results=replace(after.results, best=replace(shelves.results.best, by_repeat={})))
    found = compare_served(shelves, after, 100)
    rows, _ = _rows(shelves, after, 100)
    before = items_before(after.data, rows)
    new = [(e, known) for e, known in zip(rows, before, strict=True) if e.target not in known]
    of_new = found.for_new
    assert (found.before, found.after) == ("buy again", "buy again")
    assert (of_new.before, of_new.after) == ("popularity", "buy again")
    assert (found.difference.mean, of_new.difference.n) == (0, len(new))
    gains = []
    for e, known in new:
        answer = Recommender.from_run(folder, "popularity").recommend([*e.history], 10, deny=known, exclude_seen=True)
        gains.append(sum(1 / np.log2(line.rank + 1) for line in answer if line.item_id == e.target))
    assert of_new.old.mean == pytest.approx(np.mean(gains))
    assert not found.is_worse
    worse = replace(of_new, difference=replace(of_new.difference, high=-0.01))
    assert replace(found, for_new=worse).is_worse
    assert compare_served(shelves, after, 100) == found  # from its file
    assert (
        "For items that are new to the user: The default changes: popularity in run, buy again in run"
        in found.sentence
    )


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


def test_answers_for_users_know_the_times_of_their_purchases(rec):
    """As a question about the user's history does not: it takes purchases to be as far apart as they usually are."""
    past = logged_users(rec.data, ["u0003"])["u0003"]
    assert len(past.times) == len(past.history)
    ids = tuple(rec.data.catalogue.ids)
    query = Query(tuple(past.history), ids, history_times=tuple(past.times))
    (want,) = rec.stage.full.load(8).score([query])
    answer = rec.recommend(user="u0003", k=5)
    everyone = rec.recommend_all(k=5, users=["u0003"])
    for rows in (zip(*((line.item_id, line.score) for line in answer), strict=True), everyone["item_id", "score"]):
        found, scores = map(list, rows)
        np.testing.assert_allclose(scores, [want[ids.index(item)] for item in found], rtol=1e-5)
    assert rec.explain((), found[0], user="u0003").score == pytest.approx(scores[0], rel=1e-5)
    without = [line.score for line in rec.recommend([*past.history], k=5)]
    assert not np.allclose(without, scores, rtol=1e-3)


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

"""`prefrec.Recommender` and `prefrec.fit`: the same answers as the other doors, for all users, and from frames."""

import copy
import gc
import inspect
import json
import pickle
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from typing import get_type_hints
from unittest.mock import Mock

import numpy as np
import pandas as pd
import polars as pl
import pytest

import prefrec
from fixed_rankers import FixedStage
from prefrec import Recommender, recommender
from prefrec.data import Catalogue, UnknownUserError, read_prepared, seen_items, write_prepared
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.export.parts import ABOUT, ITEMS, about_key
from prefrec.export.ranker import export_ranker
from prefrec.files import SEAL, digests
from prefrec.pipeline.opened import open_run
from prefrec.rankers import CatalogueRanker
from prefrec.recommend.explain import leave_one_out
from prefrec.recommend.popular import COUNT, PLACE, Popular
from prefrec.recommend.rules import ItemRules, Rules
from prefrec.recommender import Effect, ItemRuleArguments, Ranked, RuleArguments
from sealed import flip, seal_stage
from slow import slow_logps
from tiny_run import tiny_recipe

HISTORY = ["red emma", "i7", "Old Night"]
IDS = ("i2", "i7", "i19")


@pytest.fixture(scope="module")
def run(run_with_rankers):
    return open_run(run_with_rankers)


@pytest.fixture(scope="module")
def rec(run):
    return Recommender.from_run(run.folder)


def test_recommend_equals_the_slow_twin(rec, run):
    twin = run.ranker("s-dpo")
    titles = [t for i, t in run.data.catalogue.titles.items() if i not in IDS]
    question = twin.encoder.encode(twin.template, run.data.catalogue.titles_of(IDS), [], titles)
    want = slow_logps(twin.model, question).detach().numpy()
    best = np.argsort(-want, kind="stable")[:5]
    answer = rec.recommend(HISTORY, k=5)
    assert [(r.rank, r.title) for r in answer] == [(n, titles[i]) for n, i in enumerate(best, 1)]
    np.testing.assert_allclose([r.score for r in answer], want[best], rtol=1e-4)
    assert answer == rec.recommend([*HISTORY[:2], Ranked(1, "i19", "", 0.0)], 5)


def test_rank_and_explain_equal_the_ranker(rec, run):
    row, lm = run.data.test[0], run.ranker("s-dpo")
    ranked = rec.rank(row.history, row.candidates)
    scores = lm.score([row])[0]
    assert [r.item_id for r in ranked] == [row.candidates[i] for i in np.argsort(-scores, kind="stable")]
    np.testing.assert_allclose([r.score for r in ranked], sorted(scores)[::-1], rtol=1e-5)
    effects = rec.explain(row.history, row.target, row.candidates)
    assert [(e.item_id, pytest.approx(e.effect, abs=1e-4)) for e in effects] == leave_one_out(lm, row, row.target)
    assert rec.rank(HISTORY, []) == []


@pytest.fixture
def exported(run, tmp_path):
    return export_ranker(run, "s-dpo", tmp_path / "exported")


@pytest.mark.parametrize("merged", [True, False])
def test_an_export_answers_as_its_run(rec, run, tmp_path, merged):
    found = Recommender.from_pretrained(export_ranker(run, "s-dpo", tmp_path / "exported", merged=merged))
    for ask in (
        lambda rec: rec.recommend(HISTORY, 5, deny=["i9"]),
        lambda rec: rec.recommend([], 5, deny=["i9"]),
        lambda rec: rec.rank(HISTORY, ["i20", "Cold Men"]),
        lambda rec: rec.explain(HISTORY, "i20", IDS),
    ):
        want, got = ask(rec).frame(), ask(found).frame()
        assert want.select("item_id", "title").equals(got.select("item_id", "title"))
        np.testing.assert_allclose(want[:, -1], got[:, -1], atol=1e-3)
    own = found.recommend_all(histories={"me": HISTORY}, k=2)
    assert own["item_id"].to_list() == [r.item_id for r in rec.recommend(HISTORY, 2)]
    for asked in (lambda: found.recommend(user="u01"), found.recommend_all):
        with pytest.raises(DataError, match="an exported ranker has no log of users: give histories"):
            asked()


def test_an_export_knows_what_is_popular(rec, exported):
    ours, theirs = rec._popular, Recommender.from_pretrained(exported)._popular
    assert (ours.name, ours.ids, ours.position) == (theirs.name, theirs.ids, theirs.position)
    assert ours.ids != rec.data.catalogue.ids
    assert np.array_equal(ours.counts, theirs.counts)


def test_an_export_of_an_earlier_version_answers_without_popularity(rec, exported):
    about = json.loads((exported / ABOUT).read_text())
    del about["popularity"]
    (exported / ABOUT).write_text(json.dumps(about))
    pl.read_parquet(exported / ITEMS).drop(COUNT, PLACE).write_parquet(exported / ITEMS)
    files = json.loads((exported / SEAL).read_text())["files"] | digests(exported, [ITEMS])
    (exported / SEAL).write_text(json.dumps({"files": files, ABOUT: about_key(about)}))
    found = Recommender.from_pretrained(exported)
    assert [row.item_id for row in found.recommend(HISTORY, 5)] == [row.item_id for row in rec.recommend(HISTORY, 5)]
    assert found.recommend([], 5)[0].score < 0  # a log-probability


@pytest.mark.parametrize("name", ["two", "window co-occurrence"])
def test_a_ranker_made_of_others_is_exported_with_them(run, tmp_path, name, capsys):
    moved = export_ranker(run, name, tmp_path / "exported").rename(tmp_path / "elsewhere")
    own, found = Recommender.from_run(run.folder, name), Recommender.from_pretrained(moved)
    want, got = (rec.recommend(HISTORY, 20, deny=["i9"]).frame() for rec in (own, found))
    assert want["item_id"].equals(got["item_id"])
    np.testing.assert_allclose(want["score"], got["score"], rtol=1e-5)
    assert len(want["score"].unique()) > 5
    assert found.recommend([], 20) == own.recommend([], 20)
    with pytest.raises(DataError, match="an exported ranker has no log of users"):
        found.recommend(user="u01")
    texts = b"".join(p.read_bytes() for p in moved.rglob("*") if p.is_file() and "model" not in p.name)
    assert b"u01" not in texts  # no user's name
    assert str(run.recipe.data.interactions.parent).encode() not in texts
    assert "of 40 users, with numbers" in " ".join(capsys.readouterr().err.split())
    assert f"# tiny: {name}" in (moved / "README.md").read_text()


def test_a_damaged_part_is_refused(run, tmp_path):
    exported = export_ranker(run, "fused", tmp_path / "exported")
    (exported / "rankers/fused/blend.json").write_text("{}")
    with pytest.raises(DataError, match=r"export the ranker again \(rankers/fused/blend.json\)"):
        Recommender.from_pretrained(exported)
    with pytest.raises(ConfigError, match="fused is not a language model: export it without --merged"):
        export_ranker(run, "fused", tmp_path / "merged", merged=True)


def test_a_repository_of_the_hub_is_downloaded(exported, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", {"me/films": str(exported)}.__getitem__)
    assert Recommender.from_pretrained("me/films").stage.name == "s-dpo"


def test_what_is_no_export_is_said(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=OSError("offline")))
    with pytest.raises(ModelError, match=r"me/films is not a folder, and it cannot be downloaded .*: offline"):
        Recommender.from_pretrained("me/films")
    about = exported / "prefrec.json"
    moved = json.loads(about.read_text())
    moved["model"]["name"] = str(tmp_path / "gone")
    about.write_text(json.dumps(moved))
    with pytest.raises(ModelError, match=r"prefrec.json: model.name: no model at .*gone"):
        Recommender.from_pretrained(exported)
    for damage in ("{}", "[]", "{", '{"ranker": "x", "model": {"nam": "y"}}'):
        about.write_text(damage)
        with pytest.raises(
            DataError, match="exported was not written by `prefrec export`, or is damaged: export the"
        ):
            Recommender.from_pretrained(exported)
    with pytest.raises(DataError, match="was not written by `prefrec export`"):
        Recommender.from_pretrained(tmp_path)


def test_rows_print_as_tables(rec):
    answer = rec.recommend(HISTORY, 12)
    _, *lines = (" ".join(line.split()) for line in repr(answer).splitlines() if line.startswith("│"))
    assert lines == [f"│ {r.rank} ┆ {r.item_id} ┆ {r.title} ┆ {r.score:.3f} │" for r in answer]
    page = answer._repr_html_()
    assert page.count("<tr>") == 13
    assert "<td>" in page
    assert "&lt;img src=x" in recommender.Rows([Effect("i1", "<img src=x>", 0.5)])._repr_html_()
    assert answer.frame()["title"].to_list() == [r.title for r in answer]


def test_a_user_is_asked_about_with_all_of_the_log_seen(rec, run):
    data, row = run.data, run.data.test[3]
    parts = (data.train_interactions, data.held_out_interactions)
    taken = [item for part in parts for item in part.filter(user_id=row.user_id)["item_id"]]
    assert {*taken} == {*seen_items(data, [row])[0], row.target}
    answer = rec.recommend(user=row.user_id, k=60)
    assert {r.item_id for r in answer} == {*data.catalogue.ids} - {*taken}
    assert answer == rec.recommend(taken[-4:], 60, deny=taken)
    later = rec.recommend(["Red Emma"], 60, user=row.user_id)
    assert later == rec.recommend([*taken[-4:], "Red Emma"], 60, deny=taken)
    with pytest.raises(
        UnknownUserError, match=r"user 'nobody' is not in the run's log: recommend with a history .*popular"
    ):
        rec.recommend(user="nobody")


@pytest.mark.parametrize("name", ["fused", "two"])
def test_other_rankers_answer_as_in_the_table(run, name):
    rec, row = Recommender.from_run(run.folder, name), run.data.test[0]
    rest = tuple(i for i in run.data.catalogue.ids if i not in row.history)
    scores = run.stage(name).full.load(8).score([type(row)("-", row.history, rest, rest[0])])[0]
    position = Popular.of(run.data).position
    best = sorted(range(len(rest)), key=lambda i: (-scores[i], position[rest[i]]))[:6]
    assert [r.item_id for r in rec.recommend(row.history, 6)] == [rest[i] for i in best]
    assert len(rec.rank(row.history, row.candidates)) == 6
    why = rec.explain(row.history, "i5")
    assert (why.ranker, why.method, [e.item_id for e in why]) == (name, "leave-one-out", [*row.history])


def test_a_fusion_that_was_not_made_is_refused_and_nothing_is_made(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "rankers" / "fused" / "blend.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    for name in ("fused", "two"):
        with pytest.raises(DataError, match=r"fused is damaged \(blend\.json\): run the recipe again"):
            Recommender.from_run(tmp_path / "run", name)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run.folder, tmp_path / "copied")


def _other_items(folder):
    data = read_prepared(folder / "data")
    titles = data.catalogue.frame.with_columns(title=pl.col("title") + "!")
    write_prepared(replace(data, catalogue=Catalogue(titles)), folder / "data")
    seal_stage(folder / "data")


def _other_key(stage):
    state = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(state | {"key": "another"}))


CHANGES = {
    "weights": ("s-dpo", lambda folder: flip(folder / "align/s-dpo/adapter/adapter_model.safetensors")),
    "blend": ("fused", lambda folder: (folder / "rankers/fused/blend.json").write_text("{}")),
    "part": ("fused", lambda folder: flip(folder / "sft/adapter/adapter_model.safetensors")),
    "key": ("two", lambda folder: _other_key(folder / "rankers/fused")),
    "items": ("s-dpo", _other_items),
    "items of counts": ("item-kNN", _other_items),
    "deleted": ("two", shutil.rmtree),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_run_that_changed_after_it_was_opened_is_refused(copied, what):
    name, change = CHANGES[what]
    loaded, rec = (Recommender.from_run(copied, name) for _ in range(2))
    want = loaded.recommend("i7", 3)
    change(copied)
    for ask in (lambda: rec.recommend("i7"), lambda: rec.rank("i7", ["i8", "i9"]), rec.recommend_all):
        with pytest.raises(DataError, match=f"copied changed after {name} was opened: open the run again"):
            ask()
    assert loaded.recommend("i7", 3) == want


def test_an_export_that_changed_after_it_was_opened_is_refused(exported):
    rec = Recommender.from_pretrained(exported)
    flip(exported / "items.parquet")
    with pytest.raises(DataError, match="exported changed after it was opened: open it again"):
        rec.recommend("i7")


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda rec: pickle.loads(pickle.dumps(rec))])
def test_a_pickle_or_copy_opens_the_folder_again(run, exported, tmp_path, monkeypatch, clone):
    monkeypatch.chdir(run.folder.parent)
    for rec in (Recommender.from_run(run.folder.name, "fused"), Recommender.from_pretrained(exported)):
        want = rec.recommend("i7", 3)
        monkeypatch.chdir(tmp_path)
        again = clone(rec)
        assert again is not rec
        assert again.recommend("i7", 3) == want
    with pytest.raises(ConfigError, match="a recommender of data in memory cannot be pickled or copied"):
        clone(Recommender(run.data, rec.stage))


def test_a_relative_folder_is_found_from_another_working_directory(run, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(run.folder.parent)
    of_run = Recommender.from_run(run.folder.name, "fused")
    monkeypatch.chdir(tmp_path)
    of_export = Recommender.from_pretrained(exported.name)
    monkeypatch.chdir("/")
    for rec in (of_run, of_export):
        again = copy.deepcopy(rec)
        assert rec.recommend("i7", 3) == again.recommend("i7", 3)


def test_a_pickle_of_another_result_is_refused(copied):
    pickled = pickle.dumps(Recommender.from_run(copied, "item-kNN"))
    _other_items(copied)
    with pytest.raises(DataError, match="item-kNN changed after the recommender was pickled: open it again"):
        pickle.loads(pickled)


@pytest.mark.parametrize("boost", [None, {"item_id": {f"i{n}": 5 for n in range(40)}, "title": {"Red Emma": 9}}])
@pytest.mark.parametrize("name", ["s-dpo", "fused"])
def test_all_users_get_what_each_gets_alone(run, tmp_path, name, boost):
    rec = Recommender.from_run(run.folder, name)
    frame = rec.recommend_all(tmp_path / "top.parquet", k=3, boost=boost)
    if boost:
        assert not frame.equals(rec.recommend_all(k=3))
    assert frame.equals(pl.read_parquet(tmp_path / "top.parquet"))
    assert [p.name for p in tmp_path.iterdir()] == ["top.parquet"]
    assert frame["user_id"].unique(maintain_order=True).to_list() == [f"u{n:02}" for n in range(40)]
    for user in ("u00", "u39"):
        own = frame.filter(user_id=user).drop("user_id")
        alone = rec.recommend(user=user, k=3, boost=boost).frame()
        assert own.drop("score").equals(alone.drop("score"))
        np.testing.assert_allclose(own["score"], alone["score"], rtol=1e-5)
    assert rec.recommend_all(k=3, users=["u39", "u07"])["user_id"].to_list() == ["u39"] * 3 + ["u07"] * 3


def test_a_stopped_call_goes_on(rec, tmp_path, monkeypatch):
    monkeypatch.setattr(recommender, "CHUNK", 8)
    want, asked, inner = rec.recommend_all(k=2), [], CatalogueRanker.recommend

    def stops(self, history, *args, **more):
        asked.append(history)
        if len(asked) == 20:
            raise KeyboardInterrupt
        return inner(self, history, *args, **more)

    monkeypatch.setattr(CatalogueRanker, "recommend", stops)
    with pytest.raises(KeyboardInterrupt):
        rec.recommend_all(tmp_path / "top.parquet", k=2)
    assert not (tmp_path / "top.parquet").exists()
    assert rec.recommend_all(tmp_path / "top.parquet", k=2).equals(want)
    assert len(asked) == 20 + 40 - 16  # of five chunks two were finished
    assert [p.name for p in tmp_path.iterdir()] == ["top.parquet"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_answers_come_in_blocks_and_the_file_is_written_after_the_last(run, tmp_path, monkeypatch, suffix):
    rec, out = Recommender.from_run(run.folder, "window co-occurrence"), tmp_path / f"top.{suffix}"
    want = rec.recommend_all(k=2)
    monkeypatch.setattr(recommender, "QUICK_CHUNK", 16)
    blocks = rec.recommend_blocks(out, 2)
    first = next(blocks)
    assert (first["user_id"].n_unique(), out.exists()) == (16, False)
    del blocks  # stopped; the first block is not answered again
    answered, inner = [], Recommender._frame

    def noted(self, queries, selection):
        answered.append(len(queries))
        return inner(self, queries, selection)

    monkeypatch.setattr(Recommender, "_frame", noted)
    assert pl.concat(rec.recommend_blocks(out, 2)).equals(want)
    assert answered == [16, 8]
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
    assert (pl.read_parquet if suffix == "parquet" else pl.read_csv)(out).equals(want)


@pytest.mark.parametrize("name", ["window co-occurrence", "fused"])
def test_given_histories_get_what_each_gets_alone(run, name):
    rec = Recommender.from_run(run.folder, name)
    histories = {"a": ["Red Emma", "i7"], "b": [], 3: ["i9"], "c": ["i7", "Red Emma", "Old Night"]}
    frame = rec.recommend_all(k=4, histories=histories, at_most=3, per="title")
    for user, history in histories.items():
        own = frame.filter(user_id=str(user)).drop("user_id")
        assert own.drop("score").equals(rec.recommend(history, 4).frame().drop("score"))
    assert rec.recommend_all(histories={}).is_empty()
    with pytest.raises(DataError, match="two keys stand for user '1'"):
        rec.recommend_blocks(histories={1: ["i7"], "1": ["i3"]})
    with pytest.raises(DataError, match="similar: Red Emma"):
        rec.recommend_blocks(histories={"a": ["i7"], "b": ["Red Emmma"]})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"history": ["Red Emmma"]}, "similar: Red Emma"),
        ({"history": [1.5]}, "1.5: give an item by its title or id, or as a row of an answer, not as float"),
        ({"history": ["i1"], "where": "aisle = 1"}, "'aisle = 1': .*the catalogue has the columns item_id, title"),
        ({"history": ["i1"], "at_most": 2}, "at_most, per: give both or neither"),
        (
            {"history": ["i1"], "boost": {"aisle": {1: 2}}},
            "boost 'aisle': the catalogue has no such column of single",
        ),
        ({"history": ["i1"], "boost": {"title": 2}}, "boost.title: Input should be a valid dict"),
        ({"history": ["i1"], "boost": {"title": {"Red Emma": 101}}}, "should be less than or equal to 100"),
        ({"history": ["i1"], "k": -1}, "k: expected a whole number of at least 1, got -1"),
        ({"history": [["i1"], ["i2"]], "k": 2.5}, "k: expected a whole number of at least 1, got 2.5"),
        ({"user": ["u01", "u02"]}, r"user: a user's id is .* not list; recommend_all\(users=\[…\]\) answers several"),
        ({"user": 1.5}, "user: a user's id is text or a whole number, not float"),
    ],
)
def test_refused(rec, asked, message):
    with pytest.raises((ConfigError, DataError), match=message):
        rec.recommend(**asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"k": 0}, "k: expected a whole number of at least 1, got 0"),
        ({"users": [["u01"]]}, "users: a user's id is text or a whole number, not list"),
        ({"histories": {1.5: ["i1"]}}, "histories: a user's id is text or a whole number, not float"),
        ({"users": [], "histories": {"me": ["i1"]}}, "users, histories: give one of them"),
    ],
)
def test_refused_for_all_users(rec, tmp_path, asked, message):
    with pytest.raises((ConfigError, DataError), match=message):
        rec.recommend_all(tmp_path / "out.csv", **asked)
    assert [*tmp_path.iterdir()] == []


def test_ids_titles_rows_and_single_ones_are_the_same(rec):
    whole = rec.recommend(["Red Emma"], 60)
    first, second = whole[:2]
    assert rec.recommend("Red Emma", 60) == rec.recommend("i2", 60) == rec.recommend(("i2",), 60) == whole
    for deny in (first.title, first.item_id, first, [first], pl.Series([first.title])):
        assert rec.recommend("i2", 1, deny=deny)[0].item_id == second.item_id
    for allow in (second.title, [second]):
        assert [r.item_id for r in rec.recommend("i2", allow=allow)] == [second.item_id]
    assert rec.recommend_all(k=1, users="u07")["user_id"].to_list() == ["u07"]


def test_numbers_are_ids(rec):
    frame = rec.data.catalogue.frame.with_columns(pl.col("item_id").str.slice(1))
    log = rec.data.train_interactions.with_columns(pl.col("item_id", "user_id").str.slice(1))
    data = replace(rec.data, catalogue=Catalogue(frame), train_interactions=log, held_out_interactions=None)
    numbers = Recommender(data, FixedStage(ByNumber(), full=ByNumber()))
    assert [r.item_id for r in numbers.recommend([7], 2, deny=[59, np.int64(58)])] == ["57", "56"]
    assert numbers.recommend_all(k=1, users=[10, 12])["user_id"].to_list() == ["10", "12"]
    assert numbers.recommend(user=10, k=1) == numbers.recommend(user="10", k=1)
    with pytest.raises(UnknownUserError, match="user '999' is not in the run's log"):
        numbers.recommend_all(users=[999])
    assert [r.item_id for r in numbers.rank(7, [3, 9, "5"])] == ["9", "5", "3"]


class ByNumber:
    name = "by number"

    def score(self, examples):
        return np.array([[float(i) for i in e.candidates] for e in examples])


def test_histories_are_asked_together(rec):
    asked = [["i2"], ["i7", "Old Night"]]
    alone, together = [rec.recommend(one, 3) for one in asked], rec.recommend(asked, 3)
    assert [[r.item_id for r in own] for own in together] == [[r.item_id for r in own] for own in alone]
    assert rec.recommend([], 3) == rec.recommend(k=3)


def test_every_method_takes_the_rules_by_name(rec):
    """A new rule is an argument of all methods, in HTTP bodies and on the command line, or of none."""
    by_name = {*get_type_hints(RuleArguments)}
    assert by_name == {*Rules.model_fields}
    assert {*get_type_hints(ItemRuleArguments)} == {*ItemRules.model_fields}
    assert by_name < {*inspect.signature(rec.recommend).parameters}
    related = [partial(ask, "i7") for ask in (rec.similar, rec.also_bought)]
    for ask in (rec.recommend_all, rec.recommend_blocks, *related):
        with pytest.raises(ConfigError, match=r"wher: Extra inputs are not permitted.*did you mean where"):
            ask(wher="title = 'x'")
    with pytest.raises(TypeError, match="exclude_seen"):
        rec.similar("i7", exclude_seen=False)


def test_a_rule_that_names_no_item_is_warned_of(rec, capsys):
    assert rec.recommend("i2", 3, deny=["nothing", "i999"]) == rec.recommend("i2", 3)
    assert "deny: no item has the title or id 'nothing', and 1 more" in " ".join(capsys.readouterr().err.split())
    assert rec.recommend("i2", 3, boost={"item_id": {999: 2}}) == rec.recommend("i2", 3)
    assert "boost: no item has the item_id '999'" in " ".join(capsys.readouterr().err.split())


def test_a_search_of_titles_finds_boosted_items(rec, monkeypatch):
    boost = {"item_id": {f"i{n}": 4 for n in range(0, 60, 7)}}
    want = rec.recommend("i2", 5, boost=boost)
    assert [r.item_id for r in want] != [r.item_id for r in rec.recommend("i2", 5)]
    monkeypatch.setattr("prefrec.rankers.catalogue.EXACT_NODES", 0)
    assert [r.item_id for r in rec.recommend("i2", 5, boost=boost)] == [r.item_id for r in want]


def test_fit_trains_on_frames_of_both_kinds(place, tmp_path):
    log, items = pd.read_csv(place.shop["interactions"]), pl.read_csv(place.shop["items"])
    items = items.with_columns(aisle=pl.int_range(pl.len()) % 3)
    raw = tiny_recipe({"interactions": "", "items": ""}, place.model)
    evaluate = {"rows": 4, "full_rows": 0, "zero_shot": False, "baselines": []}
    raw |= {"sft": raw["sft"] | {"rows": 8}, "align": [], "evaluate": evaluate}
    rec = prefrec.fit(log, items, raw, set={"sft.epochs": 1}, out=tmp_path / "run")
    assert rec.stage.name == "sft"
    assert open_run(tmp_path / "run").recipe.sft.epochs == 1
    assert raw["sft"]["epochs"] == 2
    assert (tmp_path / "run" / "report.html").exists()
    answer = rec.recommend(user="u01", k=5, where="aisle = 1", at_most=5, per="aisle")
    assert [int(r.item_id[1:]) % 3 for r in answer] == [1] * 5
    assert Recommender.from_run(tmp_path / "run").recommend(user="u01", k=5, where="aisle = 1") == answer


def test_fit_leaves_no_folder_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    evaluate = {"baselines": ["popularity", "window co-occurrence"], "full_rows": 0}
    recipe = {"preset": "fast", "sft": None, "align": [], "rankers": [], "evaluate": evaluate}
    prefrec.show_progress(False)
    try:
        rec = prefrec.fit(*prefrec.load_example(), recipe)
    finally:
        prefrec.show_progress(True)
    assert capsys.readouterr().err == ""
    assert rec.stage.name == "window co-occurrence"
    assert rec.recommend(user=1, k=3) == rec.recommend(user="1", k=3)
    (scratch,) = tmp_path.iterdir()
    assert (scratch / "report.html").exists()
    del rec
    gc.collect()
    assert [*tmp_path.iterdir()] == []


def test_the_example_is_the_same_each_time_and_whole():
    log, items = prefrec.load_example()
    assert log.equals(prefrec.load_example().log)
    assert (log["user_id"].n_unique(), len(items), items["title"].n_unique()) == (300, 192, 192)
    assert set(log["item_id"]) <= set(items["item_id"])
    assert not log.select("user_id", "item_id").is_duplicated().any()


def test_fit_names_what_is_wrong():
    empty = pl.DataFrame()
    with pytest.raises(DataError, match=r"interactions: expected a frame of polars, pandas or Arrow, .* got int"):
        prefrec.fit(5, empty, "fast")
    with pytest.raises(ConfigError, match=r"set 'sft\.\.epochs': expected a field such as sft.rows"):
        prefrec.fit(empty, empty, "fast", set={"sft..epochs": 1})
    with pytest.raises(ConfigError, match="preset 'quick': expected one of baselines, fast, titles, paper"):
        prefrec.fit(empty, empty, "quick")

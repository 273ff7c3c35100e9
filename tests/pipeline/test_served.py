"""With `refit.rankers: served`, only what serves is made again, and the choice of the default comes before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefrec.data import read_prepared
from prefrec.evaluation.best import choose
from prefrec.export.ranker import export_ranker
from prefrec.pipeline import price, run
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import expected, run_recipe, survey
from prefrec.rankers import blend_learning
from prefrec.recipe import Recipe
from prefrec.recommender import Recommender
from prefrec.runs.contents import read_run
from prefrec.runs.served import read_served
from prefrec.stages.alignment import AlignStage
from prefrec.stages.sft import SFTRefitStage, SFTStage
from prefrec.stages.title_tower import TitleTowerStage
from prefrec_server.server import open_engine

NEW = "new to the user"


@pytest.fixture(scope="module")
def recipe(recipe) -> Recipe:
    """The tiny recipe with item-ID tokens, which are quick parts of a blend."""
    raw = recipe.model_dump(mode="json") | {"lora": None, "refit": {"rankers": "served"}}
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "cooccurrence": 4}}
    raw["sft"] |= {"rows": 16, "epochs": 1}
    raw["align"] = [{"name": "s-dpo", "rows": 8, "num_negatives": 3, "learning_rate": 5e-3}]
    raw["rankers"] = [
        {"kind": "title-tower", "vectors": "tfidf", "width": 4, "epochs": 2, "batch_size": 8},
        {"kind": "blend", "parts": ["window co-occurrence", "title-tower", "sft"], "select": True},
    ]
    raw["evaluate"] |= {"zero_shot": False, "baselines": ["popularity"], "full_rows": 5, "generate_rows": 0}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def made():
    """Labels of the rankers in the order in which they are trained. Blends leave SFT out."""
    labels: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for stage in (SFTStage, SFTRefitStage, AlignStage, TitleTowerStage):

            def make(self, whole=stage.make):
                labels.append(self.label)
                whole(self)

            patch.setattr(stage, "make", make)
        patch.setattr(blend_learning, "select_parts", lambda *args: {"sft": (0.0, 0.1)})
        yield labels


def _chosen(monkeypatch, ranker, for_new=None):
    """Let validation examples choose these rankers."""
    best = choose({ranker: np.ones(30), "other": np.zeros(30)})
    by_repeat = {NEW: choose({for_new: np.ones(30)})} if for_new else {}
    monkeypatch.setattr(run, "best_on_validation", lambda *args: replace(best, by_repeat=by_repeat))


@pytest.fixture(scope="module")
def finished(recipe, made, tmp_path_factory) -> Path:
    """A run whose default is the blend, and the labels of what was trained, in `made.json`; to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "served"
    made.clear()
    with pytest.MonkeyPatch.context() as patch:
        _chosen(patch, "blend")
        run_recipe(recipe, folder)
    (folder.parent / "made.json").write_text(json.dumps(made))
    return folder


def test_a_language_model_that_the_default_left_out_is_trained_once(finished):
    assert json.loads((finished.parent / "made.json").read_text()) == [
        "sft",
        "s-dpo",
        "title-tower",
        "title-tower refit",
    ]
    opened = open_run(finished)
    assert opened.plan.served == ["title-tower", "blend"]
    assert opened.stage("sft").first is None
    assert opened.stage("sft").weights == opened.adapter("sft") == finished / "sft" / "adapter"
    assert opened.stage("title-tower").weights == finished / "refit" / "rankers" / "title-tower"
    assert opened.models == ["sft", "s-dpo"]
    assert [stage.name for stage in read_run(finished).stages] == ["sft", "s-dpo"]


def test_the_table_is_whole_and_says_who_has_read_less(finished):
    full = json.loads((finished / "metrics.json").read_text())["full_catalogue"]
    both, less = "training and validation", "training"
    want = {"popularity": both, "sft": less, "s-dpo": less, "title-tower": both, "blend": both}
    assert full["logs"] == want
    assert {*full["metrics"]} == {*want}
    assert "not trained on the same log" in (finished / "report.html").read_text(encoding="utf-8")


def test_a_second_run_trains_nothing(finished, recipe, made, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    made.clear()
    _chosen(monkeypatch, "blend")
    run_recipe(recipe, folder)
    assert made == []
    assert not any(stage["why"] for stage in survey(recipe, folder))


def test_another_default_makes_again_what_it_needs(finished, recipe, made, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    made.clear()
    _chosen(monkeypatch, "popularity")
    run_recipe(recipe, folder)
    assert made == []
    opened = open_run(folder)
    assert opened.default() == "popularity"
    assert (
        opened.stage("title-tower").weights == folder / "rankers" / "title-tower"
    )  # although an older refit is there
    _chosen(monkeypatch, "popularity", for_new="s-dpo")
    run_recipe(recipe, folder)
    assert made == ["sft refit", "s-dpo refit"]
    assert open_run(folder).stage("s-dpo").weights == folder / "refit" / "align" / "s-dpo" / "adapter"
    assert [stage.name for stage in read_run(folder).stages] == ["sft", "s-dpo", "sft refit", "s-dpo refit"]


def test_all_rankers_are_made_again_by_default(finished, recipe, made, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    made.clear()
    _chosen(monkeypatch, "popularity")
    run_recipe(recipe.model_copy(update={"refit": Recipe.model_validate({"name": "a", "refit": True}).refit}), folder)
    assert made == ["sft refit", "s-dpo refit"]  # and the tower, which is there


def test_without_a_choice_all_rankers_may_serve(finished, recipe, made, tmp_path, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setattr(run, "best_on_validation", lambda *args: None)
    run_recipe(recipe, folder)
    assert read_served(folder) == ["sft", "s-dpo", "title-tower", "blend"]


def test_a_plan_and_its_price_name_what_may_be_made_again(recipe, tmp_path, monkeypatch):
    assert [s["stage"] for s in survey(recipe, tmp_path) if s["why"] == "if it serves"] == [
        "sft refit",
        "s-dpo refit",
    ]
    monkeypatch.setattr(price, "WORTH", 1)
    run_recipe(recipe, tmp_path, until="prepare")
    open_stages = ["sft refit", "s-dpo refit", "title-tower refit"]
    assert [s["stage"] for s in survey(recipe, tmp_path) if s["why"] == "if it serves"] == open_stages
    again = ["sft refit (if it serves)", "s-dpo refit (if it serves)"]
    assert [*expected(recipe, tmp_path).costs] == ["sft", "s-dpo", *again, "evaluate"]


def test_an_export_is_without_the_part_that_was_left_out_and_answers_alike(finished, tmp_path, capsys):
    opened = open_run(finished)
    out = export_ranker(opened, "blend", tmp_path / "blend")
    assert "without sft, which blend left out" in " ".join(capsys.readouterr().err.split())
    assert not [*out.rglob("sft")]
    assert (out / "refit" / "rankers" / "title-tower").is_dir()
    history = [*opened.data.test[0].history]
    ours, theirs = Recommender.from_run(finished), Recommender.from_pretrained(out)
    rows = ours.recommend(history, 5)
    assert ours.stage.name == "blend"
    again = theirs.recommend(history, 5)
    assert [row.item_id for row in again] == [row.item_id for row in rows]
    np.testing.assert_allclose([row.score for row in again], [row.score for row in rows], rtol=1e-5)


def test_a_server_loads_no_model_that_the_run_does_not_serve(finished, capsys):
    engine = open_engine(open_run(finished))
    engine.close()
    assert engine.rankers == ["blend", "title-tower", "popularity"]
    assert engine.models == []
    assert "Without s-dpo, sft, which did not learn the whole log" in " ".join(capsys.readouterr().err.split())
    named = open_engine(open_run(finished), ["blend", "sft"])
    named.close()
    assert (named.rankers, named.models) == (["blend", "sft"], ["sft"])


def test_an_update_learns_what_the_model_before_has_not(finished, recipe, tmp_path):
    log = pl.read_csv(recipe.data.interactions)
    more = [(user, f"i{(7 * n + 1) % 60}", 50_000) for n, user in enumerate(log["user_id"].unique()[:20])]
    pl.DataFrame(more, schema=log.columns, orient="row").write_csv(tmp_path / "more.csv")
    raw = recipe.model_dump(mode="json")
    raw["data"]["more_interactions"] = [str(tmp_path / "more.csv")]
    raw |= {"update": {"run": str(finished)}, "rankers": []}
    update = Recipe.model_validate(raw)
    run_recipe(update, tmp_path / "run", until="prepare")
    old, new = (read_prepared(folder / "data") for folder in (finished, tmp_path / "run"))
    learnt, now = ({*data.train_interactions.select("user_id", "item_id").iter_rows()} for data in (old, new))
    assert new.protocol["split_facts"]["update"]["new"] == len(now - learnt)
    assert now & {*old.validation_interactions.select("user_id", "item_id").iter_rows()}
    assert open_run(tmp_path / "run").plan.stage("sft").start.weights == finished / "sft" / "adapter"

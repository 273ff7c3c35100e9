"""Refit: after choices on validation examples, every ranker also learns validation interactions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from prefrec.data import PreparedData, read_prepared
from prefrec.errors import DataError
from prefrec.export.ranker import export_ranker
from prefrec.files import file_digest
from prefrec.intake import prepare
from prefrec.lm.items import item_table
from prefrec.pipeline import price
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.plan import Plan
from prefrec.pipeline.run import expected, run_recipe, survey
from prefrec.rankers import FittedRanker, PopularityRanker
from prefrec.rankers.config import RankerConfig
from prefrec.recipe import Recipe, set_field
from prefrec.recommender import Recommender
from prefrec.stages import STAGES
from prefrec.stages.base import Loaded
from prefrec.stages.fitted import FittedStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from tiny_run import adapter_weights, write_shop

PARTS = ["co-occurrence", "window co-occurrence", "EASE", "title-tower", "SASRec", "sft"]
LATE, NEW = [f"v{n}" for n in range(6)], [f"n{n}" for n in range(6)]
"""Items that only validation examples have, and those that only test examples have."""


def _with_late_items(shop: dict[str, Path]) -> None:
    """Let the last two interactions of six users be with items of their own."""
    log, items = pl.read_csv(shop["interactions"]), pl.read_csv(shop["items"])
    users = log["user_id"].unique(maintain_order=True)[: len(LATE)].to_list()
    for own, place in ((LATE, 2), (NEW, 1)):
        is_last = (pl.int_range(pl.len()) == pl.len() - place).over("user_id") & pl.col("user_id").is_in(users)
        late = pl.col("user_id").replace_strict(dict(zip(users, own, strict=True)), default="")
        log = log.with_columns(item_id=pl.when(is_last).then(late).otherwise(pl.col("item_id")))
    log.write_csv(shop["interactions"])
    titles = [f"Late Babe {'x' * n}" for n in range(1, 13)]
    pl.concat([items, pl.DataFrame({"item_id": [*LATE, *NEW], "title": titles})]).write_csv(shop["items"])


@pytest.fixture(scope="module")
def recipe(recipe, tmp_path_factory) -> Recipe:
    """The tiny recipe with items of validation alone, rankers of every sort and a blend of them, all refit."""
    shop = write_shop(tmp_path_factory.mktemp("shop"))
    _with_late_items(shop)
    raw = recipe.model_dump(mode="json")
    raw["data"] |= {name: str(path) for name, path in shop.items()}
    raw["model"] |= {"templates": ["history"]}
    raw["sft"] |= {"rows": None, "epochs": 1}
    raw["align"] = [raw["align"][1] | {"epochs": 3, "load_best_model_at_end": True, "eval_rows": 8}]
    raw["rankers"] = [
        {"kind": "title-tower", "vectors": "tfidf", "width": 4, "epochs": 2, "batch_size": 8},
        {"kind": "sequential", "hidden_size": 8, "inner_size": 8, "n_layers": 1, "epochs": 2},
        {"kind": "blend", "parts": PARTS},
    ]
    baselines = ["popularity", "window co-occurrence", "title TF-IDF"]
    raw["evaluate"] |= {"full_rows": 3, "baselines": baselines, "generate_rows": 0}
    return Recipe.model_validate(raw | {"refit": True})


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> Path:
    """A finished run, to be read only."""
    folder = tmp_path_factory.mktemp("runs") / "refit"
    run_recipe(recipe, folder)
    return folder


def _digests(folder: Path) -> dict[str, str]:
    """File → digest, of what stages on the training log and on validation examples have left."""
    patterns = ("sft/adapter/*", "align/*/adapter/*", "rankers/*/*", "predictions/validation/*", "best.json")
    found = {pattern: [*folder.glob(pattern)] for pattern in patterns}
    assert all(found.values()), found
    files = [file for of_pattern in found.values() for file in of_pattern]
    return {str(f.relative_to(folder)): file_digest(f) for f in files if f.name != "stage.json"}


def _state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stage.json").read_text())


def test_refit_stages_have_a_folder_key_and_seal_of_their_own(finished):
    for stage in ("sft", "align/s-dpo", "rankers/SASRec", "rankers/title-tower"):
        first, again = (_state(folder / stage) for folder in (finished, finished / "refit"))
        assert first["finished"]
        assert again["finished"]
        assert again["files"]
        assert first["key"] != again["key"]
    assert not (finished / "refit" / "rankers" / "blend").exists()  # its weights are those of validation examples


def test_refit_stages_choose_no_epoch_and_train_as_many_as_were_chosen(finished, recipe):
    def log(stage: str) -> list[dict[str, Any]]:
        return json.loads((finished / stage / "log.json").read_text())

    for stage in ("sft", "align/s-dpo"):
        assert any("eval_loss" in line for line in log(stage))
        assert not any("eval_loss" in line for line in log(f"refit/{stage}"))
    chosen = json.loads((finished / "align" / "s-dpo" / "adapter" / "best.json").read_text())["epoch"]
    assert log("refit/align/s-dpo")[-1]["epoch"] == chosen
    best = json.loads((finished / "sft" / "adapter" / "best.json").read_text())
    assert log("refit/sft")[-1]["epoch"] == best["epoch"]


def test_a_blend_of_loaded_rankers_asks_those_that_are_served(finished):
    """A server shares one base among its language models, and hands them to the rankers that query them."""
    run = open_run(finished)
    entry = run.stage("sft")
    ranker = entry.load(8)
    blend = replace(run.plan, loaded={"sft": Loaded(entry, ranker, ranker)}).open("blend")
    rows = run.data.examples("test", 5)
    assert blend.key == run.stage("blend").key
    reranked = blend.load(8).models
    assert [model.stage.load(8) for model in reranked] == [ranker]
    np.testing.assert_allclose(blend.load(8).score(rows), run.stage("blend").load(8).score(rows))


def test_choices_on_validation_examples_are_those_without_refit(finished, recipe, tmp_path):
    alone = recipe.model_copy(update={"refit": None})
    run_recipe(alone, tmp_path / "alone")
    assert not (tmp_path / "alone" / "refit").exists()
    assert _digests(tmp_path / "alone") == _digests(finished)
    tests = [pl.read_parquet(folder / "predictions.parquet") for folder in (tmp_path / "alone", finished)]
    for ranker in ("sft", "s-dpo", "title-tower", "SASRec", "blend"):
        without, refit = (frame.filter(ranker=ranker)["scores"].to_list() for frame in tests)
        assert without != refit
    counted = [frame.filter(ranker="popularity")["scores"].to_list() for frame in tests]
    assert counted[0] == counted[1]
    logs = json.loads((tmp_path / "alone" / "metrics.json").read_text())["evaluation"]["logs"]
    assert logs["popularity"] == "training and validation"
    assert logs["sft"] == logs["SASRec"] == logs["title-tower"] == "training"
    assert "validation" in logs["blend"]


def test_all_rankers_of_a_table_have_read_the_same_log(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    for block in ("evaluation", "full_catalogue"):
        logs = metrics[block]["logs"]
        assert {*logs} == {*metrics["evaluation"]["metrics"]} - {"zero-shot"}  # it has read none
        assert {*logs.values()} == {"training and validation"}
    report = (finished / "report.html").read_text(encoding="utf-8")
    assert "All rankers were trained on the same log: training and validation." in report


def test_test_examples_are_answered_by_what_has_learnt_validation_items(finished):
    run = open_run(finished)
    late, trained = {*LATE}, {*run.data.train_interactions["item_id"]}
    assert not late & trained
    learnt_by = {
        "SASRec": lambda r: {*r.ids},
        "title-tower": lambda r: {i for i, n in r.index.items() if r.mixture.bias[n]},
    }
    for name, items in learnt_by.items():
        entry = run.stage(name)
        assert items(entry.load(8)) == trained | late
        assert items(entry.on("validation").load(8)) == trained
    blend = run.stage("blend")
    for entry, learnt in ((blend, trained | late), (blend.on("validation"), trained)):
        parts = {part.name: part for part in entry.load(8).blend.parts}
        assert {*parts["SASRec"].learnt} == {*parts["title-tower"].learnt} == learnt
    assert run.stage("sft").weights == finished / "refit" / "sft" / "adapter"
    assert run.stage("sft").on("validation").weights == finished / "sft" / "adapter"


def test_a_part_has_the_median_for_what_it_has_not_read_by_test_time(finished):
    run = open_run(finished)
    rows = run.data.examples("test", 4)
    items = tuple(dict.fromkeys([*run.data.catalogue.ids]))
    asked = [type(e)(e.user_id, e.history, items, e.target) for e in rows]
    parts = {part.name: part for part in run.stage("blend").load(8).blend.parts}
    alone = run.stage("SASRec").load(8)
    known = np.isin(items, [*alone.ids])
    scores, own = parts["SASRec"].score(asked), alone.score(asked)
    late = np.isin(items, LATE)
    assert known[late].all()
    assert not known[np.isin(items, NEW)].any()
    np.testing.assert_allclose(scores[:, late], own[:, late], rtol=1e-5)
    median = np.median(own[:, known], axis=1, keepdims=True)
    np.testing.assert_allclose(scores[:, ~known], np.broadcast_to(median, (4, (~known).sum())), rtol=1e-5)


def test_the_settings_of_window_cooccurrence_are_chosen_before_validation_is_learnt(finished):
    run = open_run(finished)
    baseline = run.stage("window co-occurrence").load(8)
    assert {*baseline.index} >= {*LATE}
    assert baseline.settings == run.stage("window co-occurrence").on("validation").load(8).settings


@pytest.mark.long
def test_a_kill_in_a_refit_stage_goes_on_and_ends_alike(finished, recipe, tmp_path, stop_after):
    folder = tmp_path / "run"
    run_recipe(recipe.model_copy(update={"refit": None}), folder, until="sft")
    before = _state(folder / "sft")
    with stop_after(3, "sft"):
        run_recipe(recipe, folder)
    assert _state(folder / "refit" / "sft")["finished"] is False
    assert [*(folder / "refit" / "sft").glob("checkpoint-*")]
    assert [s["why"] for s in survey(recipe, folder) if s["stage"] == "sft refit"] == ["unfinished"]
    with pytest.raises(DataError, match="'sft refit'"):
        open_run(folder).stage("sft")
    run_recipe(recipe, folder, until="sft")
    assert _state(folder / "sft") == before
    ours, theirs = (adapter_weights(f / "refit" / "sft" / "adapter") for f in (folder, finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_plan_lists_refit_stages_before_there_are_data(recipe, tmp_path):
    stages = {s["stage"]: s for s in survey(recipe, tmp_path)}
    assert [*stages] == ["prepare", "sft", "s-dpo", "title-tower", "SASRec", "blend", "sft refit", "s-dpo refit"]
    assert stages["s-dpo refit"]["needs"] == ["s-dpo", "sft refit"]
    assert "sft refit" not in {s["stage"] for s in survey(recipe.model_copy(update={"refit": None}), tmp_path)}


def test_a_plan_lists_refit_stages_with_their_reasons_and_needs(finished, recipe):
    stages = {s["stage"]: s for s in survey(recipe, finished)}
    names = ["prepare", "sft", "s-dpo", "title-tower", "SASRec", "blend"]
    names += ["sft refit", "s-dpo refit", "title-tower refit", "SASRec refit"]
    assert [*stages] == names
    assert not any(s["why"] for s in stages.values())
    assert stages["sft refit"]["needs"] == ["sft"]
    assert stages["s-dpo refit"]["needs"] == ["s-dpo", "sft refit"]
    more = recipe.model_copy(update={"refit": recipe.refit.model_copy(update={"epochs": 3.0})})
    why = {s["stage"]: s["why"] for s in survey(more, finished) if s["why"]}
    assert why["sft refit"] == "changed: refit.epochs"
    assert {*why} == {"sft refit", "s-dpo refit"}


def test_the_price_of_a_run_names_its_refit(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(price, "WORTH", 1)
    run_recipe(recipe, tmp_path, until="prepare")
    assert [*expected(recipe, tmp_path).costs] == ["sft", "s-dpo", "sft refit", "s-dpo refit", "evaluate"]


def test_recommender_and_export_answer_with_refit_weights(finished, tmp_path):
    run = open_run(finished)
    rows = run.data.examples("test", 5)
    weights = finished / "refit" / "sft" / "adapter"
    expected_scores = lm_ranker("sft", weights, run.data, run.recipe.model).score(rows)
    own = Recommender.from_run(finished, "sft").stage.load(8).score(rows)
    np.testing.assert_allclose(own, expected_scores)
    for ranker, name in (("sft", "adapter_model.safetensors"), ("blend", "prefrec.json")):
        out = export_ranker(run, ranker, tmp_path / ranker)
        assert (out / name).is_file()
        again = Recommender.from_pretrained(out)
        history = [*rows[0].history]
        titles = [row.title for row in Recommender.from_run(finished, ranker).recommend(history, 5)]
        assert [row.title for row in again.recommend(history, 5)] == titles
    assert file_digest(tmp_path / "sft" / "adapter_model.safetensors") == file_digest(
        weights / "adapter_model.safetensors"
    )


class CountingConfig(RankerConfig):
    kind: Literal["counting"] = "counting"
    name: str = "counting"


class Counting(FittedRanker):
    """Popularity that keeps the size of every log that it was fitted to."""

    fitted: ClassVar[list[int]] = []

    def fit(self, data: PreparedData):
        self.fitted.append(len(data.train_interactions))
        self.inner = PopularityRanker.fit(data.train_interactions)
        return self

    def score(self, examples):
        return self.inner.score(examples)


class CountingStage(FittedStage):
    Config, Ranker = CountingConfig, Counting


def test_a_fitted_ranker_is_fitted_once_to_each_log(recipe, tmp_path, monkeypatch):
    monkeypatch.setitem(STAGES, "counting", CountingStage)
    monkeypatch.setattr(Counting, "fitted", [])
    raw = recipe.model_dump(mode="json") | {"sft": None, "align": []}
    raw["rankers"] = [{"kind": "counting"}, {"kind": "blend", "parts": ["co-occurrence", "counting"]}]
    raw["evaluate"] |= {"zero_shot": False}
    run_recipe(Recipe.model_validate(raw), tmp_path)
    data = read_prepared(tmp_path / "data")
    sizes = [len(data.known_interactions(split)) for split in ("validation", "test")]
    assert sorted(Counting.fitted) == sizes


def test_an_evaluation_of_validation_examples_asks_those_that_have_not_learnt_them(finished, recipe, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    section = recipe.evaluate.model_copy(update={"split": "validation", "rows": 10})
    run_recipe(recipe.model_copy(update={"evaluate": section}), folder, until="evaluate")
    logs = json.loads((folder / "metrics.json").read_text())["evaluation"]["logs"]
    assert {*logs.values()} == {"training"}
    run, answers = open_run(folder), pl.read_parquet(folder / "predictions.parquet")
    rows = run.data.examples("validation", 10)
    for ranker in ("SASRec", "sft"):
        scores = run.stage(ranker).on("validation").load(8).score(rows)
        found = answers.filter(ranker=ranker).sort("row")["scores"].to_list()
        np.testing.assert_allclose(scores, found, rtol=1e-4)


def test_nothing_new_in_validation_means_no_refit(recipe, tmp_path):
    data = replace(prepare(recipe.data), held_out_interactions=None)
    plan = Plan(recipe, RunInputs(data, "", recipe.model, recipe.lora, 0), tmp_path)
    assert len(plan.logs) == 1
    assert plan.stage("sft").first is None


def test_a_field_of_refit_can_be_set_where_the_preset_says_true():
    raw = {"refit": True}
    set_field(raw, "refit.epochs=2")
    assert raw == {"refit": {"epochs": 2}}


def test_an_update_continues_sft_for_an_epoch(recipe, tmp_path):
    assert recipe.sft_refit == recipe.refit
    section = Recipe.model_fields["update"].annotation
    update = recipe.model_copy(update={"update": section.__args__[0](run=tmp_path)})
    assert (update.sft_refit.epochs, update.sft_refit.replay) == (1.0, 1.0)


def test_best_weights_continue_on_new_interactions_if_epochs_are_given(finished, recipe, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(folder / "refit")
    raw = recipe.model_dump(mode="json") | {"refit": {"epochs": 2}}
    run_recipe(Recipe.model_validate(raw), folder, until="sft")
    log = json.loads((folder / "refit" / "sft" / "log.json").read_text())
    assert log[-1]["epoch"] == 2
    continued, again = (adapter_weights(f / "refit" / "sft" / "adapter") for f in (folder, finished))
    assert any(not torch.equal(continued[name], again[name]) for name in again)


def test_refit_in_a_recipe_is_a_section_true_or_false(recipe):
    raw = recipe.model_dump(mode="json")
    assert raw["refit"] == {"epochs": None, "replay": 1.0}
    assert Recipe.model_validate(raw) == recipe
    assert Recipe.model_validate(raw | {"refit": {"epochs": 2}}).refit.epochs == 2
    off = Recipe.model_validate(raw | {"refit": False})
    assert off.refit is None
    assert "refit" not in yaml.safe_load(yaml.safe_dump(off.model_dump(mode="json")))


@pytest.fixture(scope="module")
def updated(finished, recipe, tmp_path_factory) -> Path:
    """The folder of an update by two further interactions of 20 users, which SFT hardly learns from."""
    folder = tmp_path_factory.mktemp("update")
    log = pl.read_csv(recipe.data.interactions)
    users = log["user_id"].unique(maintain_order=True)[10:30].to_list()
    more = [(user, f"i{(7 * n + k) % 60}", 50_000 + k) for n, user in enumerate(users) for k in range(2)]
    pl.DataFrame(more, schema=log.columns, orient="row").write_csv(folder / "more.csv")
    raw = recipe.model_dump(mode="json")
    raw["data"]["more_interactions"] = [str(folder / "more.csv")]
    raw["sft"] |= {"learning_rate": 1e-12, "eval_rows": 0}
    raw["update"] = {"run": str(finished)}
    raw["rankers"] = []
    run_recipe(Recipe.model_validate(raw), folder / "run")
    return folder / "run"


def test_an_update_starts_from_refit_weights(finished, updated):
    first, refit, start = (adapter_weights(f / "sft" / "adapter") for f in (finished, finished / "refit", updated))
    assert all((start[name] - refit[name]).abs().max() < 1e-6 for name in refit)
    assert any((start[name] - first[name]).abs().max() > 1e-4 for name in first)


def test_what_a_refit_has_learnt_is_not_new_to_an_update(finished, updated):
    old, new = read_prepared(finished / "data"), read_prepared(updated / "data")
    pair = ["user_id", "item_id"]
    learnt = {*old.known_interactions("test").select(pair).iter_rows()}
    trained = {*new.train_interactions.select(pair).iter_rows()}
    assert new.protocol["split_facts"]["update"]["new"] == len(trained - learnt)
    assert trained & {*old.validation_interactions.select(pair).iter_rows()}


def test_the_refit_of_an_update_leaves_out_what_measures_forgetting(finished, updated):
    assert _state(updated / "refit" / "sft")["finished"]
    pair, run = ["user_id", "item_id"], open_run(updated)
    held = {(user, item) for user, item in run.data.protocol["split_facts"]["tested"]}
    assert held
    longer = run.plan.logs[-1].inputs.data
    assert not held & {*longer.train_interactions.select(pair).iter_rows()}
    measured = json.loads((updated / "update.json").read_text())
    assert measured["old"]["n"] == len(held)
    assert [*measured["old"]["metrics"]] == ["s-dpo before", "s-dpo"]
    before = pl.read_parquet(updated / "predictions" / "update" / "old" / "s-dpo before.parquet")
    earlier = open_run(finished)
    rows = earlier.data.examples("test", len(held))
    scores = earlier.stage("s-dpo").load(8).score(rows)
    np.testing.assert_allclose(scores, before.sort("row")["scores"].to_list(), atol=1e-3)


def test_item_tokens_of_validation_items_are_learnt_by_the_refit(recipe, tmp_path):
    raw = recipe.model_dump(mode="json") | {"lora": None, "rankers": []}
    raw["model"] |= {"answers": "items", "items": {"vectors": "tfidf", "cooccurrence": 4}}
    raw["align"] = [{"name": "s-dpo", "rows": 8, "num_negatives": 3, "learning_rate": 5e-3}]
    raw["evaluate"] |= {"zero_shot": False, "baselines": ["popularity"]}
    raw["refit"] = {"epochs": 2}
    run_recipe(Recipe.model_validate(raw), tmp_path)
    run = open_run(tmp_path)
    ids, entry = run.data.catalogue.ids, run.stage("sft")
    before, after = (item_table(e.load(8).model) for e in (entry.on("validation"), entry))
    late, new = ([ids.index(item) for item in items] for items in (LATE, NEW))
    assert before.ids == after.ids == ids
    assert not before.own[late].any()  # an item's own vector starts at zero
    assert after.own[late].any(dim=1).all()
    assert not after.own[new].any()

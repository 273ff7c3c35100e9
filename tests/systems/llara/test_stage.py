"""LLaRA in a recipe: on SASRec's vectors, with S-DPO after it; what is missing is said before anything is trained."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.evaluation import read_predictions
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.prompts import load_template
from prefrec_systems.llara import PROJECTOR_FILE, load_llara
from prefrec_systems.llara import stage as stage_module
from prefrec_systems.sequential import load_sequential

SASREC = {"kind": "sequential", "model": "SASRec", "epochs": 1, "hidden_size": 8}
ROWS = {"rows": 16, "global_batch_size": 8, "learning_rate": 5e-3, "save_steps": 1}
LLARA = {"kind": "llara", **ROWS, "epochs": 2, "eval_rows": 4, "eval_steps": 2}
ALIGNED = {"kind": "llara-s-dpo", **ROWS, "num_negatives": 2, "eval_rows": 4, "eval_steps": 2}


def _recipe(recipe: Recipe, *rankers: dict, first=(SASREC,)) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw |= {"sft": None, "align": [], "rankers": [*first, *rankers]}
    raw["evaluate"] |= {"rows": 6, "generate_rows": 2, "zero_shot": False}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llara")
    run_recipe(_recipe(recipe, LLARA, ALIGNED), folder)
    return folder


def _ask(finished, recipe, name):
    data = read_prepared(finished / "data")
    adapter = finished / "rankers" / name / "adapter"
    template = load_template("1", domain="movies")
    return data, load_llara(name, recipe.model.name, adapter, data.catalogue, template, loading={"dtype": "float32"})


def test_a_kill_before_the_projector_is_written_keeps_the_checkpoint(finished, recipe, tmp_path, monkeypatch):
    folder, alone = tmp_path / "run", _recipe(recipe, LLARA)
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "rankers")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "save_projector", killed)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(alone, folder, until="rankers")
    (checkpoint,) = (folder / "rankers" / "LLaRA").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    run_recipe(alone, folder, until="rankers")
    assert not checkpoint.exists()
    for file in ("adapter_model.safetensors", PROJECTOR_FILE):
        want, got = (load_file(f / "rankers" / "LLaRA" / "adapter" / file) for f in (finished, folder))
        assert all((want[n] == got[n]).all() for n in want)


@pytest.mark.parametrize("name", ["LLaRA", "LLaRA-S-DPO"])
def test_a_row_of_the_table(finished, recipe, name):
    metrics = json.loads((finished / "metrics.json").read_text())
    assert metrics["evaluation"]["metrics"][name].keys() == metrics["evaluation"]["metrics"]["popularity"].keys()
    rows = read_predictions(finished / "predictions.parquet").filter(pl.col("ranker") == name).sort("row")
    data, asked = _ask(finished, recipe, name)
    np.testing.assert_allclose(rows["scores"].to_list(), asked.score(data.test[:6]), rtol=0, atol=1e-4)
    assert rows["generated"][:2].to_list() == asked.generate(data.test[:2])
    log = json.loads((finished / "rankers" / name / "log.json").read_text())
    assert len([entry for entry in log if "eval_loss" in entry]) == (2 if name == "LLaRA" else 1)
    assert not list((finished / "rankers" / name).glob("checkpoint-*"))


def test_items_are_those_of_sasrec_and_stay_with_s_dpo(finished, recipe):
    data, asked = _ask(finished, recipe, "LLaRA")
    sasrec = load_sequential(finished / "rankers" / "SASRec", data.catalogue)
    plain, aligned = (
        load_file(finished / "rankers" / name / "adapter" / PROJECTOR_FILE) for name in ("LLaRA", "LLaRA-S-DPO")
    )
    table = sasrec.model.table.weight.detach()
    embedding = asked.model.get_input_embeddings()
    for n, item in enumerate(embedding.ids):
        assert (plain["items"][n] == table[sasrec.ids.index(item)]).all()
    assert len(plain["items"]) == len(sasrec.ids)
    assert plain.keys() == aligned.keys()
    assert all((plain[k] == aligned[k]).all() for k in plain)
    first, second = (
        load_file(finished / "rankers" / name / "adapter" / "adapter_model.safetensors")
        for name in ("LLaRA", "LLaRA-S-DPO")
    )
    assert first.keys() == second.keys()
    assert any((first[k] != second[k]).any() for k in first)


def test_what_has_not_changed_is_not_trained_again(finished, recipe, monkeypatch):
    done = []
    monkeypatch.setattr(stage_module, "_train", lambda inputs, config, *rest: done.append(config.name))
    monkeypatch.setattr(stage_module, "_align", lambda inputs, config, *rest: done.append(config.name))
    watched = {"save_steps": 2, "eval_rows": 2, "eval_steps": 1}
    passes = {**ALIGNED, **watched, "max_tokens_per_pass": 4000}
    run_recipe(_recipe(recipe, {**LLARA, **watched}, passes), finished, until="rankers")
    assert done == []
    run_recipe(_recipe(recipe, LLARA, {**ALIGNED, "beta": 0.5}), finished, until="rankers")
    assert done == ["LLaRA-S-DPO"]
    other = {**SASREC, "learning_rate": 0.01}  # other vectors, another LLaRA, another reference
    run_recipe(_recipe(recipe, LLARA, {**ALIGNED, "beta": 0.5}, first=[other]), finished, until="rankers")
    assert done == ["LLaRA-S-DPO", "LLaRA", "LLaRA-S-DPO"]


@pytest.mark.parametrize("shared", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_shared_out_are_refused(tmp_path, shared):
    trainer = SimpleNamespace(is_fsdp_enabled=False, is_deepspeed_enabled=False)
    setattr(trainer, shared, True)
    with pytest.raises(ConfigError, match="LLaRA needs the whole model in every process"):
        stage_module._finish(trainer, tmp_path)


def test_it_starts_from_the_whole_model_of_sft(recipe, tmp_path):
    raw = _recipe(recipe).model_dump(mode="json")
    raw |= {"lora": None, "sft": {**ROWS, "epochs": 1, "eval_rows": 0}}
    raw["rankers"] = [SASREC, {**LLARA, "start": "sft"}, {**ALIGNED, "start": "sft"}]
    raw["rankers"].append({"kind": "tallrec", **ROWS, "start": "sft"})
    run_recipe(Recipe.model_validate(raw), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["metrics"]
    assert {"sft", "LLaRA", "LLaRA-S-DPO"} <= metrics.keys()
    for name in ("LLaRA", "TALLRec"):
        base = json.loads((tmp_path / "rankers" / name / "adapter" / "adapter_config.json").read_text())
        assert base["base_model_name_or_path"] == str(tmp_path / "sft" / "adapter")
    with pytest.raises(ValidationError, match=r"rankers.LLaRA.start: sft is an adapter, .* set `lora: null`"):
        Recipe.model_validate(raw | {"lora": recipe.lora.model_dump()})
    with pytest.raises(ValidationError, match=r"LLaRA-S-DPO.start: it must be that of LLaRA: set it to sft"):
        Recipe.model_validate(raw | {"rankers": [*raw["rankers"][:2], {**ALIGNED}]})

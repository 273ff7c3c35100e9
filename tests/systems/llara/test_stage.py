"""LLaRA in a recipe: on SASRec's vectors, with S-DPO after it; what is missing is said before anything is trained."""

import json
import shutil
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.testing import assert_close

from fixed_rankers import FixedStage
from prefrec.data import read_prepared
from prefrec.errors import ConfigError
from prefrec.pipeline.run import run_recipe
from prefrec.prompts import load_template
from prefrec.rankers import RandomRanker
from prefrec.stages.inputs import RunInputs
from prefrec_systems.llara import PROJECTOR_FILE, LlaraAlignConfig, LlaraConfig, load_llara
from prefrec_systems.llara import stage as stage_module
from prefrec_systems.llara.stage import LlaraAlignStage, LlaraStage
from prefrec_systems.sequential import load_sequential
from prefrec_systems.start import from_start

SASREC = {"kind": "sequential", "model": "SASRec", "epochs": 1, "hidden_size": 8}
ROWS = {"rows": 16, "global_batch_size": 8, "learning_rate": 5e-3, "save_steps": 1}
LLARA = {"kind": "llara", **ROWS, "epochs": 2, "eval_rows": 4, "eval_steps": 2}
ALIGNED = {"kind": "llara-s-dpo", **ROWS, "num_negatives": 2, "eval_rows": 4, "eval_steps": 2}
EVALUATE = {"rows": 6, "generate_rows": 2, "zero_shot": False}


@pytest.fixture(scope="module")
def recipe_of(alone):
    return lambda *rankers, first=SASREC: alone(first, *rankers, evaluate=EVALUATE)


@pytest.fixture(scope="module")
def finished(recipe_of, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llara")
    run_recipe(recipe_of(LLARA, ALIGNED), folder)
    return folder


@pytest.fixture(scope="module")
def ask(finished, recipe):
    of = (read_prepared(finished / "data").catalogue, load_template("1", domain="movies"))
    folder, loading = finished / "rankers", {"dtype": "float32"}
    return lambda name: load_llara(name, recipe.model.name, folder / name / "adapter", *of, loading=loading)


def _weights(run, name, file="adapter_model.safetensors"):
    return load_file(run / "rankers" / name / "adapter" / file)


@pytest.mark.long
def test_a_kill_before_the_projector_is_written_keeps_the_checkpoint(finished, recipe_of, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "rankers")

    with monkeypatch.context() as patch:
        patch.setattr(stage_module, "save_projector", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe_of(LLARA), folder, until="rankers")
    (checkpoint,) = (folder / "rankers" / "LLaRA").glob("checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    run_recipe(recipe_of(LLARA), folder, until="rankers")
    assert not checkpoint.exists()
    for file in ("adapter_model.safetensors", PROJECTOR_FILE):
        assert_close(_weights(folder, "LLaRA", file), _weights(finished, "LLaRA", file), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["LLaRA", "LLaRA-S-DPO"])
def test_a_row_of_the_table(finished, ask, check_row, name):
    asked = ask(name)
    rows = check_row(finished, name, asked, 6, 1e-4)
    assert rows["generated"][:2].to_list() == asked.generate(read_prepared(finished / "data").test[:2])
    log = json.loads((finished / "rankers" / name / "log.json").read_text())
    assert len([entry for entry in log if "eval_loss" in entry]) == (2 if name == "LLaRA" else 1)
    assert not list((finished / "rankers" / name).glob("checkpoint-*"))


def test_items_are_those_of_sasrec_and_stay_with_s_dpo(finished, ask):
    asked = ask("LLaRA")
    sasrec = load_sequential(finished / "rankers" / "SASRec", asked.catalogue)
    plain, aligned = (_weights(finished, name, PROJECTOR_FILE) for name in ("LLaRA", "LLaRA-S-DPO"))
    ids = asked.model.get_input_embeddings().ids
    want = sasrec.model.table.weight.detach()[[sasrec.ids.index(item) for item in ids]]
    assert torch.equal(plain["items"], want)
    assert len(ids) == len(sasrec.ids)
    assert_close(aligned, plain, rtol=0, atol=0)
    first, second = (_weights(finished, name) for name in ("LLaRA", "LLaRA-S-DPO"))
    assert first.keys() == second.keys()
    assert any((first[k] != second[k]).any() for k in first)


def test_what_has_not_changed_is_not_trained_again(finished, recipe_of, monkeypatch):
    done = []
    for step in ("_train", "_align"):
        monkeypatch.setattr(stage_module, step, lambda inputs, config, *rest: done.append(config.name))
    watched, other_beta = {"save_steps": 2, "eval_rows": 2, "eval_steps": 1}, {**ALIGNED, "beta": 0.5}
    passes = {**ALIGNED, **watched, "max_tokens_per_pass": 4000}
    run_recipe(recipe_of({**LLARA, **watched}, passes), finished, until="rankers")
    assert done == []
    run_recipe(recipe_of(LLARA, other_beta), finished, until="rankers")
    assert done == ["LLaRA-S-DPO"]
    other = {**SASREC, "learning_rate": 0.01}  # other vectors, another LLaRA, another reference
    run_recipe(recipe_of(LLARA, other_beta, first=other), finished, until="rankers")
    assert done == ["LLaRA-S-DPO", "LLaRA", "LLaRA-S-DPO"]


def test_other_templates_make_it_again_beside_item_tokens(recipe, data, tmp_path):
    """The recipe's own part of the key lacks them there, although LLaRA asks by them."""

    def keys(*templates):
        of_items = {"answers": "items", "templates": list(templates)}
        inputs = RunInputs(data, "key", recipe.model.model_copy(update=of_items), recipe.lora, 0)
        sasrec = FixedStage(RandomRanker(0, "SASRec"))
        llara = LlaraStage(inputs, LlaraConfig(), tmp_path, {"SASRec": sasrec})
        return llara.key, LlaraAlignStage(inputs, LlaraAlignConfig(), tmp_path, {"LLaRA": llara}).key

    assert keys("1") == keys("1")
    assert not {*keys("1")} & {*keys("2"), *keys("1", "2")}


@pytest.mark.parametrize("shared", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_weights_that_are_shared_out_are_refused(tmp_path, shared):
    trainer = SimpleNamespace(**{"is_fsdp_enabled": False, "is_deepspeed_enabled": False, shared: True})
    with pytest.raises(ConfigError, match="LLaRA needs the whole model in every process"):
        stage_module._finish(trainer, tmp_path)


def test_it_starts_from_the_whole_model_of_sft(recipe, alone, tmp_path):
    started = [kind | {"start": "sft"} for kind in (LLARA, ALIGNED, {"kind": "tallrec", **ROWS})]
    whole = {"lora": None, "sft": {**ROWS, "epochs": 1, "eval_rows": 0}}
    run_recipe(alone(SASREC, *started, evaluate=EVALUATE, **whole), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())["evaluation"]["metrics"]
    assert {"sft", "LLaRA", "LLaRA-S-DPO"} <= metrics.keys()
    for name in ("LLaRA", "TALLRec"):
        base = json.loads((tmp_path / "rankers" / name / "adapter" / "adapter_config.json").read_text())
        assert base["base_model_name_or_path"] == str(tmp_path / "sft" / "adapter")
    with pytest.raises(ValidationError, match=r"rankers.LLaRA.start: sft is an adapter, .* set `lora: null`"):
        alone(SASREC, *started, **whole | {"lora": recipe.lora.model_dump()})
    with pytest.raises(ValidationError, match=r"LLaRA-S-DPO.start: it must be that of LLaRA: set it to sft"):
        alone(SASREC, started[0], ALIGNED, **whole)


def test_a_start_from_zero_shot_is_one_from_the_base():
    inputs = SimpleNamespace()
    assert from_start(inputs, SimpleNamespace(weights=None)) is inputs

"""Items as tokens through the stages: SFT, S-DPO, scores, and going on after a stop."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefrec.data import read_prepared
from prefrec.evaluation import read_predictions
from prefrec.lm.items import item_table
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe
from prefrec.recommender import Recommender
from prefrec.sections import AlignSection, SFTSection
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from prefrec.stages.train import train_align, train_sft
from prefrec_server.bodies import RelatedRequest
from prefrec_server.server import open_engine

ITEMS = {"vectors": "tfidf", "learning_rate": 0.02, "dropout": 0.2, "vector_dropout": 0.3}


@pytest.fixture(scope="module")
def items_recipe(recipe) -> Recipe:
    raw = recipe.model_dump(mode="json")
    raw["model"] |= {"answers": "items", "items": ITEMS}
    raw |= {"lora": None, "align": raw["align"][1:]}
    raw["sft"] |= {"rows": None, "epochs": 4, "learning_rate": 1e-3, "disable_dropout": False}
    raw["align"][0] |= {"learning_rate": 1e-3}
    raw["evaluate"] |= {"zero_shot": False, "generate_rows": 0, "baselines": ["random"]}
    return Recipe.model_validate(raw)


@pytest.fixture(scope="module")
def finished(items_recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("items") / "run"
    run_recipe(items_recipe, folder)
    return folder


@pytest.fixture
def sft(items_recipe, data):
    inputs, usual = RunInputs(data, "", items_recipe.model, None, 0), items_recipe.sft.model_dump()
    return lambda out, **changes: train_sft(inputs, SFTSection.model_validate(usual | changes), out)


def _weights(folder):
    return load_file(folder / "model.safetensors")


def _equal(one, other):
    one, other = _weights(one), _weights(other)
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def _losses(folder):
    return [entry["loss"] for entry in json.loads((folder / "log.json").read_text()) if "loss" in entry]


def test_every_stage_leaves_a_model_that_knows_the_items(finished, recipe, items_recipe, capsys):
    ids = read_prepared(finished / "data").catalogue.ids
    base = load_file(recipe.model.name + "/model.safetensors")["model.embed_tokens.weight"]
    for stage in ("sft", "align/s-dpo"):
        assert json.loads((finished / stage / "adapter" / "items.json").read_text()) == ids
        assert torch.equal(_weights(finished / stage / "adapter")["model.embed_tokens.words.weight"], base)
    run_recipe(items_recipe, finished)
    assert "s-dpo: unchanged" in capsys.readouterr().err
    assert not _equal(finished / "sft" / "adapter", finished / "align" / "s-dpo" / "adapter")
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")


def test_predictions_are_those_of_the_models(finished, items_recipe):
    data = read_prepared(finished / "data")
    examples = data.examples("test", items_recipe.evaluate.rows)
    for name, stage in (("sft", "sft"), ("s-dpo", "align/s-dpo")):
        kept = read_predictions(finished / "predictions" / f"{name}.parquet")
        lm = lm_ranker(name, finished / stage / "adapter", data, items_recipe.model)
        assert item_table(lm.model).ids == data.catalogue.ids
        np.testing.assert_allclose(np.array(kept["scores"].to_list()), lm.score(examples), rtol=0, atol=1e-5)
    metrics = json.loads((finished / "metrics.json").read_text())["evaluation"]["metrics"]
    ndcg = {name: own["ndcg@3"]["mean"] for name, own in metrics.items()}
    assert list(ndcg) == ["random", "sft", "s-dpo"]
    assert ndcg["sft"] > ndcg["random"]  # each user walks through the items with a stride


@pytest.mark.long
def test_interrupted_training_ends_with_the_same_weights(sft, stop_after, tmp_path):
    """With dropout of vectors and states, whose draws go on where they were."""
    changes = {"epochs": 3, "save_steps": 5, "eval_rows": 8, "patience": 9}
    whole = sft(tmp_path / "whole", **changes)
    with stop_after(7):
        sft(tmp_path / "stopped", **changes)
    assert (tmp_path / "stopped" / "checkpoint-5").is_dir()
    assert _equal(whole, sft(tmp_path / "stopped", **changes))
    assert _losses(tmp_path / "stopped") == _losses(tmp_path / "whole")


@pytest.mark.long
def test_interrupted_alignment_ends_with_the_same_weights(finished, items_recipe, data, stop_after, tmp_path):
    section = AlignSection.model_validate(items_recipe.align[0].model_dump() | {"epochs": 2, "rows": 16})
    inputs, start = RunInputs(data, "", items_recipe.model, None, 0), finished / "sft" / "adapter"

    def align(out):
        return train_align(inputs, section, start, out)

    whole = align(tmp_path / "whole")
    with stop_after(3):
        align(tmp_path / "stopped")
    assert (tmp_path / "stopped" / "checkpoint-2").is_dir()
    assert _equal(whole, align(tmp_path / "stopped"))


def test_similar_items_are_near_in_the_vectors_of_the_model(finished):
    rec = Recommender.from_run(finished, "s-dpo")
    answer = rec.similar("i5", 4)
    table = item_table(open_run(finished).ranker("s-dpo").model)
    vectors = table.vectors_in(torch.arange(60)).detach().double().numpy()
    cosines = vectors @ vectors[5] / np.linalg.norm(vectors, axis=1) / np.linalg.norm(vectors[5])
    assert answer.by == "item vectors of s-dpo"
    near = [i for i in np.argsort(-cosines) if i != 5][:4]
    assert [row.item_id for row in answer] == [f"i{i}" for i in near]
    np.testing.assert_allclose([row.score for row in answer], cosines[near], rtol=1e-4)
    engine = open_engine(open_run(finished), ["s-dpo"])
    asked = engine.related("similar", RelatedRequest(item="i5", k=4))
    served = asked.answer(engine.submit(asked, 60).result(60))
    engine.close()
    assert (served.by, [line.item_id for line in served.items]) == (answer.by, [row.item_id for row in answer])

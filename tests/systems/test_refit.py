"""Compared systems that are trained again with validation interactions."""

import json

import pytest

from prefrec.data import PreparedData
from prefrec.data.refit import with_validation
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec_systems.sequential import SequentialConfig, train_sequential

SMALL = {"hidden_size": 8, "inner_size": 16, "n_layers": 1}
SASREC = {"kind": "sequential", "epochs": 3, "patience": 3, "grid": {"learning_rate": [1e-4, 1e-2]}, **SMALL}
TRAINED = {"rows": 16, "epochs": 1, "eval_rows": 4, "eval_steps": 2}


@pytest.fixture(scope="module")
def finished(alone, recipe, tmp_path_factory):
    """A run of systems that choose on validation examples, or watch them, all refit."""
    folder = tmp_path_factory.mktemp("runs") / "systems"
    rankers = [
        SASREC,
        {"kind": "morec", "encoder": recipe.model.name, "epochs": 2, **SMALL},
        {"kind": "tallrec", **TRAINED},
        {"kind": "llara", "items_from": "SASRec", **TRAINED},
    ]
    evaluate = {"rows": 8, "zero_shot": False, "generate_rows": 0, "baselines": ["popularity"], "full_rows": 0}
    run_recipe(alone(*rankers, evaluate=evaluate, refit=True), folder)
    return folder


def _about(folder) -> dict:
    return json.loads((folder / "model.json").read_text())


@pytest.mark.parametrize("name", ["SASRec", "MoRec"])
def test_next_item_models_train_again_for_the_epochs_that_validation_chose(finished, name):
    first, again = (_about(folder / "rankers" / name) for folder in (finished, finished / "refit"))
    assert again["best_epoch"] == first["best_epoch"]
    log = json.loads((finished / "refit" / "rankers" / name / "log.json").read_text())
    assert len(log) == first["best_epoch"] + 1
    assert not any("ndcg@10" in line for line in log)  # no example is left to measure on
    assert {k: v for k, v in again["config"].items() if k not in ("epochs", "patience")} == {
        k: v for k, v in first["config"].items() if k not in ("epochs", "patience")
    }


def test_all_systems_answer_test_examples_after_their_refit(finished):
    run = open_run(finished)
    logs = json.loads((finished / "metrics.json").read_text())["evaluation"]["logs"]
    assert {*logs.values()} == {"training and validation"}
    for name in ("SASRec", "MoRec", "TALLRec", "LLaRA"):
        entry = run.stage(name)
        assert (finished / "refit") in entry.weights.parents
        assert (finished / "refit") not in entry.on("validation").weights.parents


def test_an_interrupted_refit_of_a_sequential_model_ends_alike(data: PreparedData, tmp_path, monkeypatch):
    from prefrec_systems.sequential.train import Training

    config, longer = SequentialConfig(epochs=3, **SMALL), with_validation(data)
    whole = train_sequential(longer, config, tmp_path / "whole", seed=0, epochs=3)
    ended = Training._end_epoch

    def stop(self, name, loss):
        ended(self, name, loss)
        if len(self.state.log) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Training, "_end_epoch", stop)
        with pytest.raises(KeyboardInterrupt):
            train_sequential(longer, config, tmp_path / "again", seed=0, epochs=3)
    again = train_sequential(longer, config, tmp_path / "again", seed=0, epochs=3)
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

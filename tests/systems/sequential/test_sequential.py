"""GRU4Rec, Caser and SASRec: what they learn, scores one by one, unknown items, grids, going on after a stop."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.errors import ModelError
from prefrec.evaluation import metrics_for, target_ranks
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers import Ranker, matrices
from prefrec_systems.sequential import SEQUENTIAL_MODELS, SequentialConfig, load_sequential, train
from prefrec_systems.sequential.models import SequentialModel
from prefrec_systems.sequential.task import task_of
from prefrec_systems.sequential.train import MODEL_FILES, train_sequential

COLD = "i60"
"""An item that nobody takes before the test rows; i61 is new in the validation rows."""
SMALL = {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "dropout": 0.0, "batch_size": 8, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    """40 users walk through 60 items with a stride of 1 to 3; two items are new at the end of some walks."""
    folder, rng = tmp_path_factory.mktemp("log"), np.random.default_rng(0)
    walks = {
        f"u{u:02}": [f"i{(start + n * (1 + u % 3)) % 60}" for n in range(9)]
        for u, start in enumerate(rng.integers(60, size=40).tolist())
    }
    walks["u00"][-1] = walks["u01"][-1] = COLD
    walks["u02"][-2] = walks["u03"][-2] = "i61"
    rows = [(u, item, 1000 * n) for u, items in walks.items() for n, item in enumerate(items)]
    titles = [(f"i{n}", f"Title {n}") for n in range(62)]
    paths = {"interactions": folder / "log.csv", "items": folder / "items.csv"}
    pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row").write_csv(paths["interactions"])
    pl.DataFrame(titles, ["item_id", "title"], orient="row").write_csv(paths["items"])
    choices = {"source": "files", "domain": "generic", "candidates": {"size": 6}, "history_length": 5}
    return prepare(PrepareConfig(**choices, **paths))


def _config(model: str, **changes) -> SequentialConfig:
    return SequentialConfig(model=model, **(SMALL | {"epochs": 20} | changes))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """Model → its folder; each is trained once, and only read."""
    folders = {}

    def folder(model: str) -> Path:
        if model not in folders:
            folders[model] = train_sequential(data, _config(model), tmp_path_factory.mktemp(model) / model, seed=0)
        return folders[model]

    return folder


def _json(folder: Path, file: str) -> dict | list[dict]:
    return json.loads((folder / file).read_text())


def _full_scores(asked, data: PreparedData, examples) -> np.ndarray:
    return asked.score([replace(e, candidates=tuple(data.catalogue.ids)) for e in examples])


def _full_ndcg(asked, data: PreparedData, examples) -> float:
    """NDCG@10 over the whole catalogue but what the user has seen, by the evaluation's own functions."""
    column = {item: n for n, item in enumerate(data.catalogue.ids)}
    scores = _full_scores(asked, data, examples)
    for row, seen in zip(scores, seen_items(data, examples), strict=True):
        row[[column[item] for item in seen]] = -np.inf
    ranks = target_ranks(scores, [column[e.target] for e in examples])
    return float(metrics_for((10,))["ndcg@10"](*ranks).mean())


def test_the_task_of_a_model_of_ids_leaves_new_items_out(data):
    task = task_of(data, new_items=False)
    assert task.ids == [i for i in data.catalogue.ids if i not in (COLD, "i61")]
    assert task.known == len(task.ids) == 60
    walks = data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")["item_id"].to_list()
    assert [[task.ids[c] for c in s] for s in task.sequences] == walks
    rows = [e for e in data.validation if e.target != "i61"]
    assert [[task.ids[c] for c in row if c >= 0] for row in task.histories] == [list(e.history) for e in rows]
    assert [task.ids[c] for c in task.targets] == [e.target for e in rows]
    logs = dict(data.train_interactions.group_by("user_id").agg("item_id").iter_rows())
    assert [{task.ids[c] for c in codes} for codes in task.seen] == [set(logs[e.user_id]) for e in rows]
    everything = task_of(data, new_items=True)
    assert (everything.known, everything.ids[60:]) == (60, [COLD, "i61"])
    assert len(everything.targets) == len(rows) + 2


def test_the_grid_is_a_product():
    assert [cell for cell, _ in _config("SASRec").trials()] == [{}]
    config = _config("SASRec", grid={"learning_rate": [0.1, 0.2], "dropout": [0.0, 0.5]})
    assert [(c.learning_rate, c.dropout) for _, c in config.trials()] == [(0.1, 0), (0.1, 0.5), (0.2, 0), (0.2, 0.5)]
    assert _config("SASRec", grid={"n_layers": "1,2"}).grid == {"n_layers": [1, 2]}
    no_field = "grid: n_layers? is not a grid field, or has no values; fields are batch_size"
    bad = [({"n_layer": [1]}, no_field), ({"n_layers": []}, no_field), ({"dropout": [0.1, 2.0]}, "dropout")]
    for grid, message in bad:
        with pytest.raises(ValueError, match=message):
            _config("SASRec", grid=grid)
    with pytest.raises(ValueError, match="logq: false changes the sampled softmax alone; set negatives"):
        SequentialConfig(logq=False)
    with pytest.raises(ValueError, match="3 does not divide hidden_size 64"):
        SequentialConfig(n_heads=3)


@pytest.mark.parametrize("model", SEQUENTIAL_MODELS)
def test_walks_are_learnt(trained, data, model):
    asked = load_sequential(trained(model), data.catalogue)
    assert _full_ndcg(asked, data, [e for e in data.test if e.target != COLD]) > 0.3  # chance: 0.08


@pytest.mark.parametrize("model", SEQUENTIAL_MODELS)
def test_scores_are_inner_products_one_by_one(trained, data, model):
    asked = load_sequential(trained(model), data.catalogue)
    assert isinstance(asked, Ranker)
    assert asked.name == model
    weights = load_file(trained(model) / "model.safetensors")["table.weight"]
    scores, full = asked.score(data.test), _full_scores(asked, data, data.test)
    column = {item: n for n, item in enumerate(data.catalogue.ids)}
    for row, whole, e in zip(scores, full, data.test, strict=True):
        codes = [asked.ids.index(i) for i in e.history if i in asked.ids]
        with torch.no_grad():
            state = asked.model.states(weights[codes][None])[0, -1]
        for candidate, score in zip(e.candidates, row, strict=True):
            if candidate in asked.ids:
                assert score == whole[column[candidate]]
                assert score == pytest.approx(float(state @ weights[asked.ids.index(candidate)]), abs=1e-4)


def test_new_items_score_the_mean_and_say_nothing_in_a_history(trained, data):
    asked = load_sequential(trained("SASRec"), data.catalogue)
    known = RankingExample("u", ("i1", "i2"), ("i5", COLD, "i9", "i61"), "i5")
    with_new = RankingExample("u", ("i61", "i1", COLD, "i2"), known.candidates, "i5")
    scores = asked.score([known, with_new])
    assert scores[0, 1] == scores[0, 3] == pytest.approx((scores[0, 0] + scores[0, 2]) / 2)
    whole, column = _full_scores(asked, data, [known])[0], data.catalogue.ids.index
    assert whole[column(COLD)] == pytest.approx(np.mean([whole[column(i)] for i in asked.ids]), abs=1e-5)
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
    only_new = RankingExample("u", (COLD,), known.candidates, "i5")
    assert asked.score([only_new]).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    shorter = RankingExample("u", ("i1",), ("i5", "i9"), "i5")
    assert np.isneginf(asked.score([known, shorter])[1, 2:]).all()
    assert asked.score([]).shape == (0, 0)


def test_validation_chooses_epoch_and_cell(data, tmp_path):
    config = _config("GRU4Rec", grid={"learning_rate": [1e-5, 0.02]}, epochs=40, patience=2)
    out = train_sequential(data, config, tmp_path / "GRU4Rec", seed=1)
    assert {p.name for p in out.iterdir()} == {*MODEL_FILES, "log.json"}
    about = _json(out, "model.json")
    scores = {n: [e["ndcg@10"] for e in _json(out, "log.json") if e["trial"] == n] for n in (0, 1)}
    assert about["best"] == max(map(max, scores.values())) == scores[1][about["best_epoch"]]
    assert about["config"]["learning_rate"] == 0.02
    assert all(len(s) == min(40, s.index(max(s)) + 1 + 2) for s in scores.values())
    known = [e for e in data.validation if e.target != "i61"]
    assert _full_ndcg(load_sequential(out, data.catalogue), data, known) == pytest.approx(about["best"], abs=1e-6)


def test_a_sample_of_many_validation_rows_chooses_the_epoch(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "MOST_ROWS", 7)
    monkeypatch.setattr(matrices, "CELLS_AT_A_TIME", 120)  # two rows at a time
    config, seed = _config("GRU4Rec", epochs=3), 4
    out = train_sequential(data, config, tmp_path / "GRU4Rec", seed=seed)
    known = [e for e in data.validation if e.target != "i61"]
    sample = np.random.default_rng(seed).permutation(len(known))[:7]
    ndcg = _full_ndcg(load_sequential(out, data.catalogue), data, [known[i] for i in sample])
    assert _json(out, "model.json")["best"] == pytest.approx(ndcg, abs=1e-6)


def test_a_stopped_training_goes_on_and_ends_alike(data, tmp_path, monkeypatch):
    config = _config("GRU4Rec", grid={"dropout": [0.0, 0.3]}, epochs=4)
    whole, steps = train_sequential(data, config, tmp_path / "whole", seed=0), 0

    def stop(items, description, total):
        nonlocal steps
        for item in items:
            steps += 1
            if steps * 2 > total * 3:  # in the middle of the second cell
                raise RuntimeError("stopped")
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(train, "track", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_sequential(data, config, tmp_path / "out", seed=0)
    counted = []
    monkeypatch.setattr(train, "track", lambda items, description, total: counted.append(total) or items)
    out = train_sequential(data, config, tmp_path / "out", seed=0)
    assert counted[0] == 0 < counted[1] < steps
    want, got = (load_file(f / "model.safetensors") for f in (whole, out))
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    assert all(_json(out, file) == _json(whole, file) for file in ("log.json", "model.json"))


@pytest.mark.parametrize("where", ["loss", "score"])
def test_a_diverged_training_stops_and_leaves_the_last_good_epoch(data, tmp_path, monkeypatch, where):
    whole, scores, good, out = SequentialModel.loss, train.last_scores, [], tmp_path / "SASRec"

    def loss(self, batch):
        return whole(self, batch) * (float("nan") if where == "loss" and good else 1)

    def scored(*args):
        good.append(True)
        return scores(*args) * (float("nan") if where == "score" and len(good) > 1 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(SequentialModel, "loss", loss)
        patch.setattr(train, "last_scores", scored)
        with pytest.raises(ModelError, match=r"diverged in epoch 2 .* lower learning_rate \(0.02\)$"):
            train_sequential(data, _config("SASRec", epochs=3), out, seed=0)
    state = torch.load(out / "work" / "0" / "checkpoint.pt", weights_only=True)["state"]
    assert (len(state["log"]), state["best_epoch"]) == (1, 0)
    assert all(t.isfinite().all() for t in load_file(out / "work" / "0" / "best.safetensors").values())
    train_sequential(data, _config("SASRec", epochs=3), out, seed=0)
    assert [e["epoch"] for e in _json(out, "log.json")] == [0, 1, 2]

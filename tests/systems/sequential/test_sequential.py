"""GRU4Rec, Caser and SASRec against hopwise's own runs and metrics; files, policies, seeds, going on after a stop."""

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from prefrec.data import PrepareConfig, PreparedData, RankingExample, prepare
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation import metrics_for, target_ranks
from prefrec.rankers import Ranker
from prefrec_systems.sequential import (
    MODEL_FILES,
    SequentialConfig,
    load_sequential,
    ranker,
    train,
    train_sequential,
    write_benchmark,
)
from prefrec_systems.sequential.benchmark import prefixes
from sequential import SMALL, needs_hopwise

COLD = "i60"
"""An item that nobody takes before the test rows; i61 is new in the validation rows."""
TRAINING = {"epochs": 3, "batch_size": 32, "learning_rate": 0.02}
HOPWISE_ALONE = """
import json, sys
from hopwise.config import Config
from hopwise.data import create_dataset, data_preparation
from hopwise.utils import get_model, get_trainer, init_seed

folder, length, epochs, batch = sys.argv.pop(), *(int(sys.argv.pop()) for _ in range(3))
config = Config(model="SASRec", dataset="prefrec", config_dict=dict(
    data_path=folder, checkpoint_dir=folder, benchmark_filename=["train", "valid", "test"],
    load_col=dict(inter=["user_id", "item_id_list", "item_id"]), alias_of_item_id=["item_id_list"],
    MAX_ITEM_LIST_LENGTH=length, train_neg_sample_args=None, epochs=epochs, train_batch_size=batch,
    learning_rate=0.02, hidden_size=8, inner_size=16, n_layers=1, seed=0, metrics=["Hit", "NDCG"], topk=[10],
    metric_decimal_place=12,
))
init_seed(0, True)
train, valid, test = data_preparation(config, create_dataset(config))
init_seed(0, True)
trainer = get_trainer(config["MODEL_TYPE"], "SASRec")(config, get_model("SASRec")(config, train.dataset))
trainer.fit(train, valid, verbose=False)
print(json.dumps(trainer.evaluate(test)))
"""


def _log(folder: Path) -> dict[str, Path]:
    """40 users walk through 60 items with a stride of 1 to 3; two items are new at the end of some walks."""
    rng = np.random.default_rng(0)
    walks = {
        f"u{u:02}": [f"i{(start + n * (1 + u % 3)) % 60}" for n in range(9)]
        for u, start in enumerate(rng.integers(60, size=40).tolist())
    }
    walks["u00"][-1] = walks["u01"][-1] = COLD
    walks["u02"][-2] = walks["u03"][-2] = "i61"
    rows = [(u, item, 1000 * n) for u, items in walks.items() for n, item in enumerate(items)]
    paths = {"interactions": folder / "log.csv", "items": folder / "items.csv"}
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(paths["interactions"])
    pl.DataFrame({"item_id": [f"i{n}" for n in range(62)], "title": [f"Title {n}" for n in range(62)]}).write_csv(
        paths["items"]
    )
    return paths


def _prepare(folder: Path, **changes) -> PreparedData:
    choices = {"source": "files", "domain": "generic", "candidates": {"size": 6}, "history_length": 5}
    return prepare(PrepareConfig(**choices, **_log(folder), **changes))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> PreparedData:
    return _prepare(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def by_user(tmp_path_factory) -> PreparedData:
    """Validation and test rows belong to users without training rows."""
    return _prepare(tmp_path_factory.mktemp("by_user"), split="user")


def _config(model: str, **changes) -> SequentialConfig:
    return SequentialConfig(model=model, **(TRAINING | {"settings": SMALL[model]} | changes))


@pytest.fixture(scope="module")
def trained(data, by_user, tmp_path_factory):
    """Model → its folder; each is trained once. Caser, which has users, on the split by user."""
    folders = {}

    def folder(model: str) -> Path:
        if model not in folders:
            out = tmp_path_factory.mktemp(model)
            of = by_user if model == "Caser" else data
            folders[model] = train_sequential(of, _config(model), out / model, seed=0)
        return folders[model]

    return folder


@pytest.fixture
def ask(trained, data, by_user):
    def load(model: str):
        of = by_user if model == "Caser" else data
        return load_sequential(trained(model), of.catalogue), of

    return load


MODELS = [pytest.param(model, marks=needs_hopwise) for model in SMALL]


def _about(folder: Path) -> dict:
    return json.loads((folder / "model.json").read_text())


def _full_metrics(asked, data: PreparedData, examples) -> dict[str, float]:
    """Our metrics over the whole catalogue."""
    column = {item: n for n, item in enumerate(data.catalogue.ids)}
    ranks = target_ranks(asked.full_scores(examples), [column[e.target] for e in examples])
    return {name: float(metric(ranks).mean()) for name, metric in metrics_for((1, 5, 10)).items()}


# --- files and configuration: no hopwise needed


def test_training_rows_are_all_prefixes(data):
    walks = defaultdict(list)
    for user, item, _ in data.train_interactions.iter_rows():
        walks[user].append(item)
    slow = [(u, items[:n][-4:], items[n]) for u, items in walks.items() for n in range(1, len(items))]
    assert list(prefixes(data.train_interactions, 4)) == slow
    assert len(slow) == 40 * 6


def test_benchmark_files_hold_our_rows(data, tmp_path):
    vocabulary = write_benchmark(data, tmp_path)
    assert vocabulary.items == [i for i in data.catalogue.ids if i not in (COLD, "i61")]
    assert vocabulary.history_length == 5
    names = ["", *vocabulary.items]
    users = ["", *vocabulary.users]
    read = {}
    for part in ("train", "valid", "test"):
        frame = pl.read_csv(tmp_path / "prefrec" / f"prefrec.{part}.inter", separator="\t", infer_schema=False)
        assert frame.columns == ["user_id:token", "item_id_list:token_seq", "item_id:token"]
        read[part] = [
            (users[int(u)], tuple(names[int(t)] for t in h.split()), names[int(i)]) for u, h, i in frame.rows()
        ]
    assert read["train"] == [(u, tuple(h), t) for u, h, t in prefixes(data.train_interactions, 5)]
    for part, examples in (("valid", data.validation), ("test", data.test)):
        assert read[part] == [
            (e.user_id, tuple(i for i in e.history if i not in (COLD, "i61")), e.target)
            for e in examples
            if e.target not in (COLD, "i61")
        ]
    assert len(read["valid"]) == len(read["test"]) == 38


def test_users_without_training_rows_share_a_token(by_user, tmp_path):
    write_benchmark(by_user, tmp_path)
    valid, train_ = (
        pl.read_csv(tmp_path / "prefrec" / f"prefrec.{part}.inter", separator="\t") for part in ("valid", "train")
    )
    assert set(valid["user_id:token"]) == {0}
    assert min(train_["user_id:token"]) == 1


def test_validation_rows_stand_in_for_test_rows_that_nothing_is_known_of(data, tmp_path):
    cold = [e for e in data.test if e.target == COLD]
    only = PreparedData(data.catalogue, data.train, data.validation, cold, data.train_interactions)
    write_benchmark(only, tmp_path)
    valid, test = ((tmp_path / "prefrec" / f"prefrec.{part}.inter").read_text() for part in ("valid", "test"))
    assert valid == test


def test_data_that_teach_nothing_are_refused(data, tmp_path):
    firsts = data.train_interactions.group_by("user_id", maintain_order=True).first()
    single = PreparedData(data.catalogue, [], data.validation, data.test, firsts)
    with pytest.raises(DataError, match="no user has two training interactions"):
        write_benchmark(single, tmp_path)
    cold = [e for e in data.validation if e.target == "i61"]
    new = PreparedData(data.catalogue, [], cold, data.test, data.train_interactions)
    with pytest.raises(DataError, match="none of 2 validation rows has a target and a history"):
        write_benchmark(new, tmp_path)


def test_the_grid_is_a_product():
    assert _config("SASRec").trials == [(0.02, 0.0)]
    grid = {"learning_rate": [0.1, 0.2], "weight_decay": [0.0, 1e-3]}
    assert _config("SASRec", grid=grid).trials == [(0.1, 0.0), (0.1, 1e-3), (0.2, 0.0), (0.2, 1e-3)]
    with pytest.raises(ValueError, match="settings: Caser has no n_layers; it takes embedding_size, nv"):
        _config("Caser", settings={"n_layers": 2})


def test_without_hopwise_the_error_says_what_to_install(data, tmp_path, monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "hopwise"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hopwise", None)
    with pytest.raises(ConfigError, match=r"pip install hopwise"):
        ranker.require_hopwise()


def test_a_worker_without_hopwise_says_so_too(data, tmp_path, monkeypatch):
    (tmp_path / "hopwise.py").write_text("import colours_that_nobody_has")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(ConfigError, match="no module 'colours_that_nobody_has'"):
        train_sequential(data, _config("SASRec"), tmp_path / "out", seed=0)


@needs_hopwise
def test_hopwise_leaves_anomaly_detection_off():
    code = (
        "import sys, torch; from prefrec_systems.sequential import require_hopwise; require_hopwise();"
        "assert 'hopwise.model.sequential_recommender.sine' in sys.modules;"
        "assert not torch.is_anomaly_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- scores


@pytest.mark.parametrize("model", MODELS)
def test_full_catalogue_metrics_are_those_of_hopwise(ask, trained, model):
    asked, data = ask(model)
    for part, examples in (("validation", data.validation), ("test", data.test)):
        known = [e for e in examples if e.target in asked.vocabulary.item_tokens]
        ours = _full_metrics(asked, data, known)
        theirs = _about(trained(model))["hopwise"][part]
        for name in ("hit@1", "hit@5", "hit@10", "ndcg@5", "ndcg@10"):
            assert ours[name.replace("hit", "hr")] == pytest.approx(theirs[name], abs=1e-6)
        assert 0 < theirs["hit@10"] < 1


def _hopwise_alone(data: PreparedData, folder: Path, *, epochs: int, batch_size: int) -> dict[str, float]:
    """Test metrics of a process that knows nothing of prefrec but the files: its own checkpoint and evaluation."""
    length = write_benchmark(data, folder).history_length
    command = [sys.executable, "-c", HOPWISE_ALONE, *map(str, (batch_size, epochs, length, folder))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_hopwise
def test_sasrec_is_what_hopwise_alone_trains(ask, tmp_path):
    asked, data = ask("SASRec")
    theirs = _hopwise_alone(data, tmp_path, epochs=3, batch_size=32)
    ours = _full_metrics(asked, data, [e for e in data.test if e.target != COLD])
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-6)
    assert ours["hr@10"] == pytest.approx(theirs["hit@10"], abs=1e-6)


@needs_hopwise
def test_on_movielens_sasrec_is_what_hopwise_alone_trains(tmp_path):
    """The last interaction of each user of MovieLens-100K, among all items; five stars alone, a fifth of the log."""
    data = prepare(PrepareConfig(source="movielens-100k", split="leave-last-out", min_rating=5))
    settings = {"epochs": 1, "batch_size": 4096}
    asked = load_sequential(
        train_sequential(data, _config("SASRec", **settings), tmp_path / "out", seed=0), data.catalogue
    )
    known = [e for e in data.test if e.target in asked.vocabulary.item_tokens]
    assert len(known) > 700
    ours, theirs = _full_metrics(asked, data, known), _hopwise_alone(data, tmp_path, **settings)
    assert ours["ndcg@10"] == pytest.approx(theirs["ndcg@10"], abs=1e-6)
    assert ours["hr@10"] == pytest.approx(theirs["hit@10"], abs=1e-6)
    assert theirs["hit@10"] > 0.01


@pytest.mark.parametrize("model", MODELS)
def test_candidates_are_scored_as_in_the_whole_catalogue(ask, model):
    asked, data = ask(model)
    assert isinstance(asked, Ranker)
    assert asked.name == model
    scores, full = asked.score(data.test), asked.full_scores(data.test)
    column = {item: n for n, item in enumerate(data.catalogue.ids)}
    assert full.shape == (len(data.test), len(data.catalogue))
    for row, whole, example in zip(scores, full, data.test, strict=True):
        assert row.tolist() == [whole[column[c]] for c in example.candidates]


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_hopwise_predictions_one_by_one(ask, model):
    asked, data = ask(model)
    tokens = asked.vocabulary.item_tokens
    for example in data.test[2:6]:
        scores = asked.score([example])[0]
        history = [tokens[i] for i in example.history if i in tokens]
        padded = history + [0] * (asked.vocabulary.history_length - len(history))
        for candidate, score in zip(example.candidates, scores, strict=True):
            if candidate not in tokens:
                continue
            batch = {
                "user_id": torch.tensor([asked.vocabulary.user_tokens.get(example.user_id, 0)]),
                "item_id_list": torch.tensor([padded]),
                "item_length": torch.tensor([len(history)]),
                "item_id": torch.tensor([tokens[candidate]]),
            }
            with torch.no_grad():
                assert score == pytest.approx(float(asked.model.predict(batch)), abs=1e-5)


@needs_hopwise
def test_new_items_come_last_and_say_nothing_in_a_history(ask):
    asked, data = ask("SASRec")
    known = RankingExample("u", ("i1", "i2"), ("i5", COLD, "i9", "i61"), "i5")
    with_new = RankingExample("u", ("i61", "i1", COLD, "i2"), known.candidates, "i5")
    scores = asked.score([known, with_new])
    assert scores[0, 1] == scores[0, 3] == asked.full_scores([known])[0].min() < min(scores[0, 0], scores[0, 2])
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
    only_new = RankingExample("u", (COLD,), known.candidates, "i5")
    assert asked.score([only_new]).tolist() == [[0.0, -1.0, 0.0, -1.0]]
    shorter = RankingExample("u", ("i1",), ("i5", "i9"), "i5")
    assert np.isneginf(asked.score([known, shorter])[1, 2:]).all()
    assert asked.score([]).shape == (0, 0)
    assert asked.full_scores([]).shape == (0, len(data.catalogue))


@needs_hopwise
def test_histories_are_cut_at_their_old_end(ask):
    asked, _ = ask("SASRec")
    long = RankingExample("u", tuple(f"i{n}" for n in range(9)), ("i20", "i30"), "i20")
    last = RankingExample("u", long.history[-5:], long.candidates, "i20")
    np.testing.assert_allclose(asked.score([long]), asked.score([last]), atol=1e-6)
    other = RankingExample("u", long.history[:5], long.candidates, "i20")
    assert not np.allclose(asked.score([long]), asked.score([other]), atol=1e-4)


@needs_hopwise
def test_casers_unknown_users_are_the_zero_vector(ask):
    asked, data = ask("Caser")
    table = asked.model.user_embedding.weight
    assert not table[0].any()
    assert table[1:].any(dim=1).all()
    one = data.test[0]
    known = RankingExample(asked.vocabulary.users[0], one.history, one.candidates, one.target)
    other = RankingExample("nobody", one.history, one.candidates, one.target)
    scores = asked.score([one, known, other])
    np.testing.assert_allclose(scores[0], scores[2], atol=1e-6)
    assert not np.allclose(scores[0], scores[1], atol=1e-5)


# --- training


@needs_hopwise
def test_only_weights_and_words_are_left(trained):
    folder = trained("GRU4Rec")
    assert {p.name for p in folder.iterdir()} == {*MODEL_FILES, "log.json"}
    about = _about(folder)
    assert about["settings"] == {"embedding_size": 8, "hidden_size": 8, "num_layers": 1, "dropout_prob": 0.3}
    log = json.loads((folder / "log.json").read_text())
    assert [e["epoch"] for e in log] == [0, 1, 2]
    assert log[2]["loss"] < log[0]["loss"]
    assert max(e["ndcg@10"] for e in log) == about["trials"][0]["best"]
    assert about["hopwise"]["validation"]["ndcg@10"] == pytest.approx(about["trials"][0]["best"], abs=1e-9)


@needs_hopwise
def test_a_stopped_training_goes_on_and_ends_alike(trained, data, tmp_path, monkeypatch):
    class StopError(Exception):
        pass

    def stop(events, description, total):
        yield next(iter(events))
        raise StopError

    out = tmp_path / "GRU4Rec"
    with monkeypatch.context() as patch:
        patch.setattr(train, "track", stop)
        with pytest.raises(StopError):
            train_sequential(data, _config("GRU4Rec", epochs=1), out, seed=0)
    checkpoint = torch.load(out / "work" / "trials" / "0" / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["log"]) == 1
    train_sequential(data, _config("GRU4Rec"), out, seed=0)
    want, got = (load_file(f / "model.safetensors") for f in (trained("GRU4Rec"), out))
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert (out / "log.json").read_text() == (trained("GRU4Rec") / "log.json").read_text()


@needs_hopwise
def test_validation_chooses_epoch_and_cell_and_the_seed_matters(trained, data, tmp_path):
    grid = {"learning_rate": [1e-5, 0.02], "weight_decay": [0.0]}
    config = _config("GRU4Rec", grid=grid, epochs=40, patience=2)
    out = train_sequential(data, config, tmp_path / "GRU4Rec", seed=1)
    about, log = _about(out), json.loads((out / "log.json").read_text())
    for number, trial in enumerate(about["trials"]):
        scores = [e["ndcg@10"] for e in log if e["trial"] == number]
        assert scores[trial["best_epoch"]] == max(scores) == trial["best"]
        assert len(scores) == min(40, trial["best_epoch"] + 1 + 2)
    assert any(len([e for e in log if e["trial"] == n]) < 40 for n in (0, 1))
    best = [trial["best"] for trial in about["trials"]]
    assert best[0] != best[1]
    assert about["chosen"] == int(np.argmax(best))
    assert about["hopwise"]["validation"]["ndcg@10"] == pytest.approx(max(best), abs=1e-9)
    first = [json.loads((f / "log.json").read_text()) for f in (out, trained("GRU4Rec"))]
    assert first[0][-1]["loss"] != first[1][-1]["loss"]


@needs_hopwise
def test_a_failing_worker_is_quoted(data, tmp_path):
    settings = {"hidden_size": 8, "n_heads": 3}
    with pytest.raises(ModelError, match=r"exit code 1: ValueError: The hidden size \(8\).* its whole log is in"):
        train_sequential(data, _config("SASRec", settings=settings), tmp_path / "out", seed=0)


@needs_hopwise
def test_what_cannot_be_read_is_named(trained, data, by_user, tmp_path):
    with pytest.raises(ModelError, match=f"{tmp_path} holds no sequential recommender"):
        load_sequential(tmp_path, data.catalogue)
    shutil.copytree(trained("GRU4Rec"), tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match="damaged"):
        load_sequential(tmp_path / "half", data.catalogue)
    smaller = type(data.catalogue)(data.catalogue.frame.head(10))
    with pytest.raises(DataError, match="GRU4Rec was trained on other data: 50 of its 60 items"):
        load_sequential(trained("GRU4Rec"), smaller)

"""MoRec: scores against a slow twin, items without training rows by their titles, going on after a stop."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.evaluation import target_ranks
from prefrec_systems.morec import MoRecConfig, load_morec, ranker, train, train_morec
from prefrec_systems.sequential import train as training
from tiny_lists import CATALOGUE
from tiny_run import FIRST, SECOND, TITLES, write_model

COLD = [f"i{10 * g + 9}" for g in range(len(FIRST))]
"""`Red Night`, `Old Night`, …: nobody takes them before the test rows."""
SMALL = {"hidden_size": 16, "inner_size": 32, "n_layers": 1, "dropout": 0.1, "batch_size": 16, "learning_rate": 0.01}


@pytest.fixture(scope="module")
def data() -> PreparedData:
    """60 users, each of whom keeps to titles with one first word; in the test rows to one that is new."""
    rng = np.random.default_rng(0)
    log, validation, test = [], [], []
    for u in range(60):
        name, group = f"u{u:02}", u % len(FIRST)
        taken = [f"i{10 * group + n}" for n in rng.permutation(len(SECOND) - 1)]
        log += [(name, item, n) for n, item in enumerate(taken[:7])]
        others = [f"i{n}" for n in rng.permutation(60)[:5] if f"i{n}" != taken[7]]
        validation.append(RankingExample(name, tuple(taken[3:7]), (taken[7], *others), taken[7]))
        test.append(RankingExample(name, tuple(taken[4:8]), tuple(COLD), COLD[group]))
    frame = pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row")
    return PreparedData(CATALOGUE, [], validation, test, frame)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, bpe_tokenizer) -> str:
    return str(write_model(tmp_path_factory.mktemp("model"), bpe_tokenizer))


@pytest.fixture(scope="module")
def config(encoder):
    return lambda **changes: MoRecConfig(**(SMALL | {"encoder": encoder, "epochs": 8} | changes))


@pytest.fixture(scope="module")
def trained(data, config, tmp_path_factory) -> Path:
    return train_morec(data, config(), tmp_path_factory.mktemp("frozen") / "MoRec", seed=0)


@pytest.fixture(scope="module")
def tuned(data, config, tmp_path_factory) -> Path:
    choices = {"tune": True, "epochs": 3, "encoder_learning_rate": 3e-3}
    return train_morec(data, config(**choices), tmp_path_factory.mktemp("tuned") / "MoRec", seed=0)


@pytest.fixture(params=["trained", "tuned"])
def folder(request) -> Path:
    return request.getfixturevalue(request.param)


def _slow_scores(folder: Path, history, candidates) -> list[float]:
    """One title and one history at a time, through the encoder that the folder names."""
    about = json.loads((folder / "model.json").read_text())["config"]
    encoder = ranker.load_encoder(str(folder / "encoder") if about["tune"] else about["encoder"], 32).eval()
    asked = load_morec(folder, CATALOGUE)
    model = asked.model.model

    def item(i: str) -> torch.Tensor:
        (title,) = CATALOGUE.titles_of([i])
        ids = torch.tensor([encoder.tokenizer(title)["input_ids"]])
        return model.items(encoder.model(input_ids=ids).last_hidden_state[0].mean(dim=0))

    with torch.no_grad():
        state = model.states(torch.stack([item(i) for i in history[-asked.history_length :]])[None])[0, -1]
        return [float(state @ item(c)) for c in candidates]


def test_scores_equal_the_slow_twin(folder):
    rows = [
        RankingExample("u", ("i1",), ("i5", COLD[0]), "i5"),
        RankingExample("u", (COLD[1], "i3", "i1", "i7", "i4", "i22"), ("i5", COLD[0], "i9", "i33"), "i5"),
    ]
    scores = load_morec(folder, CATALOGUE).score(rows)
    want = [_slow_scores(folder, e.history, e.candidates) for e in rows]
    np.testing.assert_allclose(scores, [want[0] + [-np.inf] * 2, want[1]], rtol=0, atol=1e-4)


def test_cold_items_are_found_by_their_titles(trained, data):
    """All candidates are new; only the first word of the title says which one it is. Chance is 1/6."""
    assert not set(COLD) & set(data.train_interactions["item_id"])
    ranks, _ = target_ranks(load_morec(trained, CATALOGUE).score(data.test), [e.target_index for e in data.test])
    assert (ranks == 1).mean() > 0.9


def test_items_that_come_after_training_are_encoded_when_it_is_loaded(folder):
    titles = {"same": "Red Alien", "new": "Wild Opus Red", "i3": CATALOGUE.titles["i3"], "i0": "Red Alien"}
    later = Catalogue(pl.DataFrame({"item_id": list(titles), "title": list(titles.values())}))
    asked = load_morec(folder, later)
    same, old, new = asked.score([RankingExample("u", ("i3", "new"), ("same", "i0", "new"), "new")])[0]
    assert same == pytest.approx(old, abs=1e-5)
    assert abs(new - old) > 1e-3


def test_the_encoder_is_not_loaded_where_all_titles_are_known(trained, monkeypatch):
    monkeypatch.setattr(ranker, "load_encoder", lambda *_: pytest.fail("the encoder was loaded"))
    load_morec(trained, CATALOGUE)
    with pytest.raises(pytest.fail.Exception):
        load_morec(trained, Catalogue(pl.DataFrame({"item_id": ["x"], "title": ["Never seen"]})))


def test_the_frozen_encoder_is_as_it_was_and_the_tuned_one_is_not(trained, tuned, encoder):
    start = ranker.load_encoder(encoder, 32).encode(TITLES)
    kept = {of: ranker.read_titles(of / "titles.safetensors") for of in (trained, tuned)}
    vectors = {of: torch.stack([k[t] for t in TITLES]) for of, k in kept.items()}
    torch.testing.assert_close(vectors[trained], start)
    assert (vectors[tuned] - start).abs().max() > 1e-3
    again = ranker.load_encoder(str(tuned / "encoder"), 32).encode(TITLES)
    torch.testing.assert_close(vectors[tuned], again)


def test_a_stopped_training_goes_on_and_ends_alike(folder, data, tmp_path, monkeypatch):
    config = MoRecConfig.model_validate(json.loads((folder / "model.json").read_text())["config"])
    steps, out = 0, tmp_path / "MoRec"

    def stop(items, description, total):
        nonlocal steps
        for item in items:
            steps += 1
            if steps * 2 > total:
                raise RuntimeError("stopped")
            yield item

    with monkeypatch.context() as patch:
        patch.setattr(training, "track", stop)
        with pytest.raises(RuntimeError, match="stopped"):
            train_morec(data, config, out, seed=0)
    stopped = torch.load(out / "work" / "checkpoint.pt", weights_only=True)
    assert 0 < len(stopped["state"]["log"]) < config.epochs
    counted = []
    with monkeypatch.context() as patch:
        patch.setattr(training, "track", lambda items, description, total: counted.append(total) or items)
        if not config.tune:
            patch.setattr(train, "load_encoder", lambda *_: pytest.fail("encoded twice"))
        train_morec(data, config, out, seed=0)
    assert counted[0] < steps * 2
    for name in ("model.safetensors", "titles.safetensors"):
        torch.testing.assert_close(load_file(out / name), load_file(folder / name), rtol=0, atol=0)
    want, got = (json.loads((f / "log.json").read_text()) for f in (folder, out))
    assert got == want

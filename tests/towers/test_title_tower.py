"""Title towers: scores against a loop over items, what new items get, one by one, and training that resumes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from drawn_logs import make_log
from drawn_towers import random_tower, slow_scores
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError, ModelError
from prefrec.rankers import Ranker
from prefrec.rankers.matrices import item_scores, mean_ndcg
from prefrec.towers import tower_training
from prefrec.towers.network import TitleTower
from prefrec.towers.title_tower import (
    TOWER_FILES,
    TitleTowerConfig,
    TitleTowerRanker,
    as_ranker,
    chosen_epochs,
    first_equal,
    load_tower,
    whitened,
)
from prefrec.towers.tower_training import Targets, train_tower

ITEMS = [f"i{n:02}" for n in range(24)]
NEW = ITEMS[-2:]
"""Items without training interactions."""
SMALL = {"width": 6, "last": 3, "batch_size": 16, "epochs": 4, "patience": 4, "learning_rate": 0.02}


def make_data() -> PreparedData:
    """30 users walk through 22 items in steps of 1 or 2; their last two steps are for validation and test."""
    log, validation, test = [], [], []
    for user in range(30):
        walk = [ITEMS[(user + n * (1 + user % 2)) % 22] for n in range(8)]
        log += [(f"u{user:02}", item, n) for n, item in enumerate(walk[:6])]
        validation.append(RankingExample(f"u{user:02}", tuple(walk[:6]), tuple(ITEMS), walk[6]))
        test.append(RankingExample(f"u{user:02}", tuple(walk[:7]), tuple(ITEMS), walk[7]))
    catalogue = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"Title {i}" for i in ITEMS]}))
    return PreparedData(catalogue, [], validation, test, make_log(log))


class ItemValues:
    """A score for each item, whatever the history."""

    name = "values"

    def __init__(self, values):
        self.values = values

    def score(self, examples):
        return item_scores(examples, self.values)


DATA = make_data()
TITLES = np.random.default_rng(0).standard_normal((len(ITEMS), 9), np.float32)
TITLES[-2:] = TITLES[0]  # new items with the title of another one


def trained(folder: Path, seed: int = 0, epochs: int | None = None, **settings) -> TitleTowerRanker:
    config = TitleTowerConfig(**SMALL | settings)
    return load_tower(train_tower(DATA, TITLES, config, folder, seed=seed, epochs=epochs), "tower")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> TitleTowerRanker:
    return trained(tmp_path_factory.mktemp("tower"))


def test_the_ranker_scores_as_the_tower_and_new_items_by_their_title_alone():
    tower, whole = random_tower(TITLES[:5], 6, 3), random_tower(TITLES[:7], 6, 3)
    for name, weight in tower.weights.items():
        weight *= 0.5  # so that no probability is too small for float32
        # To the twin, new items are learnt ones without a vector, a bias and a weight of their own.
        whole.weights[name][...] = np.concatenate([weight, 0 * weight[:2]]) if len(weight) == 5 else weight
    ids = ITEMS[:7]
    ranker = as_ranker(tower, "tower", ids, TITLES[:7], np.arange(5))
    for history, codes in (("elsewhere", 1, 0, 3), [3, 0, 1]), ((), []), ((6, 1), [1, 6]):
        known = tuple(item if isinstance(item, str) else ITEMS[item] for item in history)
        (scores,) = ranker.score([RankingExample("u", known, (*ids, "elsewhere"), ids[0])])
        want = np.array(slow_scores(whole, codes)) + math.log(len(ids))
        np.testing.assert_allclose(scores[:7], want, rtol=1e-4, atol=1e-4)
        assert scores[7] == 0


def test_items_without_interactions_with_the_same_title_tie_and_learnt_ones_do_not(ranker):
    first, *others = (ranker.index[item] for item in (NEW[0], NEW[1], ITEMS[0], ITEMS[1]))
    same = [np.array_equal(ranker.mixture.vectors[first], ranker.mixture.vectors[other]) for other in others]
    assert same == [True, False, False]
    assert ranker.mixture.bias[[first, *others]].astype(bool).tolist() == [False, False, True, True]


def test_the_first_equal_row_of_each_row():
    rows = np.array([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [3.0, 2.0], [0.0, 0.0]], np.float32)
    assert first_equal(rows).tolist() == [0, 1, 0, 1, 4]


def test_answers_do_not_depend_on_the_other_questions(ranker):
    rows = [*DATA.test, replace(DATA.test[0], history=()), replace(DATA.test[1], candidates=(NEW[0], ITEMS[3]))]
    rows[-1] = replace(rows[-1], target=NEW[0])
    together = ranker.score(rows)
    assert isinstance(ranker, Ranker)
    assert together.shape == (len(rows), len(ITEMS))
    assert np.isneginf(together[-1, 2:]).all()
    for row, e in zip(together, rows, strict=True):
        np.testing.assert_allclose(ranker.score([e])[0], row[: len(e.candidates)], rtol=1e-4, atol=1e-4)


def test_it_learns_the_walks(ranker):
    targets, white = [e.target_index for e in DATA.test], whitened(TITLES, 6)
    untrained = as_ranker(TitleTower(white, 6, 3), "x", ITEMS, white, np.arange(len(ITEMS)))
    reached = [mean_ndcg(r.score(DATA.test), targets) for r in (ranker, untrained)]
    assert reached[0] > reached[1] + 0.2


def test_whitened_vectors_are_uncorrelated_and_lose_empty_dimensions():
    raw = np.concatenate([TITLES, TITLES[:, :1] * 2, np.ones((len(TITLES), 1), np.float32)], axis=1)
    white = whitened(raw, 4).astype(np.float64)
    covariance = white.T @ white
    assert white.shape == TITLES.shape
    np.testing.assert_allclose(covariance, np.eye(9) * covariance[0, 0], rtol=1e-4, atol=1e-4)
    assert np.linalg.norm(white[:, :4], axis=1).mean() == pytest.approx(1)


def test_histories_are_the_latest_items_before_each_target():
    targets = Targets.of(DATA, DATA.catalogue.index)
    log = DATA.train_interactions
    walks = {user: rows["item_id"].to_list() for (user,), rows in log.group_by("user_id", maintain_order=True)}
    want = [
        ([ITEMS.index(i) for i in reversed(walk[max(0, n - 3) : n])], ITEMS.index(walk[n]))
        for walk in walks.values()
        for n in range(1, len(walk))
    ]
    histories, codes = targets.histories(targets.positions, 3), targets.codes[targets.positions]
    found = [[i for i in row if i >= 0] for row in histories.tolist()]
    assert list(zip(found, codes.tolist(), strict=True)) == want


def test_the_seed_decides_the_weights(ranker, tmp_path):
    again, other = trained(tmp_path / "again"), trained(tmp_path / "other", seed=1)
    assert np.array_equal(again.mixture.vectors, ranker.mixture.vectors)
    assert not np.array_equal(other.mixture.vectors, ranker.mixture.vectors)


def test_it_resumes_after_the_last_finished_epoch(ranker, tmp_path, monkeypatch):
    step, steps = tower_training._Training._step, []

    def stop(self, positions, rate, rng):
        steps.append(len(self.progress.log))
        if steps[-1] == 2:
            raise KeyboardInterrupt
        return step(self, positions, rate, rng)

    monkeypatch.setattr(tower_training._Training, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.setattr(tower_training._Training, "_step", lambda self, *at: steps.append("again") or step(self, *at))
    assert np.array_equal(trained(tmp_path).mixture.vectors, ranker.mixture.vectors)
    assert steps.count("again") == 2 * (steps.count(0))  # two of four epochs
    assert {p.name for p in tmp_path.iterdir()} == {*TOWER_FILES, "log.json"}


def test_the_learning_rate_falls_to_zero_over_the_epochs(tmp_path, monkeypatch):
    rates, step = [], tower_training._Training._step
    monkeypatch.setattr(
        tower_training._Training, "_step", lambda self, at, rate, rng: rates.append(rate) or step(self, at, rate, rng)
    )
    trained(tmp_path / "whole")
    assert rates == pytest.approx([1 - n / len(rates) for n in range(len(rates))])
    whole, rates[:] = [*rates], []
    trained(tmp_path / "half", epochs=2)  # as many as validation chose, at the same rates
    assert rates == whole[: len(whole) // 2]


def test_a_known_number_of_epochs_needs_no_validation_examples(ranker, tmp_path, monkeypatch):
    first = trained(tmp_path / "first", patience=1)
    epochs = chosen_epochs(tmp_path / "first")
    monkeypatch.setattr(f"{__name__}.DATA", replace(DATA, validation=[]))
    again = trained(tmp_path / "again", patience=1, epochs=epochs)
    assert np.array_equal(again.mixture.vectors, first.mixture.vectors)
    assert chosen_epochs(tmp_path / "again") == epochs
    with pytest.raises(DataError, match="tower: there are no validation examples"):
        trained(tmp_path / "none", name="tower")


def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(TitleTower, "loss", lambda self, *given: (math.nan, {}))
    with pytest.raises(ModelError, match=r"training diverged in epoch 1 .*: lower learning_rate \(0\.02\)"):
        trained(tmp_path / "nan")
    log = DATA.train_interactions.unique("user_id", maintain_order=True)
    monkeypatch.setattr(f"{__name__}.DATA", replace(DATA, train_interactions=log))
    with pytest.raises(DataError, match="no user has two training interactions"):
        trained(tmp_path / "single")


def test_a_damaged_tower_is_an_error(ranker, tmp_path):
    trained(tmp_path)
    about = json.loads((tmp_path / TOWER_FILES[1]).read_text())
    (tmp_path / TOWER_FILES[1]).write_text(json.dumps(about | {"items": ITEMS[:3]}))
    with pytest.raises(ModelError, match="the weights do not fit the items; train it again"):
        load_tower(tmp_path, "tower")
    with pytest.raises(ModelError, match="has no title tower"):
        load_tower(tmp_path / "elsewhere", "tower")


def test_a_batch_has_runs_of_a_users_targets():
    log = make_log([(f"u{user}", ITEMS[n % 22], n) for user in range(5) for n in range(12 + user)])
    targets = Targets.of(replace(DATA, train_interactions=log), DATA.catalogue.index)
    order = targets.shuffled(np.random.default_rng(0))
    assert sorted(order.tolist()) == [*range(len(targets.positions))]
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    sizes = np.diff(np.r_[0, breaks, len(order)])
    assert sizes.max() <= 2 * tower_training.RUN  # two runs may meet by chance
    assert len(sizes) > 5
    assert order.tolist() != targets.shuffled(np.random.default_rng(1)).tolist()

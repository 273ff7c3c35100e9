"""Title towers: scores against a loop over items, what new items get, one by one, and training that resumes."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError, ModelError
from prefrec.rankers import Ranker
from prefrec.rankers.baselines import PopularityRanker
from prefrec.rankers.matrices import item_scores, mean_ndcg
from prefrec.rankers.softmax import softmax_sample
from prefrec.towers import tower_training
from prefrec.towers.title_tower import (
    SCALE,
    TOWER_FILES,
    TitleTower,
    TitleTowerConfig,
    TitleTowerRanker,
    as_ranker,
    chosen_epochs,
    first_equal,
    load_tower,
    whitened,
)
from prefrec.towers.tower_training import Targets, train_tower
from prefrec.training.negatives import resample_negatives

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
TITLES = torch.randn(len(ITEMS), 9, generator=torch.Generator().manual_seed(0))
TITLES[-2:] = TITLES[0]  # new items with the title of another one


def trained(folder: Path, seed: int = 0, epochs: int | None = None, **settings) -> TitleTowerRanker:
    config = TitleTowerConfig(**SMALL | settings)
    return load_tower(train_tower(DATA, TITLES, config, folder, seed=seed, epochs=epochs), "tower")


@pytest.fixture(scope="module")
def ranker(tmp_path_factory) -> TitleTowerRanker:
    return trained(tmp_path_factory.mktemp("tower"))


def random_tower(count: int = 5) -> TitleTower:
    torch.manual_seed(1)
    tower = TitleTower(TITLES[:count], TitleTowerConfig(**SMALL | {"dropout": 0.0, "vector_dropout": 0.0}))
    for weight in tower.parameters():
        torch.nn.init.normal_(weight)
    return tower


def slow_scores(tower: TitleTower, history: list[int]) -> list[float]:
    """The scores of all items after a history of codes, newest first, by loops over items and dimensions."""
    weights = {name: t.detach().double().numpy() for name, t in tower.named_parameters()}
    titles = tower.titles.double().numpy()
    width = len(weights["project"])
    vectors = [
        [sum(weights["project"][d, k] * t for k, t in enumerate(title)) + weights["own"][i, d] for d in range(width)]
        for i, title in enumerate(titles)
    ]
    ages = [math.exp(w) for w in weights["log_weights"][: len(history)]]
    mean = [sum(a * vectors[i][d] for a, i in zip(ages, history, strict=True)) / sum(ages) for d in range(width)]
    state = [SCALE * sum(weights["predict"][d, k] * mean[k] for k in range(width)) for d in range(width)]
    products = [sum(v * s for v, s in zip(vector, state, strict=True)) for vector in vectors]
    return [product + b for product, b in zip(products, weights["bias"], strict=True)]


def test_scores_equal_a_loop_over_items():
    tower = random_tower()
    histories = torch.tensor([[3, 0, 1], [2, -1, -1], [4, 4, -1]])
    want = [slow_scores(tower, [i for i in row if i >= 0]) for row in histories.tolist()]
    np.testing.assert_allclose(tower.eval()(histories).detach(), want, rtol=1e-4, atol=1e-4)
    empty = tower(torch.full((1, 3), -1))
    np.testing.assert_allclose(empty[0].detach(), tower.bias.detach(), rtol=1e-6)


def test_the_ranker_scores_as_the_tower_and_new_items_by_their_title_alone():
    tower, learnt = random_tower(), torch.tensor([0, 1, 2, 3, 4])
    ids = ITEMS[:7]
    ranker = as_ranker(tower, "tower", ids, TITLES[:7], learnt)
    history = ("elsewhere", ITEMS[1], ITEMS[0], ITEMS[3])
    example = RankingExample("u", history, (*ids, "elsewhere"), ids[0])
    (scores,) = ranker.score([example])
    np.testing.assert_allclose(scores[:5], slow_scores(tower, [3, 0, 1]), rtol=1e-5, atol=1e-5)
    assert scores[7] == 0
    vectors = tower.titles @ tower.project.T + tower.own
    ages = tower.log_weights.exp()
    state = SCALE * tower.predict @ ((ages[:, None] * vectors[[3, 0, 1]]).sum(0) / ages.sum())
    title_part = (TITLES[5:7] @ tower.project.T) @ state
    np.testing.assert_allclose(scores[5:7], title_part.detach(), rtol=1e-4, atol=1e-4)


def test_items_without_interactions_with_the_same_title_tie_and_learnt_ones_do_not(ranker):
    first, *others = (ranker.index[item] for item in (NEW[0], NEW[1], ITEMS[0], ITEMS[1]))
    same = [np.array_equal(ranker.vectors[first], ranker.vectors[other]) for other in others]
    assert same == [True, False, False]
    assert ranker.bias[[first, *others]].astype(bool).tolist() == [False, False, True, True]


def test_the_first_equal_row_of_each_row():
    rows = torch.tensor([[1.0, 2.0], [3.0, 2.0], [1.0, 2.0], [3.0, 2.0], [0.0, 0.0]])
    assert first_equal(rows).tolist() == [0, 1, 0, 1, 4]


def test_dropped_vectors_leave_the_titles_alone():
    tower = random_tower().train()
    tower.vector_dropout = 1.0
    histories = torch.tensor([[3, 0, 1], [2, 4, -1]])
    dropped = tower(histories)
    with torch.no_grad():
        tower.own.zero_()
        tower.bias.zero_()
    torch.testing.assert_close(dropped, tower.eval()(histories))


def test_answers_do_not_depend_on_the_other_questions(ranker):
    rows = [*DATA.test, replace(DATA.test[0], history=()), replace(DATA.test[1], candidates=(NEW[0], ITEMS[3]))]
    rows[-1] = replace(rows[-1], target=NEW[0])
    together = ranker.score(rows)
    assert isinstance(ranker, Ranker)
    assert together.shape == (len(rows), len(ITEMS))
    assert np.isneginf(together[-1, 2:]).all()
    for row, e in zip(together, rows, strict=True):
        np.testing.assert_allclose(ranker.score([e])[0], row[: len(e.candidates)], rtol=1e-9, atol=1e-9)


def test_it_learns_the_walks(ranker):
    targets, white = [e.target_index for e in DATA.test], whitened(TITLES, 6)
    untrained = as_ranker(TitleTower(white, TitleTowerConfig(**SMALL)), "x", ITEMS, white, torch.arange(len(ITEMS)))
    reached = [mean_ndcg(r.score(DATA.test), targets) for r in (ranker, untrained)]
    assert reached[0] > reached[1] + 0.2


def test_whitened_vectors_are_uncorrelated_and_lose_empty_dimensions():
    raw = torch.cat([TITLES, TITLES[:, :1] * 2, torch.ones(len(TITLES), 1)], dim=1)
    white = whitened(raw, 4).double()
    covariance = white.T @ white
    assert white.shape == TITLES.shape
    torch.testing.assert_close(covariance, torch.eye(9).double() * covariance[0, 0], rtol=1e-4, atol=1e-4)
    assert float(white[:, :4].norm(dim=1).mean()) == pytest.approx(1)


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
    assert np.array_equal(again.vectors, ranker.vectors)
    assert not np.array_equal(other.vectors, ranker.vectors)


def test_it_resumes_after_the_last_finished_epoch(ranker, tmp_path, monkeypatch):
    step, steps = tower_training._Training._step, []

    def stop(self, positions, rate):
        steps.append(len(self.progress.log))
        if steps[-1] == 2:
            raise KeyboardInterrupt
        return step(self, positions, rate)

    monkeypatch.setattr(tower_training._Training, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path)
    monkeypatch.setattr(tower_training._Training, "_step", lambda self, *at: steps.append("again") or step(self, *at))
    assert np.array_equal(trained(tmp_path).vectors, ranker.vectors)
    assert steps.count("again") == 2 * (steps.count(0))  # two of four epochs
    assert {p.name for p in tmp_path.iterdir()} == {*TOWER_FILES, "log.json"}


def test_the_learning_rate_falls_to_zero_over_the_epochs(tmp_path, monkeypatch):
    rates, step = [], tower_training._Training._step
    monkeypatch.setattr(
        tower_training._Training, "_step", lambda self, at, rate: rates.append(rate) or step(self, at, rate)
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
    assert np.array_equal(again.vectors, first.vectors)
    assert chosen_epochs(tmp_path / "again") == epochs
    with pytest.raises(DataError, match="tower: there are no validation examples"):
        trained(tmp_path / "none", name="tower")


def test_what_cannot_be_trained_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "prefrec.towers.tower_training.F.cross_entropy", lambda scores, targets: scores.sum() * np.nan
    )
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


def uniform(rows, ids, split):
    """Three items at random that the user has not taken."""
    sampler = partial(softmax_sample, PopularityRanker({}, "uniform"), ids, 1.0)
    return resample_negatives(rows, DATA, "ranker", seed=1, size=4, sampler=sampler)


def test_targets_become_examples_with_the_items_before_them():
    code = {item: n for n, item in enumerate(ITEMS)}
    data = replace(DATA, protocol={"config": {"history_length": 4}})
    found = tower_training.target_examples(data, Targets.of(data, code))
    assert len(found) == 30 * 5
    walks = DATA.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")
    want = [
        (user, tuple(walk[max(0, at - 4) : at]), walk[at])
        for user, walk in walks.iter_rows()
        for at in range(1, len(walk))
    ]
    assert [(e.user_id, e.history, e.target) for e in found] == want


def test_with_sampled_items_the_loss_is_the_softmax_of_those(tmp_path):
    """Equal to that of the ranker's scores of the examples, one by one."""
    config = TitleTowerConfig(**SMALL | {"dropout": 0.0, "vector_dropout": 0.0, "negatives_from": "uniform"})
    drawn = {}

    def draw(rows, ids, split):
        drawn[split] = uniform(rows, ids, split)
        return drawn[split]

    training = tower_training._Training(DATA, TITLES, config, DATA.validation, tmp_path, 0, draw)
    torch.nn.init.normal_(training.tower.own)
    training.tower.train()
    chosen = torch.tensor([3, 77, 0, 140])
    ranker = training.ranker()

    def slow(examples):
        losses = []
        for e in examples:
            (scores,) = np.exp(ranker.score([e]))
            losses.append(-math.log(scores[e.target_index] / scores.sum()))
        return np.mean(losses)

    assert training._step(chosen, 0.0) == pytest.approx(slow([drawn["train"][i] for i in chosen]), rel=1e-4)
    assert training._loss() == pytest.approx(slow(drawn["validation"]), rel=1e-4)
    taken = dict(DATA.train_interactions.group_by("user_id").agg("item_id").iter_rows())
    for e in drawn["train"]:
        assert not {*e.candidates} & {*taken[e.user_id], *NEW} - {e.target}


def test_sampled_items_need_a_validation_target_of_the_log(tmp_path):
    new = [replace(e, target=ITEMS[-1]) for e in DATA.validation]
    config = TitleTowerConfig(**SMALL | {"negatives_from": "uniform", "num_negatives": 3})
    with pytest.raises(DataError, match="no target of a validation example has training interactions"):
        train_tower(replace(DATA, validation=new), TITLES, config, tmp_path, seed=0, draw=uniform)


def test_the_reward_is_what_the_sampler_does_not_know(tmp_path):
    """Users take items at random, so that log p − log q is −log q, up to a constant."""
    rng, values = np.random.default_rng(0), {item: float(n % 4) for n, item in enumerate(ITEMS)}  # log q
    walks = [(f"u{user:03}", rng.choice(ITEMS[:22], 6, replace=False)) for user in range(300)]
    data = replace(DATA, train_interactions=make_log([(u, i, n) for u, items in walks for n, i in enumerate(items)]))
    rows = [replace(e, candidates=tuple(ITEMS[:22])) for e in DATA.validation]
    log_q, slopes = [values[item] for item in ITEMS[:22]], []
    for name, sampler in (("q", ItemValues(values)), ("uniform", PopularityRanker({}, "uniform"))):

        def draw(rows, ids, split, sampler=sampler):
            by_softmax = partial(softmax_sample, sampler, ids, 1.0)
            return resample_negatives(rows, data, "ranker", seed=1, size=4, sampler=by_softmax)

        small = SMALL | {"batch_size": 64, "vector_dropout": 0.0, "negatives_from": "uniform", "num_negatives": 3}
        folder = train_tower(data, TITLES, TitleTowerConfig(**small), tmp_path / name, seed=0, epochs=4, draw=draw)
        slopes.append(np.polyfit(log_q, load_tower(folder, "reward").score(rows).mean(axis=0), 1)[0])
    assert slopes[0] < -0.4
    assert abs(slopes[1]) < 0.1


def test_sampled_items_and_the_epoch_are_the_same_after_a_stop(tmp_path, monkeypatch):
    config = TitleTowerConfig(**SMALL | {"negatives_from": "uniform", "num_negatives": 3})
    whole = load_tower(train_tower(DATA, TITLES, config, tmp_path / "whole", seed=0, draw=uniform), "tower")
    end, ended = tower_training._Training._end_epoch, []

    def stop(self, loss):
        end(self, loss)
        ended.append(loss)
        if len(ended) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(tower_training._Training, "_end_epoch", stop)
    with pytest.raises(KeyboardInterrupt):
        train_tower(DATA, TITLES, config, tmp_path / "stopped", seed=0, draw=uniform)
    again = load_tower(train_tower(DATA, TITLES, config, tmp_path / "stopped", seed=0, draw=uniform), "tower")
    assert np.array_equal(again.vectors, whole.vectors)
    lines = json.loads((tmp_path / "stopped" / "log.json").read_text())
    losses = [line["validation_loss"] for line in lines]
    assert chosen_epochs(tmp_path / "stopped") == 1 + int(np.argmin(losses))


@pytest.mark.parametrize("settings", [{"negatives_from": "ranker"}, {"miner": "blend"}])
def test_a_miner_belongs_to_its_negatives(settings):
    with pytest.raises(ValueError, match="name the ranker of negatives_from: ranker"):
        TitleTowerConfig(**settings)

"""What is known of items before a question, against loops over the log."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn_logs import make_log
from prefrec.data import Candidates, Catalogue, Queries, Query, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation.diagnosis import row_ndcg
from prefrec.rankers.baselines import BY_TIME, ItemFeatureRanker
from prefrec.rankers.item_features import DAY, ItemFeatures, ItemHistory, blind_features, time_features
from prefrec.rankers.item_only import ItemOnlyRanker
from prefrec.rankers.logit import fit_logit

START = 1_000_000_000
IDS = ["10", "9", "8", "7"]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": ["A", "Bee", "Sea", "Deer"]}))


def _log(pairs: list[tuple[str, float]]) -> pl.DataFrame:
    return make_log([(f"u{n}", item, START + int(day * DAY)) for n, (item, day) in enumerate(pairs)])


days = st.floats(0, 500, allow_nan=False)
logs = st.lists(st.tuples(st.sampled_from(IDS), days), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(log=logs, asked=st.lists(days, min_size=1, max_size=5), window=st.sampled_from([30, 90, 365]))
def test_counts_and_ages_equal_loops_over_the_log(log, asked, window):
    history = ItemHistory.of(_log(log), CATALOGUE)
    times = np.array([START + int(day * DAY) for day in asked])
    events = [(item, START + int(day * DAY)) for item, day in log]

    def table(value) -> list[list[float]]:
        return [[value([s for i, s in events if i == item], int(t)) for item in IDS] for t in times]

    recent = table(lambda own, t: sum(t - window * DAY <= s < t for s in own))
    near = table(lambda own, t: sum(t - 7 * DAY <= s < t + 7 * DAY for s in own))
    age = table(lambda own, t: max((t - s for s in own if s < t), default=0) / DAY)
    idle = table(lambda own, t: min((t - s for s in own if s < t), default=0) / DAY)
    assert history.counts(times).tolist() == table(lambda own, t: sum(s < t for s in own))
    assert history.counts(times, window).tolist() == recent
    assert history.near(times, 7).tolist() == near
    np.testing.assert_allclose(history.age(times), age, rtol=1e-5)
    np.testing.assert_allclose(history.idle(times), idle, rtol=1e-5, atol=1e-5)


def test_features_stand_at_their_candidates():
    log = _log([("10", 1), ("9", 2), ("9", 40), ("7", 41)])
    history, index = ItemHistory.of(log, CATALOGUE), {item: n for n, item in enumerate(IDS)}
    features = ItemFeatures(history, index, time_features(True))
    rows = [
        RankingExample("u", (), ("9", "8"), "8", START + 50 * DAY),
        RankingExample("v", (), ("7", "9", "10"), "7", START + 3 * DAY),
    ]
    values = features(rows)
    assert np.isnan(values[0, 2]).all()
    np.testing.assert_allclose(np.expm1(values[0, :2, 0]), [2, 0], rtol=1e-6)  # popularity
    np.testing.assert_allclose(np.expm1(values[0, :2, 1]), [1, 0], rtol=1e-6)  # of 30 days
    np.testing.assert_allclose(np.expm1(-values[0, :2, 4]), [48, 0], rtol=1e-5)  # age
    np.testing.assert_allclose(np.expm1(values[1, :, 0]), [0, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("ahead", [0.0, 365.0, 40_000.0])
def test_one_time_far_ahead_does_not_change_what_is_recent(ahead):
    """A server asks without a time: the end of the log must not be a year after everything that happened."""
    rng = np.random.default_rng(0)
    pairs = [(IDS[n], day) for n, day in zip(rng.integers(3, size=400), np.linspace(0, 400, 400), strict=True)]
    clean, spoilt = _log([*pairs, ("7", 400.0)]), _log([*pairs, ("7", 400.0 + ahead)])
    asked = [RankingExample("u", (), tuple(IDS[:3]), "9")]
    for name in BY_TIME:
        of_both = [ItemFeatureRanker.fit(name, log, CATALOGUE).score(asked) for log in (clean, spoilt)]
        np.testing.assert_allclose(*of_both, atol=1e-4)
    assert (ItemFeatureRanker.fit("popularity of 30 days", spoilt, CATALOGUE).score(asked) > 0).all()


def test_queries_that_share_candidates_and_time_share_their_features():
    log, index = _log([("10", 1), ("9", 2), ("9", 40), ("7", 41)]), {item: n for n, item in enumerate(IDS)}
    features = ItemFeatures(ItemHistory.of(log, CATALOGUE), index, time_features(True))
    items = Candidates(["9", "7", "10"])
    now, past = ([Query((), items.ids, time) for _ in range(3)] for time in (None, START + 30 * DAY))
    shared = features(Queries(now, items))
    assert shared.shape == (1, 3, len(features.names))
    assert features(Queries(now, items)) is shared  # a server asks again
    np.testing.assert_array_equal(np.broadcast_to(shared, (3, *shared.shape[1:])), features(now))
    for rows in ([*now[:2], past[0]], past, []):
        own = features(Queries(rows, items))
        want = features(rows) if rows else own
        np.testing.assert_array_equal(np.broadcast_to(own, (len(rows), *own.shape[1:])), want)
    ranker = ItemFeatureRanker.fit("newest first", log, CATALOGUE)
    np.testing.assert_array_equal(ranker.score(Queries(past, items)), ranker.score(past))


def test_a_candidate_outside_the_catalogue_is_named():
    index = {item: n for n, item in enumerate(IDS)}
    features = ItemFeatures(ItemHistory.of(_log([("10", 1)]), CATALOGUE), index, time_features(True))
    row = RankingExample("u", (), ("9", "XX"), "9", START)
    with pytest.raises(DataError, match="candidate 'XX' is not in the catalogue of 4 items"):
        features([row])


def test_mean_ratings_are_the_items_or_all():
    log = _log([("10", 1), ("10", 2), ("9", 2)]).with_columns(rating=pl.Series([1.0, 3.0, 5.0]))
    ((of_items,),) = [blind_features(CATALOGUE, log)["mean rating"](ItemHistory.of(log, CATALOGUE), np.array([0]))]
    assert of_items.tolist() == [2.0, 5.0, 3.0, 3.0]


def test_baselines_of_time():
    log = _log([("10", 1), ("10", 2), ("9", 90), ("8", 91)])
    row = [RankingExample("u", (), tuple(IDS), "7", START + 100 * DAY)]
    assert ItemFeatureRanker.fit("popularity of 30 days", log, CATALOGUE).score(row).tolist() == [[0, 1, 1, 0]]
    assert ItemFeatureRanker.fit("popularity of 365 days", log, CATALOGUE).score(row).tolist() == [[2, 1, 1, 0]]
    assert ItemFeatureRanker.fit("newest first", log, CATALOGUE).score(row).tolist() == [[-99, -10, -9, 0]]


@pytest.fixture(scope="module")
def leaking() -> list[RankingExample]:
    """Targets are drawn from the rare items 0 to 9, negatives from all 100."""
    rng = np.random.default_rng(0)
    targets = [str(rng.integers(10)) for _ in range(400)]
    lists = [(target, *map(str, rng.choice(np.arange(10, 100), 9, replace=False))) for target in targets]
    return [RankingExample(f"u{n % 150}", (), tuple(rng.permutation(c)), c[0]) for n, c in enumerate(lists)]


@pytest.fixture(scope="module")
def item_only() -> ItemOnlyRanker:
    items = [str(i) for i in range(100)]
    catalogue = Catalogue(pl.DataFrame({"item_id": items, "title": [f"Title {i}" for i in items]}))
    return ItemOnlyRanker.fit(_log([(i, day) for i in items for day in range(1 if int(i) < 10 else 4)]), catalogue)


def _hits(ranker: ItemOnlyRanker, rows: list[RankingExample]) -> float:
    return (ranker.score(rows).argmax(axis=1) == [e.target_index for e in rows]).mean()


def test_item_only_finds_lists_that_give_targets_away(item_only, leaking):
    assert _hits(item_only, leaking) > 0.95  # chance 0.1


def test_item_only_is_at_chance_where_targets_are_drawn_like_negatives(item_only, leaking):
    rng = np.random.default_rng(1)
    fair = [replace(e, target=str(rng.choice([c for c in e.candidates if int(c) > 9]))) for e in leaking]
    assert _hits(item_only, fair) < 0.18


def test_no_target_is_scored_with_weights_from_its_own_rows(item_only, leaking):
    ranker = item_only.learn(leaking)
    own = [e for e in leaking if ranker._fold(e.target) == 0]
    others = item_only.learn([e for e in leaking if ranker._fold(e.target)])
    np.testing.assert_allclose(ranker.score(own), others.score(own), rtol=1e-3, atol=1e-2)
    # Learnt weights serve any block of rows.
    np.testing.assert_allclose(ranker.score(leaking)[:7], ranker.score(leaking[:7]))


def _by_users(features: ItemFeatures, rows: list[RankingExample]) -> np.ndarray:
    """The twin that learns from the rows of other users, which have the same few targets."""
    values, fold = features(rows), np.arange(len(rows)) % 5  # one row a user
    scores = np.empty(values.shape[:2])
    for k in range(5):
        targets = np.array([e.target_index for e in rows])[fold != k]
        scores[fold == k] = fit_logit(values[fold != k], targets, features.names).utility(values[fold == k])
    return scores


def _noise(seed: int) -> tuple[ItemFeatures, list[RankingExample]]:
    """Fifteen features of pure noise, and 300 users whose targets are 12 of 150 items."""
    rng = np.random.default_rng(seed)
    items = [str(i) for i in range(150)]
    catalogue = Catalogue(pl.DataFrame({"item_id": items, "title": items}))
    noise = {f"noise {k}": rng.normal(size=(1, len(items))).astype(np.float32) for k in range(15)}
    features = {name: lambda h, t, values=values: values[:, h.codes] for name, values in noise.items()}
    rows = []
    for user in range(300):
        target = str(rng.integers(12))
        negatives = [i for i in rng.permutation(items).tolist() if i != target][:9]
        rows.append(RankingExample(f"u{user}", (), (target, *negatives), target))
    return ItemFeatures(ItemHistory.of(_log([("0", 0.0)]), catalogue), catalogue.index, features), rows


def test_features_of_noise_do_not_beat_chance_where_few_targets_recur():
    """Folds of users do: weights from other users recognise the popular targets."""
    chance = 1 / np.log2(np.arange(2, 12))
    found = []
    for seed in range(8):
        features, rows = _noise(seed)
        scores = (ItemOnlyRanker(features).score(rows), _by_users(features, rows))
        found.append([float(row_ndcg(s, [0] * len(rows)).mean()) for s in scores])
    ours, by_users = np.transpose(found)
    assert by_users.min() > chance.mean() + 0.1
    assert ours.mean() - 2 * ours.std(ddof=1) / np.sqrt(len(ours)) < chance.mean()


def test_a_single_target_leaves_nothing_to_learn_from(item_only, leaking):
    one = [replace(e, user_id=f"u{n}") for n, e in enumerate(e for e in leaking if e.target == "3")]
    scores = item_only.score(one)
    assert (scores == scores[:, :1]).all()

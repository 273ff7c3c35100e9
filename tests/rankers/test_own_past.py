"""Features of a user's own items against a slow twin, and a planted cycle that a blend finds."""

import math
import statistics
from dataclasses import replace
from itertools import pairwise
from zlib import crc32

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import Candidates, Catalogue, Queries, RankingExample
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers.baselines import PopularityRanker
from prefrec.rankers.blend import BlendRanker, Weights
from prefrec.rankers.blend_learning import learn_weights
from prefrec.rankers.buy_again import BuyAgainRanker
from prefrec.rankers.item_features import DAY, POPULARITY, ItemFeatures, ItemHistory, time_features
from prefrec.rankers.matrices import mean_ndcg
from prefrec.rankers.own_past import NAMES, PAST, SHRINK_ITEM, SHRINK_USER, OwnPast
from prefrec.stages.blend import split_features
from replenishing_shop import START, replenishing_shop

ITEMS = tuple("abcdefgh")


def _log(histories) -> pl.DataFrame:
    """Return a log without dates of these histories, one for each user."""
    rows = [(f"u{n}", item, step) for n, history in enumerate(histories) for step, item in enumerate(history)]
    return pl.DataFrame(rows, {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row")


def _example(history, times=(), time=None, candidates=ITEMS) -> RankingExample:
    return RankingExample("u", tuple(history), candidates, candidates[0], time, tuple(times))


def _gaps(history, days, item) -> list[float]:
    own = [day for day, other in zip(days, history, strict=True) if other == item]
    return [math.log1p(b - a) for a, b in pairwise(own)]


def _shrunk(gaps, to: float, weight: float) -> float:
    return (sum([statistics.median(gaps)] * len(gaps)) + weight * to) / (len(gaps) + weight) if gaps else to


def _slow(others, history, days, now, step) -> dict[str, tuple[float, ...]]:
    """Return the features of a history's items; `others` are the histories of a log with the days of each."""
    all_gaps = [gap for other, at in others for item in {*other} for gap in _gaps(other, at, item)]
    default = statistics.median(all_gaps) if all_gaps else math.log1p(step)
    found = {}
    for item in {*history}:
        usual = _shrunk([gap for other, at in others for gap in _gaps(other, at, item)], default, SHRINK_ITEM)
        usual = _shrunk(_gaps(history, days, item), usual, SHRINK_USER)
        last = max(day for day, other in zip(days, history, strict=True) if other == item)
        age = math.log1p(now - last)
        due = age - usual
        found[item] = (1.0, math.log(history.count(item)), -age, min(due, 0.0), max(due, 0.0), -usual)
    return found


histories = st.lists(st.text("abcd", min_size=1, max_size=12), min_size=1, max_size=5)


@given(histories, st.text("abcde", max_size=12))
def test_features_in_steps_equal_their_slow_twin(others, history):
    found = OwnPast.of(_log(others)).of_query(_example(history, range(len(history)), 99))  # these are no dates
    numbered = [(other, range(len(other))) for other in others]
    want = _slow(numbered, history, range(len(history)), len(history), 1.0)
    assert found.keys() == want.keys()
    for item, values in found.items():
        assert values == pytest.approx(want[item], abs=1e-9)


dated = st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 40)), min_size=1, max_size=10, unique=True)


@given(st.lists(dated, min_size=1, max_size=4), dated, st.integers(0, 10), st.booleans())
def test_features_in_days_equal_their_slow_twin(others, own, unknown, has_time):
    """The last `unknown` items of the history have no times: they are as far apart as interactions usually are."""
    others, own = ([*map(_by_day, others)], _by_day(own))
    rows = [(f"u{n}", i, START + DAY * day) for n, other in enumerate(others) for i, day in zip(*other, strict=True)]
    log = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
    steps = [b - a for _, days in others for a, b in pairwise(days)]
    step = sum(steps) / len(steps) if sum(steps) else 1.0
    history, days = own
    end = 40 if has_time else max(day for _, days in others for day in days) + 1 / DAY
    known = len(days) - min(unknown, len(days))
    days = [min(day, end) for day in days[:known]]
    days += [max([end - step * (len(history) - n), *days[-1:]]) for n in range(known, len(history))]
    times = [START + DAY * day for day in own[1][:known]]
    found = OwnPast.of(log).of_query(_example(history, times, START + DAY * 40 if has_time else None))
    want = _slow(others, history, days, end, step)
    assert found.keys() == want.keys()
    for item, values in found.items():
        assert values == pytest.approx(want[item], abs=1e-6)


def _by_day(pairs) -> tuple[str, list[int]]:
    """Return the items and the days of these pairs, in order of days."""
    ordered = sorted(pairs, key=lambda pair: pair[1])
    return "".join(item for item, _ in ordered), [day for _, day in ordered]


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("candidates", [ITEMS, ("h", "b", "z", "a")])
def test_cells_are_the_candidates_of_the_history(candidates, is_shared):
    past = OwnPast.of(_log(["abab"]))
    rows = [_example("abca", candidates=candidates), _example("", candidates=candidates)]
    found = past.cells(Queries(rows, Candidates(candidates)) if is_shared else rows)
    cells = {(row, candidates[column]) for row, column in zip(found.rows, found.columns, strict=True)}
    assert cells == {(0, item) for item in {*"abca"} & {*candidates}}
    for column, values in zip(found.columns, found.values, strict=True):
        np.testing.assert_allclose(values, past.of_query(rows[0])[candidates[column]], rtol=1e-6)
        np.testing.assert_allclose(past.of_item(rows, candidates[column]), [values, [0] * len(NAMES)], rtol=1e-6)


CATALOGUE = Catalogue(pl.DataFrame({"item_id": list(ITEMS), "title": list(ITEMS)}))


def _planted(count: int, seed: int) -> tuple[pl.DataFrame, list[RankingExample]]:
    """Users buy c again three steps after it, and a and b between: how often and how recently points to a or b."""
    rng = np.random.default_rng(seed)
    examples = []
    for n in range(count):
        turns = "".join(rng.permutation(["a", "b"]).tolist()[0] * 2 + "c" for _ in range(6))
        turns = turns[: int(rng.integers(9, 18))]
        target = "c" if turns.endswith(("aa", "bb")) and len(turns) % 3 == 2 else str(rng.choice(["a", "b"]))
        examples.append(RankingExample(f"u{n}", tuple(turns), ITEMS, target))
    return _log(["".join(e.history) for e in examples]), examples


def test_a_blend_finds_what_is_due_where_its_part_does_not():
    log, rows = _planted(300, 0)
    test = _planted(300, 1)[1]
    times = ItemFeatures(ItemHistory.of(log, CATALOGUE), CATALOGUE.index, time_features(False))
    part, past = BuyAgainRanker.fit(rows), OwnPast.of(log)
    targets = [e.target_index for e in test]

    def reached(ranker) -> float:
        return mean_ndcg(ranker.score(test), targets, 1)

    weights = learn_weights([part], times, rows, past=past)
    blend = BlendRanker("blend", [part], times, weights, past=past)
    plain = BlendRanker("blend", [part], times, learn_weights([part], times, rows))
    assert reached(blend) > max(reached(plain), reached(part)) + 0.1


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_blend_gains_on_buy_again_in_a_shop_of_cycles(tmp_path, seed):
    """Users buy items again in cycles of days, which the times of histories in prepared data show."""
    shop = replenishing_shop(users=250, per_category=15, days=500, seed=seed)
    repeated = 1 - shop.log.select("user_id", "item_id").n_unique() / len(shop.log)
    assert 0.3 < repeated < 0.7
    assert 1 < shop.due["share"].median() < 2  # it is bought again at the next visit after it has run out
    shop.log.write_csv(tmp_path / "log.csv")
    shop.catalogue.write_csv(tmp_path / "items.csv")
    files = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    data = prepare(PrepareConfig(source="files", **files, split="time", repeats="keep", history_length=50))
    items = Candidates(data.catalogue.ids)
    learn, test = ([replace(e, candidates=items.ids) for e in data.examples(s, None)] for s in ("validation", "test"))
    again, log = BuyAgainRanker.fit(learn), data.train_interactions
    parts, times, past = [again, PopularityRanker.fit(log)], split_features(data, "validation"), OwnPast.of(log)
    weights = learn_weights(parts, times, learn, past=past)
    known = data.known_interactions("test")
    blend = BlendRanker(
        "blend",
        [again, PopularityRanker.fit(known)],
        split_features(data, "test"),
        weights,
        past=OwnPast.of(known),
    )
    targets = [e.target_index for e in test]
    shared = Queries(test, items)
    reached = {ranker.name: mean_ndcg(ranker.score(shared), targets) for ranker in (again, blend)}
    assert reached["blend"] > reached["buy again"] + 0.01


@pytest.fixture(scope="module")
def learnt():
    log, rows = _planted(80, 2)
    times = ItemFeatures(ItemHistory.of(log, CATALOGUE), CATALOGUE.index, time_features(False))
    part, past = BuyAgainRanker(2.0), OwnPast.of(log)
    return part, times, past, learn_weights([part], times, rows, past=past), rows


@pytest.mark.parametrize("excluded", ["", "buy again", POPULARITY, PAST])
@pytest.mark.parametrize("is_out_of_fold", [False, True])
@pytest.mark.parametrize("is_shared", [False, True])
def test_a_blend_with_own_items_equals_a_sum_over_its_features(learnt, excluded, is_out_of_fold, is_shared):
    part, times, past, weights, rows = learnt
    rows = Queries(rows[:9], Candidates(ITEMS)) if is_shared else rows[:9]
    if is_out_of_fold and excluded:
        return  # only the whole blend has weights by fold
    again = Weights.from_json(weights.to_json())
    blend = BlendRanker("blend", [part], times, again, excluded, is_out_of_fold, past)
    scores = blend.score(rows)
    bought = np.log1p(part.score(rows) / weights.units["buy again"])
    for row, example in enumerate(rows):
        slow = []
        logit = blend.logits[0] if not is_out_of_fold else blend.logits[_fold(example.user_id)]
        for column, item in enumerate(ITEMS):
            base = {"buy again": bought[row, column], "popularity": times([example])[0, column, 0]}
            own = past.of_query(example).get(item, (0.0,) * len(NAMES))
            of = base | dict(zip(NAMES, own, strict=True))
            of |= {f"own × {name}": own[0] * value for name, value in base.items()}
            pairs = zip(logit.names, logit.weights, logit.scale, strict=True)
            slow.append(sum(weight / scale * of[name] for name, weight, scale in pairs))
        np.testing.assert_allclose(scores[row] - scores[row, 0], np.array(slow) - slow[0], atol=1e-4)
    if not is_out_of_fold:
        terms = [sum(blend.terms(rows, item).values()) for item in "ac"]
        np.testing.assert_allclose(terms[0] - terms[1], scores[:, 0] - scores[:, 2], atol=1e-4)


def _fold(user: str) -> int:
    return crc32(user.encode()) % 4


def test_without_own_past_the_blend_is_that_without_repeats(learnt):
    part, times, _, weights, rows = learnt
    plain = learn_weights([part], times, rows)
    assert weights.logits[PAST].names == plain.logits[""].names
    np.testing.assert_allclose(weights.logits[PAST].weights, plain.logits[""].weights, atol=1e-3)
    assert weights.logits["buy again"].names == ("popularity", *NAMES, "own × popularity")

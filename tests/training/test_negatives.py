"""Lists drawn again: what they hold, what they never hold, and that each way prefers what it says."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.training.negatives import false_negatives, resample_negatives, with_room

WAYS = ("uniform", "popularity", "in-batch", "hard", "reference")
ITEMS = [f"i{i}" for i in range(60)]


def _log(pairs):
    return make_log([(u, i, n) for n, (u, i) in enumerate(pairs)])


def _data(users=20, length=7, seed=0):
    """Each user takes items with a chance that falls with their number; a row for each item after the third."""
    rng = np.random.default_rng(seed)
    weights = 1 / (5 + np.arange(len(ITEMS)))
    rows, pairs = [], []
    for user in (f"u{u}" for u in range(users)):
        mine = rng.choice(ITEMS, length, replace=False, p=weights / weights.sum()).tolist()
        pairs += [(user, i) for i in mine]
        free = [i for i in ITEMS if i not in mine]
        for end in range(3, length):
            others = rng.choice(free, 5, replace=False).tolist()
            rows.append(RankingExample(user, tuple(mine[end - 3 : end]), (mine[end], *others), mine[end]))
    catalogue = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": ITEMS}))
    return PreparedData(catalogue, rows, [], [], _log(pairs), {})


def _taken(data):
    return {u: set(f["item_id"].to_list()) for (u,), f in data.train_interactions.group_by("user_id")}


def _by_number(examples):
    return np.array([[float(i[1:]) for i in e.candidates] for e in examples])


def _any_item(examples, k, rngs, without):
    """Sample items in place of a model."""
    for rng, excluded in zip(rngs, without, strict=False):
        yield rng.choice([i for i in ITEMS if i not in excluded], k, replace=False).tolist()


def _redrawn(data, how, **more):
    ways = {"hard": {"miner": _by_number}, "reference": {"sampler": _any_item}}
    return resample_negatives(data.train, data, how, **({"seed": 0, "pool": 20} | ways.get(how, {}) | more))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(WAYS), st.integers(0, 5), st.integers(0, 3))
def test_the_question_stays_and_known_items_are_no_negatives(how, seed, made):
    data = _data(seed=made)
    taken, found = _taken(data), _redrawn(data, how, seed=seed)
    for before, after in zip(data.train, found, strict=True):
        assert (after.user_id, after.history, after.target) == (before.user_id, before.history, before.target)
        assert len(set(after.candidates)) == len(after.candidates) == 6
        assert set(after.candidates) & taken[after.user_id] == {after.target}
    assert found == _redrawn(data, how, seed=seed)
    assert found != _redrawn(data, how, seed=seed + 1)


@pytest.mark.parametrize("how", WAYS)
def test_what_is_not_known_to_be_taken_may_be_drawn(how):
    data = _data()
    taken = _taken(data)
    # The small numbers are the popular ones.
    found = _redrawn(data, how, excluded=_log([]), miner=lambda examples: -_by_number(examples))
    assert any((set(e.candidates) - {e.target}) & taken[e.user_id] for e in found)
    assert all(set(e.candidates) & {*e.history, e.target} == {e.target} for e in found)


@pytest.mark.parametrize("how", WAYS)
def test_the_place_of_the_target_tells_nothing(how):
    data = _data(users=150)
    places = np.bincount([e.target_index for e in _redrawn(data, how)], minlength=6)
    assert ((places - places.mean()) ** 2 / places.mean()).sum() < 20.5  # chi² with 5 degrees of freedom: p ≈ 0.001


def test_popular_items_are_drawn_by_their_weight():
    data = _data(users=200)
    counts = Counter(data.train_interactions["item_id"].to_list())

    def share(how: str) -> float:
        return np.mean([counts[i] for e in _redrawn(data, how) for i in e.candidates if i != e.target])

    assert share("uniform") < 1.05 * np.mean([counts[i] for i in ITEMS])
    assert share("popularity") > 1.2 * share("uniform")
    assert share("in-batch") > 1.2 * share("uniform")


def test_in_batch_negatives_are_targets_of_other_rows():
    data = _data()
    targets = {e.target for e in data.train}
    assert all(set(e.candidates) <= targets for e in _redrawn(data, "in-batch"))
    assert {i for e in _redrawn(data, "uniform") for i in e.candidates} - targets


def test_hard_negatives_are_the_highest_of_the_pool():
    data, seen = _data(), []

    def miner(examples):
        seen.extend(examples)
        return _by_number(examples)

    found = _redrawn(data, "hard", miner=miner)
    assert {len(e.candidates) for e in seen} == {21}
    for pool, after in zip(seen, found, strict=True):
        others = sorted((i for i in pool.candidates if i != pool.target), key=lambda i: -int(i[1:]))
        assert set(after.candidates) == {after.target, *others[:5]}
        assert [i for i in pool.candidates if i in after.candidates] == list(after.candidates)


def _with_free(counts: list[int], protocol: dict[str, Any]) -> PreparedData:
    """A row of each user, who has taken all but so many of ten items."""
    items = ITEMS[:10]
    taken = {f"u{free}": items[: 10 - free] for free in counts}
    rows = [RankingExample(user, tuple(own[:2]), (own[2], "i9"), own[2]) for user, own in taken.items()]
    catalogue = Catalogue(pl.DataFrame({"item_id": items, "title": items}))
    log = _log([(user, item) for user, own in taken.items() for item in own])
    return PreparedData(catalogue, rows, [], [], log, protocol)


def test_rows_with_too_few_free_items_are_left_out():
    data = _with_free([3, 4, 5], {})
    assert [e.user_id for e in with_room(data.train, data, 4)] == ["u4", "u5"]
    shown = [replace(e, history=(*e.history, "i9")) for e in data.train]
    assert [e.user_id for e in with_room(shown, data, 4)] == ["u5"]
    wanted = [replace(e, candidates=("i9", "i0"), target="i9") for e in data.train]
    assert [e.user_id for e in with_room(wanted, data, 4)] == ["u5"]


def test_where_repeats_are_kept_all_items_but_the_target_are_free():
    data = _with_free([3, 4, 5], {"config": {"repeats": "keep"}})
    assert with_room(data.train, data, 9) == data.train
    assert with_room(data.train, data, 10) == []


def test_too_little_to_draw_from_is_said():
    data = _data(users=1, length=5)
    with pytest.raises(DataError, match="in-batch negatives: the 2 examples have only 0 targets that user 'u0'"):
        _redrawn(data, "in-batch")
    assert resample_negatives([], data, "uniform", seed=0) == []


@pytest.mark.parametrize(("how", "missing"), [("reference", "sampler"), ("hard", "miner")])
def test_a_model_that_is_not_given_is_named(how, missing):
    with pytest.raises(ConfigError, match=f"^{missing}: {how} negatives"):
        _redrawn(_data(), how, **{missing: None})


def test_negatives_are_false_if_they_are_taken_after_the_row_s_own_target():
    """The user takes `a` three times; `x` comes between the first two, `y` after them."""
    catalogue = Catalogue(pl.DataFrame({"item_id": [*"abcxy"], "title": [*"abcxy"]}))
    data = PreparedData(catalogue, [], [], [], _log([("u", i) for i in "axbayca"]), {"config": {"repeats": "keep"}})
    # A history may end a few interactions before the target: the other ones have the target's time.
    shares = {(): 1.0, ("x", "b"): 0.5, ("a", "x"): 0.5, ("y", "c"): 0.0}
    for history, share in shares.items():
        assert false_negatives([RankingExample("u", history, ("a", "x", "y"), "a")], data) == share

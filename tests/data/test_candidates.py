"""Candidate lists: a function of user and position that tells nothing about the target."""

import random
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.data import RankingExample, Window, candidates
from prefrec.data.candidates import SampledCandidates, pair_keys, popularity_weights, published_candidates
from prefrec.errors import DataError


def touched_of(pairs: list[tuple[str, str]]) -> pl.DataFrame:
    return pl.DataFrame(pairs, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")


def pool_of(n: int) -> list[str]:
    return [f"i{i}" for i in range(n)]


def draw_lists(windows, pool, touched, **options):
    return candidates.draw_candidates(windows, pool, touched, **{"split": "test", "seed": 0} | options)


@st.composite
def tasks(draw):
    size = draw(st.integers(2, 8))
    pool = pool_of(draw(st.sampled_from([size + 8, 30, 200])))
    windows, pairs = [], []
    for u in range(draw(st.integers(1, 4))):
        mine = draw(st.lists(st.sampled_from(pool), unique=True, min_size=2, max_size=8))
        pairs += [(f"u{u}", i) for i in mine]
        windows += [Window(f"u{u}", p, tuple(mine[:p]), mine[p]) for p in range(1, len(mine))]
    return pool, windows, touched_of(pairs), size


@settings(max_examples=60)
@given(tasks(), st.integers(0, 5), st.booleans())
def test_lists_hold_the_target_once_among_untouched_items(task, seed, weighted):
    pool, windows, touched, size = task
    weights = popularity_weights(touched, pool) if weighted else None
    options = {"seed": seed, "size": size, "weights": weights}
    examples = draw_lists(windows, pool, touched, **options)
    mine = {u: set(f["item_id"].to_list()) for (u,), f in touched.group_by("user_id")}
    for window, example in zip(windows, examples, strict=True):
        assert (example.user_id, example.history, example.target) == (window.user_id, window.history, window.target)
        assert len(example.candidates) == size == len(set(example.candidates))
        assert set(example.candidates) & mine[window.user_id] == {window.target}
    assert draw_lists(windows, pool, touched, **options) == examples
    assert draw_lists(windows[::-1], pool, touched, **options) == examples[::-1]


@settings(max_examples=40)
@given(tasks())
def test_lists_do_not_depend_on_the_target(task):
    """Another target of the same user at the same position: same negatives in the same places."""
    pool, windows, touched, size = task
    others = [replace(w, target=w.history[0]) for w in windows]
    first, second = (draw_lists(ws, pool, touched, size=size) for ws in (windows, others))
    for a, b in zip(first, second, strict=True):
        assert a.target_index == b.target_index
        assert [i for i in a.candidates if i != a.target] == [i for i in b.candidates if i != b.target]


def many(n: int) -> tuple[list[Window], pl.DataFrame]:
    windows = [Window(f"u{u}", 3, (f"i{u % 7}",), f"i{u % 11}") for u in range(n)]
    return windows, touched_of([(w.user_id, i) for w in windows for i in {*w.history, w.target}])


def test_target_position_and_negatives_are_uniform():
    windows, touched = many(20_000)
    examples = draw_lists(windows, pool_of(300), touched, size=20)
    places = np.bincount([e.target_index for e in examples], minlength=20)
    assert ((places - 1_000) ** 2 / 1_000).sum() < 45  # chi² with 19 degrees of freedom: p ≈ 0.001
    drawn = Counter(i for e in examples for i in e.candidates if i != e.target)
    counts = np.array([drawn[f"i{i}"] for i in range(20, 300)])
    assert counts.std() < 1.3 * np.sqrt(counts.mean())
    assert counts.min() > 0.5 * counts.mean()


def test_weighted_draws_follow_the_weights():
    """The first-order inclusion of successive sampling, against a slow twin."""
    windows, touched = many(4_000)
    pool = pool_of(400)
    weights = {item: float(i % 10 + 1) for i, item in enumerate(pool)}
    examples = draw_lists(windows, pool, touched, size=20, weights=weights)
    drawn = Counter(int(i[1:]) % 10 for e in examples for i in e.candidates if i != e.target)
    p = np.array([weights[i] for i in pool])
    rng = np.random.default_rng(0)
    twin = Counter(int(i) % 10 for _ in range(2_000) for i in rng.choice(400, 19, replace=False, p=p / p.sum()))
    for digit in range(10):
        assert drawn[digit] / 4_000 == pytest.approx(twin[digit] / 2_000, rel=0.1)


def test_small_pools_are_drawn_exactly_by_weight():
    """Where rejection is not worth it, the arrival times must give the same distribution."""
    windows = [Window(f"u{u}", 1, ("h",), "t") for u in range(20_000)]
    pool, touched = ["t", "h", "a", "b", "c"], touched_of([(w.user_id, i) for w in windows for i in ("h", "t")])
    weights = {"t": 1.0, "h": 1.0, "a": 3.0, "b": 1.0, "c": 1.0}
    examples = draw_lists(windows, pool, touched, size=2, weights=weights)
    share = Counter(next(i for i in e.candidates if i != "t") for e in examples)
    assert share["a"] / len(windows) == pytest.approx(0.6, abs=0.015)


def test_seed_split_user_and_position_each_matter():
    rows = product((("u", 3), ("v", 3), ("u", 4)), ("test", "train"), (0, 1))
    keys = {int(candidates.row_keys([user], [position], split, seed)[0]) for (user, position), split, seed in rows}
    assert len(keys) == 12
    with pytest.raises(ValueError, match="zip"):
        candidates.row_keys(["u"], [3, 4], "test", 0)


@pytest.mark.parametrize(
    ("items", "heavy", "expected"),
    [
        (100, 1, ("i88", "i86", "i1", "i14", "i49")),  # by rejection
        (42, 1, ("i37", "i36", "i1", "i6", "i20")),
        (40, 1, ("i13", "i26", "i1", "i10", "i2")),  # exactly
        (100, 600, ("i11", "i50", "i1", "i7", "i41")),  # by rejection in three rounds
        (100, 700, ("i60", "i50", "i1", "i7", "i40")),  # exactly after four rounds
    ],
)
def test_lists_are_the_same_on_every_machine(items, heavy, expected):
    """Two items have the weight `heavy`, all others 1."""
    weights = dict.fromkeys(pool_of(items), 1.0) | {"i7": heavy, "i50": heavy}
    windows, touched = [Window("u", 3, ("i0",), "i1")], touched_of([("u", "i0"), ("u", "i1")])
    examples = draw_lists(windows, pool_of(items), touched, seed=7, size=5, weights=weights)
    assert examples[0].candidates == expected


def test_blocks_do_not_change_the_lists(monkeypatch):
    windows, touched = many(7)
    whole = draw_lists(windows, pool_of(50), touched, size=5)
    for block in (15, 5, 1):
        monkeypatch.setattr(candidates, "BLOCK", block)
        assert draw_lists(windows, pool_of(50), touched, size=5) == whole


@pytest.mark.parametrize("items", [12, 200])
def test_items_without_weight_are_never_drawn(items):
    windows, touched = many(300)
    weights = {f"i{i}": float(i % 2) for i in range(items - 2)}  # the last two have none at all
    examples = draw_lists(windows, pool_of(items), touched, size=3, weights=weights)
    drawn = {int(i[1:]) for e in examples for i in e.candidates if i != e.target}
    assert all(i % 2 and i < items - 2 for i in drawn)
    assert len(drawn) >= min(items // 2 - 2, 90)


def test_a_draw_of_exactly_zero_takes_no_item_without_weight(monkeypatch):
    monkeypatch.setattr(candidates, "_uniform", lambda keys, counters, stream: np.zeros((len(keys), len(counters))))
    weights = {f"i{i}": float(i > 0) for i in range(50)}
    (example,) = draw_lists([Window("u", 1, ("i8",), "i9")], pool_of(50), touched_of([]), size=4, weights=weights)
    assert sorted(example.candidates) == ["i1", "i2", "i3", "i9"]


def test_a_row_that_rejection_leaves_unfinished_is_finished():
    """Two items take nearly all draws, so the others come from the exact draw."""
    windows, touched = many(200)
    weights = dict.fromkeys(pool_of(100), 1.0) | {"i50": 1e7, "i51": 1e7}
    for example in draw_lists(windows, pool_of(100), touched, size=6, weights=weights):
        assert len(set(example.candidates)) == 6
        assert {"i50", "i51", example.target} <= set(example.candidates)
        assert set(example.candidates) & {*example.history, example.target} == {example.target}


def test_items_and_users_that_are_not_asked_about_do_not_matter():
    windows, touched = many(20)
    more = pl.concat([touched, touched_of([("u1", "elsewhere"), ("nobody", "i30"), ("u0", "i0")])])
    assert draw_lists(windows, pool_of(60), more, size=4) == draw_lists(windows, pool_of(60), touched, size=4)


def test_a_list_that_takes_all_untouched_items():
    (example,) = published_candidates([Window("u", 1, ("0",), "1")], [str(i) for i in range(21)])
    assert set(example.candidates) == {str(i) for i in range(1, 21)}


def test_popularity_weights_leave_no_item_out():
    frame = touched_of([("u", "a"), ("v", "a"), ("u", "b")])
    assert popularity_weights(frame, ["a", "b", "cold"]) == {"a": 3.0, "b": 2.0, "cold": 1.0}


def test_weights_of_lists_are_counts_plus_one_or_alike():
    learnt = np.array([0, 2, 2], dtype=np.int32)
    assert candidates.item_weights("popularity", learnt, 4).tolist() == [2, 1, 3, 1]
    assert candidates.item_weights("uniform", learnt, 4).tolist() == [1, 1, 1, 1]


def random_pairs(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Users of 6 and their items of 8 in 40 rows; some pairs are repeated."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 6, 40), rng.integers(0, 8, 40)


def test_keys_of_many_users_and_items_are_whole_numbers_of_64_bits():
    keys = pair_keys((np.array([1 << 20], dtype=np.int32), np.array([3], dtype=np.int32)), 1 << 20)
    assert keys.dtype == np.int64
    assert keys.tolist() == [(1 << 40) + 3, (1 << 63) - 1]


@pytest.mark.parametrize("block", [3, 40, 1_000])
def test_keys_without_others_are_those_of_the_other_pairs(monkeypatch, block):
    monkeypatch.setattr(candidates, "BLOCK", block)
    keys, (users, items) = pair_keys(random_pairs(0), 8), random_pairs(1)
    last, highest = int(keys[-1]), int(keys[-2])
    users, items = np.append(users[:9], highest // 8), np.append(items[:9], highest % 8)
    excluded, excluded_keys = {*(users * 8 + items).tolist()}, pair_keys((users, items), 8)
    found = candidates.keys_without(keys, excluded_keys).tolist()
    assert found == [key for key in keys.tolist() if key not in excluded]
    assert found[-1] == last
    assert candidates.keys_without(keys[:-1], excluded_keys).tolist() == found[:-1]  # without the sentinel
    assert candidates.keys_without(keys[:0], excluded_keys).tolist() == []


@pytest.mark.parametrize("seed", range(4))
def test_users_with_too_few_items_are_found(seed):
    users, items = random_pairs(seed)
    weights = np.random.default_rng(seed).choice([0.0, 0.5, 3.0], 8)
    pairs, asked = {*zip(users.tolist(), items.tolist(), strict=True)}, np.array([4, 1, 5])
    free = [sum(w > 0 and (u, i) not in pairs for i, w in enumerate(weights)) for u in range(6)]
    names = pl.Series([f"u{i}" for i in range(6)])
    for size in range(1, 10):
        lists = SampledCandidates(names, weights, pair_keys((users, items), 8), "test", 0, size)
        short = [u for u in asked.tolist() if free[u] < size - 1]
        assert [found.tolist() for found in lists.short(asked)] == [short, [free[u] for u in short]]
        if not short:
            lists.check(asked)
        else:
            says = f"^user 'u{short[0]}' has only {free[short[0]]} unseen items, but {size} candidates need"
            with pytest.raises(DataError, match=says):
                lists.check(asked)
    few = SampledCandidates(names, np.ones(8), pair_keys((np.array([5, 5, 5]), np.array([0, 3, 7])), 8), "test", 0, 7)
    assert [found.tolist() for found in few.short(np.array([0, 5]))] == [[5], [5]]
    assert [found.tolist() for found in replace(few, size=6).short(np.array([5]))] == [[], []]
    first = replace(few, touched=pair_keys((np.zeros(3, dtype=int), np.arange(3)), 8))
    assert [found.tolist() for found in first.short(np.array([0, 5]))] == [[0], [5]]
    SampledCandidates(names[:0], weights, pair_keys((users[:0], items[:0]), 8), "test", 0, 2).check(asked[:0])


def test_too_few_items_says_how_many_and_what_to_do():
    windows, touched = [Window("u", 1, ("i0",), "i1")], touched_of([("u", "i0"), ("u", "i1")])
    says = r"user 'u' has only 8 unseen items.*20 candidates need 19.*--candidates.size to 9 or less"
    with pytest.raises(DataError, match=says):
        draw_lists(windows, pool_of(10), touched)
    assert len(draw_lists(windows, pool_of(10), touched, size=9)[0].candidates) == 9
    with pytest.raises(DataError, match=r"--candidates.size to 9 or less"):
        draw_lists(windows, pool_of(10), touched, size=10)
    with pytest.raises(DataError, match=r"need 1 negatives: use a larger catalogue$"):  # no size is small enough
        draw_lists(windows, pool_of(2), touched, size=2)
    for more in ({"size": 10}, {}):
        with pytest.raises(DataError, match="user 'u' has only 8 unseen items"):
            published_candidates([Window("u", 1, ("0",), "1")], [str(i) for i in range(10)], **more)


def test_published_rule_against_its_plain_form():
    pool, rng = [str(i) for i in range(50)], random.Random(3)
    drawn = [rng.sample(pool, rng.randint(4, 11)) for _ in range(200)]
    windows = [Window(str(u), 3, tuple(items[:-1]), items[-1]) for u, items in enumerate(drawn)]
    for window, example in zip(windows, published_candidates(windows, pool), strict=True):
        free = [i for i in pool if i not in window.history and i != window.target]
        twin = random.Random(int(window.target))
        listed = [*twin.sample(free, 19), window.target]
        twin.seed(int(window.target))
        twin.shuffle(listed)
        assert example == RankingExample(window.user_id, window.history, tuple(listed), window.target)


def test_published_lists_need_numbers():
    with pytest.raises(DataError, match="need whole numbers as item ids, found 'i1'"):
        published_candidates([Window("u", 1, ("i0",), "i1")], pool_of(50))

"""Each shortcut against a slow twin that follows its sentence."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import shortcuts
from prefrec.evaluation.shortcuts import encode_sets, id_keys

N = 12
IDS = [str(i * 7 % 31) for i in range(N)]
TITLES = ["x" * (i * 5 % 13 + 1) for i in range(N)]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))


def _examples(n: int, seed: int, ragged: bool = True) -> list[RankingExample]:
    rng, rows = np.random.default_rng(seed), []
    for b in range(n):
        order = [IDS[i] for i in rng.permutation(N)]
        size = int(rng.integers(3, 6)) if ragged else 5
        history = tuple(order[size : size + int(rng.integers(0, 3))])
        rows.append(RankingExample(f"u{b}", history, tuple(order[:size]), order[int(rng.integers(size))]))
    return rows


@pytest.fixture
def test_rows():
    return _examples(15, seed=1)


@pytest.fixture
def learn_rows() -> list[RankingExample]:
    return _examples(60, seed=2)


def _assert_scores(scores, examples, twin):
    for row, e in zip(scores, examples, strict=True):
        size = len(e.candidates)
        np.testing.assert_allclose(row[:size], [twin(e, p, c) for p, c in enumerate(e.candidates)])
        assert np.isneginf(row[size:]).all()


def test_target_position(test_rows, learn_rows):
    def twin(e, p, _):
        return 1 + sum(len(t.candidates) == len(e.candidates) and t.target_index == p for t in learn_rows)

    lists, seen = encode_sets(test_rows, CATALOGUE), encode_sets(learn_rows, CATALOGUE)
    _assert_scores(shortcuts.target_position(lists, seen), test_rows, twin)


def test_position_lookup(test_rows, learn_rows):
    def twin(e, p, c):
        at = [t.target_index for t in learn_rows if t.target == c]
        return (at.count(p) + 1 / len(e.candidates)) / (len(at) + 1)

    lists, seen = encode_sets(test_rows, CATALOGUE), encode_sets(learn_rows, CATALOGUE)
    _assert_scores(shortcuts.position_lookup(lists, seen), test_rows, twin)


def test_list_lookup(test_rows, learn_rows):
    def overlaps(e, c):
        return [len(set(e.candidates) & set(t.candidates) - {c}) for t in learn_rows if t.target == c]

    pooled = [o for e in test_rows for c in e.candidates for o in overlaps(e, c)]

    def twin(e, _, c):
        found = overlaps(e, c)
        return (sum(found) + np.mean(pooled)) / (len(found) + 1)

    lists, seen = encode_sets(test_rows, CATALOGUE), encode_sets(learn_rows, CATALOGUE)
    _assert_scores(shortcuts.list_lookup(lists, seen), test_rows, twin)


@pytest.mark.parametrize("up", [True, False])
def test_next_in_order_picks_the_next_id(test_rows, up):
    """Training rows whose target is always the next id on one side choose the direction."""
    target = min(IDS[5:8], key=lambda i: (int(i) - int(IDS[4])) * (1 if up else -1) % 1000)
    learnt = encode_sets([RankingExample("t", (IDS[4],), tuple(sorted(IDS[5:8])), target)], CATALOGUE)
    scores = shortcuts.next_in_order(encode_sets(test_rows, CATALOGUE), learnt, id_keys(CATALOGUE)["item_id"])
    for row, e in zip(scores, test_rows, strict=True):
        gaps = {c: (int(c) - int(e.history[-1])) * (1 if up else -1) for c in e.candidates} if e.history else {}
        beyond = [c for c, gap in gaps.items() if gap > 0]
        if beyond:
            assert e.candidates[int(np.argmax(row))] == min(beyond, key=gaps.__getitem__)
        else:
            assert len(set(row[: len(e.candidates)])) == 1


def test_id_keys_are_numbers_or_places_and_other_id_columns():
    assert id_keys(CATALOGUE)["item_id"].tolist() == [float(i) for i in IDS]
    frame = pl.DataFrame({"item_id": ["b", "7"], "title": ["x", "y"], "artist_id": [3, None], "year_id": ["p", "q"]})
    keys = id_keys(Catalogue(frame))
    assert (list(keys), keys["item_id"].tolist()) == (["item_id", "artist_id"], [0.0, 1.0])
    np.testing.assert_array_equal(keys["artist_id"], [3.0, np.nan])


@pytest.mark.parametrize("longest", [True, False])
def test_title_length_learns_its_direction(test_rows, longest):
    length = dict(zip(IDS, map(len, TITLES), strict=True))
    pick = max if longest else min
    rows = [replace(e, target=pick(e.candidates, key=length.__getitem__)) for e in _examples(30, 3)]
    scores = shortcuts.title_length(encode_sets(test_rows, CATALOGUE), encode_sets(rows, CATALOGUE), CATALOGUE)
    _assert_scores(scores, test_rows, lambda e, p, c: length[c] * (1 if longest else -1))


def test_in_history():
    rows = [RankingExample("u", (IDS[0], IDS[3]), tuple(IDS[2:5]), IDS[4])]
    rows.append(RankingExample("v", (), tuple(IDS[:2]), IDS[0]))
    assert shortcuts.in_history(rows).tolist() == [[0, 1, 0], [0, 0, -np.inf]]


@pytest.mark.parametrize(("window", "expected"), [(0, []), (1, [False, False, True]), (2, [False, True, True])])
def test_repeats_of_last_interactions(window, expected):
    """Users who take no item again, one two steps ago, one at once, and a user with a single interaction."""
    items = {"none": "abc", "two": "cab" + "a", "once": "abb", "single": "a"}
    log = pl.DataFrame([(u, i) for u, of in items.items() for i in of], schema=["user_id", "item_id"], orient="row")
    assert shortcuts.repeats(log, window).tolist() == expected


def test_shuffles_cut_one_tie_and_keep_the_rest():
    rng, seen = np.random.default_rng(4), encode_sets(_examples(200, 5), CATALOGUE)
    moved, dealt = shortcuts.shuffled_positions(seen, rng), shortcuts.shuffled_sets(seen, rng)
    for cut in (moved, dealt):
        np.testing.assert_array_equal(cut.target_codes, seen.target_codes)
        np.testing.assert_array_equal(cut.lengths, seen.lengths)
    np.testing.assert_array_equal(np.sort(moved.codes), np.sort(seen.codes))
    assert 0.1 < (moved.target == seen.target).mean() < 0.4
    np.testing.assert_array_equal(dealt.target, seen.target)
    assert (dealt.codes != seen.codes).any(axis=1).mean() > 0.9
    before, after = (np.bincount(x.codes[x.codes >= 0], minlength=N) for x in (seen, dealt))
    np.testing.assert_array_equal(before, after)


def test_unknown_items_are_named():
    with pytest.raises(DataError, match="item 'ghost' is not in the catalogue of 12 items"):
        encode_sets([RankingExample("u", (), ("ghost", IDS[0]), "ghost")], CATALOGUE)

"""Splits: nothing of the future in a history, nothing of a test row in training."""

from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drawn_logs import learnt_of, logs, make_log, windows_of
from prefrec.data import splits
from prefrec.data.splits import by_share, by_time, by_user, leave_last_out, order
from prefrec.errors import DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.cuts import sample_rows

WAYS = [leave_last_out, by_time, by_user, by_share]


def ordered(rows):
    return order(make_log(rows), 0)


@given(st.permutations(list(range(8))), st.integers(0, 3))
def test_within_a_second_microseconds_decide(micros, seed):
    log = make_log([("u", f"i{i}", 7) for i in range(8)]).with_columns(pl.Series("subsecond", micros))
    found = order(log, seed)
    assert found.items.to_list() == [f"i{i}" for i in np.argsort(micros)]
    assert found.frame.columns == ["user_id", "item_id", "timestamp"]


@settings(max_examples=60)
@given(logs(1, 8), st.sampled_from(WAYS), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_no_row_sees_its_future(log, way, min_history, length, seed):
    sequences = order(log, seed)
    try:
        split = way(sequences, min_history)
    except DataError:
        return
    when = {(u, i): t for u, i, t in log.iter_rows()}
    learnt = set(learnt_of(split).select("user_id", "item_id").iter_rows())
    seen = {}
    for part, rows in split.rows.items():
        windows = windows_of(sequences, rows, length)
        seen[part] = {(w.user_id, w.target) for w in windows}
        assert len(seen[part]) == len(windows)
        for w in windows:
            assert min(min_history, length) <= len(w.history) <= length
            assert len(w.history) == min(length, w.position)
            assert w.target not in w.history
            times = [when[w.user_id, i] for i in (*w.history, w.target)]
            assert times == sorted(times)
    assert seen["train"] <= learnt
    assert not seen["test"] & (learnt | seen["train"] | seen["validation"])
    assert not seen["validation"] & (learnt | seen["train"])


@settings(max_examples=30)
@given(logs(1, 8), st.integers(0, 5), st.randoms())
def test_order_does_not_depend_on_the_order_of_lines(log, seed, rng):
    rows = log.rows()
    rng.shuffle(rows)
    assert order(make_log(rows), seed).frame.equals(order(log, seed).frame)


@pytest.mark.parametrize(("block", "blocks"), [(200, 1), (151, 1), (150, 2), (100, 3), (10, 16)])
def test_large_logs_are_sorted_by_blocks_of_users(monkeypatch, block, blocks):
    rng, ids = np.random.default_rng(0), [f"u{n:02}" for n in range(48)]
    rows = sorted({(ids[i % 48], f"i{rng.integers(9)}", int(rng.integers(4))) for i in range(330)})[:300]
    rng.shuffle(rows)
    log = make_log([(u, i, int(t)) for u, i, t in rows]).with_columns(pl.col("user_id").cast(pl.Enum(ids)))
    whole = order(splits.first_only(log), 0)
    monkeypatch.setattr(splits, "_BLOCK", block)
    calls = []
    found = splits._by_blocks(log, lambda part: calls.append(part["user_id"].n_unique()) or part)
    assert calls == [48 // blocks] * blocks
    assert sorted(found.rows()) == sorted(log.rows())
    assert order(splits.first_only(log), 0).frame.equals(whole.frame)
    assert splits._by_blocks(log.cast({"user_id": pl.String}), lambda part: part[:5]).height == 5


def test_ties_are_broken_by_the_seed_not_by_id():
    log = make_log([("u", f"{i:03d}", 7) for i in range(200)])
    first, second = (order(log, seed).items.to_list() for seed in (0, 1))
    assert first != second
    assert abs(np.corrcoef(np.arange(200), np.argsort(first))[0, 1]) < 0.2
    assert order(log[:6], 7).items.to_list() == ["001", "003", "002", "004", "005", "000"]  # on every machine


def test_sequences_are_flat_and_keep_ratings_and_impressions():
    more = pl.DataFrame({"rating": [1.0, 2.0, 3.0], "impressions": [["x"], [], ["y"]], "other": [0, 0, 0]})
    log = make_log([("v", "a", 2), ("u", "b", 5), ("v", "c", 1)]).hstack(more)
    sequences = order(log, 0)
    assert (sequences.users.to_list(), sequences.items.to_list()) == (["u", "v"], ["b", "c", "a"])
    assert (sequences.offsets.tolist(), sequences.lengths.tolist()) == ([0, 1, 3], [1, 2])
    assert sequences.offsets.dtype == np.int64
    assert sequences.timestamps.tolist() == [5, 1, 2]
    last = order(log, 0, latest=1)
    assert (last.users.to_list(), last.items.to_list(), last.lengths.tolist()) == (["u", "v"], ["b", "a"], [1, 1])
    assert order(log, 0, latest=2).frame.equals(sequences.frame)
    assert sequences.frame.rows() == [("u", "b", 5, 2.0, []), ("v", "c", 1, 3.0, ["y"]), ("v", "a", 2, 1.0, ["x"])]


def test_leave_last_out_by_hand():
    sequences = ordered([(u, x, t) for u, xs in (("u", "abcdef"), ("short", "abcd")) for t, x in enumerate(xs)])
    split = leave_last_out(sequences, min_history=3)
    windows = {part: windows_of(sequences, rows, 4) for part, rows in split.rows.items()}
    assert {part: [(w.history, w.target) for w in found] for part, found in windows.items()} == {
        "train": [(("a", "b", "c"), "d")],
        "validation": [(("a", "b", "c", "d"), "e")],
        "test": [(("b", "c", "d", "e"), "f")],
    }
    assert learnt_of(split).rows() == [("u", x, t) for t, x in enumerate("abcd")]
    assert split.facts == {"users_too_short": 1}


def test_the_shortest_sequences_that_leave_last_out_keeps():
    """With a history of three: one row of each part needs five interactions, training rows aside."""
    sequences = ordered([(u, x, t) for u, n in (("kept", 5), ("short", 4)) for t, x in enumerate("abcdef"[:n])])
    split = leave_last_out(sequences, min_history=3)
    assert [len(split.rows[part]) for part in ("train", "validation", "test")] == [0, 1, 1]
    assert split.facts == {"users_too_short": 1}


def test_many_users_stand_in_the_order_of_their_ids():
    users = [f"u{n:04}" for n in range(3000)]
    sequences = ordered([(u, x, 0) for u in reversed(users) for x in "ab"])
    assert sequences.users.to_list() == users
    assert sequences.frame["user_id"].to_list() == [u for u in users for _ in "ab"]


def test_leave_last_out_refuses_logs_of_short_histories():
    message = r"no user has the 5 interactions.*min_history=3 \(longest: 4\); lower --min-h"
    with pytest.raises(DataError, match=message):
        leave_last_out(ordered([("u", x, t) for t, x in enumerate("abcd")]))


def test_by_time_by_hand():
    split = by_time(ordered([(u, f"{u}{t}", t) for u in "ab" for t in range(10)]), min_history=2)
    assert split.facts["cuts"] == [8, 9]
    assert split.rows["train"].tolist() == [[u, p] for u in (0, 1) for p in range(2, 8)]
    assert split.rows["validation"].tolist() == [[0, 8], [1, 8]]
    assert split.rows["test"].tolist() == [[0, 9], [1, 9]]
    assert learnt_of(split)["timestamp"].max() == 7
    assert {part.dtype.name for part in split.rows.values()} == {"int32"}


def test_by_time_last_window_of_each_user():
    sequences = ordered([(u, f"{u}{t}", t) for u in "ab" for t in range(40)])
    rows = by_time(sequences, windows="last").rows
    assert [len(r) for r in rows.values()] == [58, 2, 2]
    assert rows["test"][:, 1].tolist() == [39, 39]
    assert [len(r) for r in by_time(sequences).rows.values()] == [58, 8, 8]


def test_by_time_counts_users_without_a_row():
    sequences = ordered([(u, f"{u}{t}", t) for u, n in (("a", 10), ("b", 10), ("c", 2)) for t in range(n)])
    split = by_time(sequences, min_history=2)
    assert split.facts["users_too_short"] == 1
    assert set(learnt_of(split)["user_id"]) == {"a", "b", "c"}
    assert {w.user_id for rows in split.rows.values() for w in windows_of(sequences, rows)} == {"a", "b"}


def test_by_time_refuses_an_empty_part():
    message = r"leaves no example for train and test \(cuts at \[0, 1\], min_history=3\).*Lower --min-history"
    with pytest.raises(DataError, match=message):
        by_time(ordered([(f"u{t}", "x", t) for t in range(3)] + [("v", f"{t}", 0) for t in range(9)]))


def test_by_user_takes_users_in_order_of_arrival():
    sequences = ordered([(f"u{u}", f"i{n}", 100 * (20 - u) + n) for u in range(20) for n in range(6)])
    split = by_user(sequences)
    users = {part: {sequences.users[u] for u in rows[:, 0].tolist()} for part, rows in split.rows.items()}
    assert users["test"] == {"u0", "u1"}
    assert users["validation"] == {"u2", "u3"}
    assert [len(r) for r in split.rows.values()] == [48, 2, 2]
    assert split.rows["test"][:, 1].tolist() == [5, 5]
    assert [len(r) for r in by_user(sequences, windows="all").rows.values()] == [48, 6, 6]
    assert set(learnt_of(split)["user_id"].to_list()) == users["train"]
    assert split.facts == {"users": {"train": 16, "validation": 2, "test": 2}, "users_too_short": 0}


def test_by_user_drops_short_users_after_the_split():
    """Ties of arrival keep the order of ids; a user with three interactions has no row."""
    sizes = [6] * 16 + [3, 6, 2, 6]
    sequences = ordered([(f"u{u:02}", f"i{n}", n) for u, size in enumerate(sizes) for n in range(size)])
    split = by_user(sequences)
    assert split.rows["validation"].tolist() == [[17, 5]]
    assert split.rows["test"].tolist() == [[19, 5]]
    assert split.facts["users_too_short"] == 2
    assert len(learnt_of(split)) == 16 * 6
    with pytest.raises(DataError, match=r"no example for train and validation and test \(20 users, min_history=6\)"):
        by_user(sequences, min_history=6)


def test_by_user_splits_many_who_arrive_at_once_by_their_ids():
    arrivals = [u * 7 % 5 for u in range(300)]
    sequences = ordered([(f"u{u:03}", f"i{n}", arrivals[u] + n) for u in range(300) for n in range(5)])
    rows, by_arrival = by_user(sequences).rows, sorted(range(300), key=lambda u: (arrivals[u], u))
    assert rows["validation"][:, 0].tolist() == sorted(by_arrival[240:270])
    assert rows["test"][:, 0].tolist() == sorted(by_arrival[270:])


def test_samples_keep_order_and_whole_users():
    config = PrepareConfig(max_train_rows=10, max_test_rows=10)
    for part in ("validation", "train"):
        assert sample_rows(config, part, ["u"] * 5).tolist() == [0, 1, 2, 3, 4]
    kept = sample_rows(config, "train", [f"u{i}" for i in range(100)])
    assert len(kept) == len(set(kept)) == 10
    assert kept.tolist() == sorted(kept.tolist())
    users = [f"u{i // 4}" for i in range(40)]
    kept = sample_rows(config, "test", users)
    sizes = sorted(np.unique([users[i] for i in kept], return_counts=True)[1].tolist())
    assert sizes == [2, 4, 4]
    assert kept.tolist() == sorted(kept.tolist())


def test_share_by_hand():
    users = [f"u{n}" for n in range(5)]
    rows = [(u, x, t) for u in users for t, x in enumerate("abcdefghij")]
    sequences = ordered([*rows, *(("short", x, t) for t, x in enumerate("abc"))])
    split = by_share(sequences, min_history=3)
    assert split.facts == {"users": {"validation": 1, "test": 4}, "users_too_short": 1}
    learnt = learnt_of(split).select("user_id", "item_id")
    assert set(learnt.iter_rows()) == {(u, x) for u in users for x in "abcdefgh"}
    rows_of = {part: windows_of(sequences, rows, 2) for part, rows in split.rows.items()}
    assert {w.target for w in rows_of["train"]} == set("defgh")
    assert {(w.history, w.target) for w in rows_of["test"]} == {(("h", "i"), "j")}
    assert {w.user_id for part in ("validation", "test") for w in rows_of[part]} == set(users)
    every = by_share(sequences, min_history=3, windows="all")
    assert [len(every.rows[part]) for part in ("train", "validation", "test")] == [25, 2, 8]
    assert split.rows["validation"][0, 0] == every.rows["validation"][0, 0]
    assert by_share(sequences).rows["train"].tolist() == split.rows["train"].tolist()


def test_share_drops_users_with_nothing_after_the_cut():
    """Of two interactions 80% are, rounded, both."""
    users = {f"u{u}" for u in range(5)}
    rows = [(u, x, t) for u in sorted(users) for t, x in enumerate("abcde")]
    sequences = ordered([*rows, ("v", "a", 0), ("v", "b", 1), ("w", "a", 0)])
    split = by_share(sequences, min_history=1)
    assert split.facts["users_too_short"] == 2
    assert {w.user_id for part in split.rows.values() for w in windows_of(sequences, part)} == users
    assert set(learnt_of(split)["user_id"]) == users
    longer = ordered([*rows, *(("z", f"i{n}", n) for n in range(10))])
    shortest = by_share(longer, min_history=4)  # of five interactions four are before the cut
    assert [len(shortest.rows[part]) for part in ("train", "validation", "test")] == [4, 1, 5]
    with pytest.raises(DataError, match=r"no example for train and validation and test \(7 users, min_history=9\)"):
        by_share(sequences, min_history=9)


def test_histories_are_of_ten_items():
    sequences = ordered([("u", f"i{t:02}", t) for t in range(14)])
    long, short = windows_of(sequences, np.array([[0, 13], [0, 4]]))
    assert long.history == tuple(f"i{t:02}" for t in range(3, 13))
    assert (long.position, long.target) == (13, "i13")
    assert short.history == tuple(f"i{t:02}" for t in range(4))


def test_drawn_users_are_whole_whatever_their_order():
    users = [f"u{i % 10}" for i in range(40)]
    kept = splits.sample_users(users, 10, np.random.default_rng(0))
    assert kept.tolist() == sorted(kept)
    chosen = [users[i] for i in kept]
    assert sorted(chosen.count(u) for u in set(chosen)) == [2, 4, 4]
    cut = min(set(chosen), key=chosen.count)
    assert [i for i in kept if users[i] == cut] == [i for i in range(40) if users[i] == cut][:2]
    assert kept.tolist() == [2, 7, 9, 12, 17, 19, 27, 29, 37, 39]  # on every machine


def test_share_draws_validation_users_by_the_seed():
    sequences = ordered([(f"u{u}", f"i{t}", t) for u in range(50) for t in range(10)])
    drawn = [by_share(sequences, seed=seed).rows["validation"][:, 0].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 10
    assert drawn[0] == sorted(drawn[0])
    assert drawn[0] == by_share(sequences).rows["validation"][:, 0].tolist() == [4, 5, 8, 15, 17, 24, 29, 31, 37, 41]
    with pytest.raises(DataError, match="leaves no example for validation"):
        by_share(ordered([("u", f"i{t}", t) for t in range(10)]))


def test_folds_are_tested_one_before_another():
    five = make_log([("u", f"i{t}", t) for t in range(5)])
    assert [splits.before_tests(five, fold)["timestamp"].to_list() for fold in (1, 4, 9)] == [[0, 1, 2, 3], [0], []]
    rng = np.random.default_rng(0)
    log = make_log([(f"u{u}", f"i{i}", int(rng.integers(10_000))) for u in range(20) for i in range(20)])
    tested = []
    for fold in range(3):
        sequences = order(splits.before_tests(log, fold), 0)
        split = by_time(sequences, min_history=1)
        tested.append((split.facts["cuts"][1], int(sequences.timestamps.max())))
        assert (sequences.timestamps >= split.facts["cuts"][1]).mean() == pytest.approx(0.1, abs=0.01)
    for (start, _), (_, end) in pairwise(tested):
        assert end < start  # the test of a fold ends where that of the fold before begins
        assert not log.filter(pl.col("timestamp").is_between(end, start, closed="none")).height

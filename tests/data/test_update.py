"""The part of a longer log that an update learns from, against sets of pairs."""

import numpy as np
import polars as pl
import pytest

from drawn_logs import learnt_of
from prefrec.data.splits import Split, leave_last_out, order
from prefrec.data.update import MARK, read_by_sft, update_split
from prefrec.errors import DataError

PAIR = ["user_id", "item_id"]
USERS, OLD, NEW = 30, 8, 4


def _log(length: int, users: int = USERS) -> pl.DataFrame:
    rows = [(f"u{u:02}", f"i{(7 * u + n) % 50}", n) for u in range(users) for n in range(length)]
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")


@pytest.fixture
def sequences():
    """The first ten users have four interactions more than the old run's."""
    return order(pl.concat([_log(OLD), _log(OLD + NEW, 10)]).unique(PAIR, maintain_order=True), 0)


@pytest.fixture
def learnt():
    return learnt_of(leave_last_out(order(_log(OLD), 0)))


def _pairs(frame: pl.DataFrame) -> set[tuple[str, str]]:
    return set(frame.select(PAIR).iter_rows())


def _held(*users: int) -> pl.DataFrame:
    """Test rows of the old run: each user's last old item."""
    pairs = [(f"u{u:02}", f"i{(7 * u + OLD - 1) % 50}") for u in users]
    return pl.DataFrame(pairs, dict.fromkeys(PAIR, pl.String), orient="row")


def test_new_interactions_and_whole_replayed_users_are_marked(sequences, learnt):
    split, held = leave_last_out(sequences), _held(0, 1, 20)
    update = update_split(sequences, split, learnt, held, replay=1.0, seed=0)
    train, known = _pairs(learnt_of(split)) - _pairs(held), _pairs(learnt)
    marked, new = _pairs(learnt_of(update).filter(MARK)), train - known
    assert _pairs(learnt_of(update)) == train
    assert len(new) == 10 * 4 - 2  # to 10 of 12 items, six of them learnt, two old test rows held out
    assert new <= marked <= train
    replayed = marked - new
    users = {user for user, _ in replayed}
    assert replayed == {pair for pair in train & known if pair[0] in users}
    assert len(new) - 6 < len(replayed) <= len(new)
    assert update.facts["update"] == {"new": len(new), "replayed": len(replayed), "held_out": 3}
    rows, whole = (
        {(sequences.users[u], sequences.items[int(sequences.offsets[u] + p)]) for u, p in of.rows["train"].tolist()}
        for of in (update, split)
    )
    assert rows == whole & marked
    assert rows


def test_held_rows_do_not_choose_the_best_epoch(sequences, learnt):
    sequences = order(sequences.frame.filter(pl.col("timestamp") <= OLD), 0)
    split = leave_last_out(sequences)
    update = update_split(sequences, split, learnt, _held(0, 1, 20), replay=0.0, seed=0)
    # Of users with one more interaction the old test item is the validation target now.
    before, after = ({sequences.users[u] for u, _ in of.rows["validation"].tolist()} for of in (split, update))
    assert before - after == {"u00", "u01"}
    assert np.array_equal(update.rows["test"], split.rows["test"])


def test_nothing_is_replayed_without_replay(sequences, learnt):
    update = update_split(sequences, leave_last_out(sequences), learnt, _held(), replay=0.0, seed=0)
    assert _pairs(learnt_of(update).filter(MARK)).isdisjoint(_pairs(learnt))


def test_an_update_without_new_interactions_is_refused(learnt):
    sequences = order(_log(OLD), 0)
    with pytest.raises(DataError, match="there is no new interaction to learn from"):
        update_split(sequences, leave_last_out(sequences), learnt, _held(), replay=1.0, seed=0)


def test_sft_reads_from_some_titles_before_the_first_mark():
    marks = {"a": [False] * 5 + [True, False], "b": [False] * 3, "c": [True, False]}
    rows = [(user, f"{user}{n}", mark) for user, own in marks.items() for n, mark in enumerate(own)]
    log = pl.DataFrame(rows, ["user_id", "item_id", MARK], orient="row")
    assert read_by_sft(log, 2)["item_id"].to_list() == ["a3", "a4", "a5", "a6", "c0", "c1"]
    assert read_by_sft(log.drop(MARK), 2).equals(log.drop(MARK))


def test_a_repeated_purchase_is_new_to_an_update_that_identifies_interactions_by_time():
    moment = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    log = pl.DataFrame([*(("u", item, n) for n, item in enumerate("aabac")), ("v", "a", 9)], moment, orient="row")
    sequences, held = order(log, 0), pl.DataFrame([("u", "a", 3)], moment, orient="row")
    everything = np.ones(len(log), dtype=bool)
    rows = {part: np.zeros((0, 2), dtype=np.int32) for part in ("train", "validation", "test")}
    split = Split(rows, everything, sequences.frame, {})
    update = update_split(sequences, split, log[:2], held, replay=0.0, seed=0)
    learnt = learnt_of(update)
    assert learnt.filter(MARK).select(*held.columns).rows() == [("u", "b", 2), ("u", "c", 4), ("v", "a", 9)]
    assert learnt.filter(~pl.col(MARK)).select(*held.columns).rows() == [("u", "a", 0), ("u", "a", 1)]
    assert update.facts["tested"] == [("u", "a", 3)]

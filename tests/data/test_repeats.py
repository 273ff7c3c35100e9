"""Data that keep repeats, against loops over the log."""

from collections import Counter, defaultdict
from dataclasses import replace

import polars as pl
import pytest
from pydantic import ValidationError

from habits import write_grocery
from prefrec.data import PreparedData, prepared_digest, read_prepared, seen_items, write_prepared
from prefrec.data.refit import continued, with_validation
from prefrec.data.seen import items_before, user_logs
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare

SPLITS = ("leave-last-out", "time", "user", "time-share")
LENGTH = 12


def _prepared(folder, split="leave-last-out", **settings) -> PreparedData:
    base = {"source": "files", "split": split, "history_length": LENGTH, "min_history": 2, "repeats": "keep"}
    return prepare(PrepareConfig.model_validate(base | write_grocery(folder) | settings))


def _log(folder) -> pl.DataFrame:
    return pl.read_csv(folder / "log.csv")


def _by_user(log: pl.DataFrame) -> dict[str, list[tuple[int, str]]]:
    """Each user's times and items."""
    own = defaultdict(list)
    for user, item, time in log.select("user_id", "item_id", "timestamp").iter_rows():
        own[user].append((time, item))
    return own


@pytest.mark.parametrize("split", SPLITS)
def test_histories_are_what_the_user_bought_at_earlier_times(tmp_path, split):
    data, own = _prepared(tmp_path, split), _by_user(_log(tmp_path))
    again = 0
    for e in (*data.validation, *data.test):
        assert (e.time, e.target) in own[e.user_id]
        before = [(time, item) for time, item in own[e.user_id] if time < e.time]
        assert len(e.history) == min(LENGTH, len(before)) >= 2
        # The order within one time is random: compare the items of each time.
        times = sorted(time for time, _ in before)[-len(e.history) :]
        assert Counter(e.history) - Counter(item for time, item in before if time >= times[0]) == Counter()
        whole = Counter(item for time, item in before if time > times[0])
        assert whole - Counter(e.history) == Counter()
        again += e.target in {item for _, item in before}
    assert again > len(data.test) / 4


@pytest.mark.parametrize("split", SPLITS)
def test_histories_have_the_times_of_their_items(tmp_path, split):
    data, own = _prepared(tmp_path, split), _by_user(_log(tmp_path))
    write_prepared(data, tmp_path / "out")
    read = read_prepared(tmp_path / "out")
    for part in ("validation", "test"):
        for e in data.examples(part, None):
            before = sorted(time for time, _ in own[e.user_id] if time < e.time)
            assert e.history_times == tuple(before[-len(e.history) :])
            assert {*zip(e.history_times, e.history, strict=True)} <= {*own[e.user_id]}
        assert [e.history_times for e in read.examples(part, 20)] == [
            e.history_times for e in data.examples(part, 20)
        ]
    e = data.examples("test", 1)[0]
    none = data.train_interactions.clear()
    without = replace(data, test=[e], held_out_interactions=none, train_interactions=data.train_interactions.head(1))
    assert without.examples("test", 1)[0].history_times == ()  # the log does not have them
    users = user_logs(data)
    for user, items, times in users.select("user_id", "items", "times").iter_rows():
        assert {*zip(times, items, strict=True)} <= {*own[user]}
        assert times == sorted(times)


def test_histories_have_no_times_without_dates_or_repeats(tmp_path):
    dropped = _prepared(tmp_path, repeats="drop")
    log = _log(tmp_path).with_columns(pl.col("timestamp") // 86_400)
    log.write_csv(tmp_path / "counted.csv")
    counted = _prepared(tmp_path, interactions=tmp_path / "counted.csv")
    for data in (dropped, counted):
        assert all(e.history_times == () for e in data.examples("test", None))
        assert not user_logs(data)["times"].list.len().sum()
        assert user_logs(data)["items"].list.len().min() > 0


@pytest.mark.parametrize("split", SPLITS)
def test_negatives_may_be_items_that_the_user_has(tmp_path, split):
    data = _prepared(tmp_path, split)
    for part in ("train", "validation", "test"):
        rows = data.split(part)
        assert all(len({*e.candidates}) == len(e.candidates) == 20 for e in rows)
        assert all(e.candidates.count(e.target) == 1 for e in rows)
        owned = sum(i in e.history for e in rows for i in e.candidates if i != e.target)
        assert owned > len(rows) / 4


@pytest.mark.parametrize("split", SPLITS)
def test_a_folder_gives_the_same_examples_and_times(tmp_path, split):
    data = _prepared(tmp_path, split)
    write_prepared(data, tmp_path / "out")
    read = read_prepared(tmp_path / "out")
    for part in ("train", "validation", "test"):
        assert list(read.split(part)) == list(data.split(part))
        assert [e.time for e in read.examples(part, None)] == [e.time for e in data.examples(part, None)]
    assert read.keeps_repeats
    write_prepared(read, tmp_path / "again")
    assert prepared_digest(tmp_path / "again") == prepared_digest(tmp_path / "out")


def test_dropped_repeats_leave_no_trace_in_the_settings(tmp_path):
    kept, dropped = _prepared(tmp_path), _prepared(tmp_path, repeats="drop")
    assert "repeats" not in dropped.protocol["config"]
    assert not dropped.keeps_repeats
    pairs = dropped.train_interactions.select("user_id", "item_id")
    assert pairs.n_unique() == len(pairs)
    assert "time" not in _written(dropped, tmp_path / "drop").columns
    assert "time" in _written(kept, tmp_path / "keep").columns
    assert "repeated interactions dropped; `repeats: keep` keeps them" in "\n".join(dropped.summary)
    assert "repeated interactions kept (" in "\n".join(kept.summary)
    log = _log(tmp_path)
    repeated = len(log) - log.select("user_id", "item_id").n_unique()
    assert dropped.protocol["counts"]["repeats_dropped"] == kept.protocol["counts"]["repeats_kept"] == repeated


def _written(data: PreparedData, folder) -> pl.DataFrame:
    write_prepared(data, folder)
    return pl.read_parquet(folder / "test.parquet")


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_is_excluded_but_what_was_seen_is_known(tmp_path, split):
    data, own = _prepared(tmp_path, split), _by_user(_log(tmp_path))
    rows = data.examples("test", None)
    assert seen_items(data, rows) == [set()] * len(rows)
    for e, found in zip(rows, items_before(data, rows), strict=True):
        before = {item for time, item in own[e.user_id] if time < e.time}
        same = {item for time, item in own[e.user_id] if time == e.time}
        assert before <= found <= before | same
        assert (e.target in found) == (e.target in before)


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_known_before_test_rows_has_no_test_target(tmp_path, split):
    data = _prepared(tmp_path, split)
    known = data.known_interactions("test").select("user_id", "item_id", "timestamp")
    assert known.n_unique() == len(known)
    held = {(e.user_id, e.target, e.time) for e in data.test}
    assert held.isdisjoint(known.iter_rows())
    assert {(e.user_id, e.target, e.time) for e in data.validation} <= {*known.iter_rows()}


@pytest.mark.parametrize("split", SPLITS)
def test_a_refit_learns_validation_interactions_once(tmp_path, split):
    data = _prepared(tmp_path, split)
    longer, moment = with_validation(data), ["user_id", "item_id", "timestamp"]
    learnt = longer.train_interactions.select(moment)
    assert sorted(learnt.iter_rows()) == sorted(data.known_interactions("test").select(moment).iter_rows())
    assert longer.held_out_interactions is not None
    assert learnt.join(longer.held_out_interactions, on=moment, how="semi").is_empty()
    targets = Counter((e.user_id, e.target) for e in data.train)
    targets += Counter((e.user_id, e.target) for e in data.validation)
    assert Counter((e.user_id, e.target) for e in longer.train) == targets
    owned = sum(i in e.history for e in longer.train for i in e.candidates if i != e.target)
    assert owned > len(longer.train) / 4
    on = continued(data, longer, 0.0, 0)
    assert Counter((e.user_id, e.target) for e in on.train) == Counter(
        (e.user_id, e.target) for e in longer.train
    ) - Counter((e.user_id, e.target) for e in data.train)


def test_the_same_item_at_the_same_time_counts_once(tmp_path):
    files = write_grocery(tmp_path)
    log = _log(tmp_path)
    pl.concat([log, log[:50], log[20:30]]).sample(fraction=1.0, shuffle=True, seed=1).write_csv(files["interactions"])
    base = {"source": "files", "repeats": "keep", "min_history": 2}
    twice = prepare(PrepareConfig.model_validate(base | files))
    log.write_csv(files["interactions"])
    once = prepare(PrepareConfig.model_validate(base | files))
    assert twice.train_interactions.equals(once.train_interactions)
    assert list(twice.test) == list(once.test)
    assert twice.protocol["counts"]["repeats_dropped"] == 60


def test_a_core_counts_users_and_items_not_purchases(tmp_path):
    data = _prepared(tmp_path, user_core=12, item_core=4)
    log = pl.concat(log.select("user_id", "item_id") for log in data.logs).unique()
    whole = _prepared(tmp_path)
    used = log.filter(pl.len().over("user_id") >= 12)
    assert used.group_by("item_id").len()["len"].min() >= 4
    assert {*data.train_interactions["user_id"]} <= {*used["user_id"]}
    assert {*log["user_id"]} - {*used["user_id"]}  # the others are served, and nothing is learnt from them
    assert 0 < data.protocol["counts"]["interactions"] < whole.protocol["counts"]["interactions"]


def test_examples_need_earlier_times_and_not_only_a_fuller_basket(tmp_path):
    files = write_grocery(tmp_path)
    _log(tmp_path).with_columns(timestamp=pl.lit(1_600_000_000)).write_csv(files["interactions"])
    with pytest.raises(DataError, match="no validation example has min_history=2 interactions before the time"):
        prepare(PrepareConfig.model_validate({"source": "files", "repeats": "keep", "min_history": 2} | files))


def test_ready_made_examples_cannot_keep_repeats(tmp_path):
    with pytest.raises(ValidationError, match="repeats: not for windows, which has ready-made examples"):
        PrepareConfig(source="windows", path=tmp_path, repeats="keep")


def test_examples_of_a_refit_data_set_are_written_and_read(tmp_path):
    longer = with_validation(_prepared(tmp_path))
    write_prepared(replace(longer), tmp_path / "out")
    assert list(read_prepared(tmp_path / "out").train) == list(longer.train)


def test_examples_with_too_few_items_before_their_basket_are_dropped_and_counted(tmp_path):
    """The validation targets of three users come after one, two and three items, and `min_history` is 2."""
    baskets = {"one": ["a", "bc", "d"], "two": ["a", "b", "c", "d"], "three": ["abc", "d", "e"]}
    rows = [(u, i, time) for u, own in baskets.items() for time, basket in enumerate(own) for i in basket]
    pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(tmp_path / "log.csv")
    items = [*"abcdefgh"]
    pl.DataFrame({"item_id": items, "title": items}).write_csv(tmp_path / "items.csv")
    files = {"source": "files", "interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    settings = {"repeats": "keep", "min_history": 2, "candidates": {"kind": "uniform", "size": 3}}
    data = prepare(PrepareConfig.model_validate(files | settings))
    assert {e.user_id for e in data.validation} == {"two", "three"}
    assert {e.user_id for e in data.test} == {"one", "two", "three"}
    assert data.protocol["split_facts"]["examples_too_short"] == 1
    assert "1 validation and test examples left out: too few items before their basket" in data.summary

"""What is served equals the log, whatever is measured or filtered, against a walk through the raw log."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fixed_rankers import FixedStage
from prefrec.data import PreparedData, read_prepared, seen_items, write_prepared
from prefrec.data.refit import with_validation
from prefrec.data.update import update_split
from prefrec.errors import DataError
from prefrec.export.parts import without_names
from prefrec.intake import PrepareConfig, prepare
from prefrec.recommend.popular import Popular
from prefrec.recommend.questions import LoggedUsers
from prefrec.recommender import Recommender

ITEMS = [f"i{n:02}" for n in range(16)]
LENGTH = 5
START = 1_600_000_000
"""Seconds, so that times are dates."""
LIMITS = {"max_validation_rows": 2, "max_test_rows": 2}
"""Fewer than there are users."""
FILTERS: dict[str, dict[str, Any]] = {
    "none": {},
    "time": {"split": "time", "windows": "last"},
    "time-share": {"split": "time-share"},
    "min_rating": {"min_rating": 3},
    "latest_per_user": {"latest_per_user": 6},
    "user_core": {"user_core": 7},
    "item_core": {"item_core": 4},
    "all": {"min_rating": 2, "latest_per_user": 7, "user_core": 4, "item_core": 2},
    "fold": {"split": "time", "fold": 1},
    "repeats": {"repeats": "keep", "min_rating": 3},
}


class Probe:
    """Scores items by name, and notes which histories it reads."""

    name = "probe"

    def __init__(self) -> None:
        self.read: list[tuple[str, ...]] = []

    def score(self, examples):
        self.read += [e.history for e in examples]
        return np.array([[-float(i[1:]) for i in e.candidates] for e in examples])


@st.composite
def raw_logs(draw: st.DrawFn) -> pl.DataFrame:
    """Logs of 6 to 10 users with 1 to 15 lines each, some with the same item again, at times of their own."""
    sizes = draw(st.lists(st.integers(1, 15), min_size=6, max_size=10))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    times = iter((START + 3_600 * rng.permutation(sum(sizes))).tolist())
    rows = [
        (f"u{u}", ITEMS[rng.integers(16)], next(times), int(rng.integers(1, 6)))
        for u, n in enumerate(sizes)
        for _ in range(n)
    ]
    return pl.DataFrame(rows, ["user_id", "item_id", "timestamp", "rating"], orient="row")


def prepared(log: pl.DataFrame, change: Any = None, **options: Any) -> PreparedData:
    """The data of a log, as a run reads them."""
    with tempfile.TemporaryDirectory() as name:
        paths = {"interactions": Path(name) / "log.parquet", "items": Path(name) / "items.parquet"}
        log.write_parquet(paths["interactions"])
        pl.DataFrame({"item_id": ITEMS, "title": [f"Title {i}" for i in ITEMS]}).write_parquet(paths["items"])
        more = {"candidates": {"size": 2, "kind": "uniform"}, "history_length": LENGTH, "min_history": 1}
        write_prepared(prepare(PrepareConfig(source="files", **paths, **more | options), change), Path(name) / "data")
        return read_prepared(Path(name) / "data")


def walk(log: pl.DataFrame, data: PreparedData, **options: Any) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    """User → the history, and user → what was touched, by a walk through the raw log."""
    histories: dict[str, list[str]] = {}
    touched: dict[str, set[str]] = {}
    # A fold ends before its test period. What is learnt and held out shows the last time.
    kept = [time for part in data.logs for time in part["timestamp"]]
    end = max(kept if options.get("fold") else log["timestamp"])
    keeps = options.get("repeats") == "keep"
    for user, item, time, rating in log.sort("timestamp").iter_rows():
        own = histories.setdefault(user, [])
        seen = touched.setdefault(user, set())
        if item not in data.catalogue.index:
            continue
        seen.add(item)
        if rating >= options.get("min_rating", 0) and time <= end and (keeps or item not in own):
            own.append(item)
    latest = options.get("latest_per_user", len(log))
    return {user: own[-latest:] for user, own in histories.items()}, touched


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=8)
@given(log=raw_logs())
def test_every_door_answers_from_the_whole_log(name, log):
    options = FILTERS[name]
    try:
        data = prepared(log, **LIMITS, **options)
    except DataError:  # the filters leave too little
        return
    histories, touched = walk(log, data, **options)
    for part in ("validation", "test"):
        assert len(data.split(part)) <= 2
    probe = Probe()
    recommender = Recommender(data, FixedStage(probe, full=probe))
    users = LoggedUsers(data)  # of a server
    assert users.ids == sorted(histories)
    answers = recommender.recommend_all(k=3, exclude_seen=True)
    for user, own in histories.items():
        last, seen, _ = users.past(user)
        assert last == own[-LENGTH:]
        assert {*seen} == touched[user]
        alone = recommender.recommend(user=user, k=3, exclude_seen=True)
        assert [line.item_id for line in alone] == answers.filter(user_id=user)["item_id"].to_list()
        assert not {line.item_id for line in alone} & touched[user]
        assert len(alone) == min(3, len(data.catalogue) - len(touched[user]))
        effects = recommender.explain(user=user, item=recommender.items.item(data.catalogue.ids[0]))
        assert [effect.item_id for effect in effects] == own[-LENGTH:]
    asked = {tuple(own[-LENGTH:]) for user, own in histories.items() if len(touched[user]) < len(data.catalogue)}
    assert asked - {()} <= {*probe.read}


@pytest.mark.parametrize("name", FILTERS)
@settings(max_examples=8)
@given(log=raw_logs())
def test_limits_change_neither_what_is_learnt_nor_what_is_known(name, log):
    options = FILTERS[name]
    try:
        whole, data = prepared(log, **options), prepared(log, **LIMITS, **options)
    except DataError:
        return
    assert data.train_interactions.equals(whole.train_interactions)
    assert data.held_out_interactions.equals(whole.held_out_interactions)
    for split in ("validation", "test"):
        assert data.known_interactions(split).equals(whole.known_interactions(split))
    longer, again = with_validation(data), with_validation(whole)
    assert longer.train_interactions.equals(again.train_interactions)
    assert {(e.user_id, e.target, e.time) for e in longer.train} == {
        (e.user_id, e.target, e.time) for e in again.train
    }
    exported, popular = without_names(data), Popular.of(data)
    assert len(exported.known_interactions("test")) == len(whole.known_interactions("test"))
    assert Popular.of(exported).ids == popular.ids
    rows = [*whole.validation, *whole.test]
    assert seen_items(data, rows) == seen_items(whole, rows)


@pytest.mark.parametrize("name", [name for name in FILTERS if name != "repeats"])
@settings(max_examples=8)
@given(log=raw_logs())
def test_full_ranking_leaves_out_what_was_touched_before_the_target(name, log):
    try:
        data = prepared(log, **FILTERS[name])
    except DataError:
        return
    lines = log.sort("timestamp").rows()
    when = {(user, item): time for part in data.logs for user, item, time in part.select(log.columns[:3]).iter_rows()}
    rows = [*data.validation, *data.test]
    for row, found in zip(rows, seen_items(data, rows), strict=True):
        now = when[row.user_id, row.target]
        before = {item for user, item, time, _ in lines if user == row.user_id and time < now}
        assert {i for i in found if i in data.catalogue.index} == {i for i in before if i in data.catalogue.index}


@settings(max_examples=8)
@given(log=raw_logs())
def test_an_update_serves_the_whole_log(log):
    early = log.filter(pl.col("timestamp") < START + 3600 * 0.7 * len(log))
    options = {"min_rating": 2}
    try:
        before = prepared(early, **LIMITS, **options)
        learnt = pl.concat([before.train_interactions, before.validation_interactions])
        change = partial(update_split, learnt=learnt, held_out=before.targets(before.test[:1]), replay=0.5, seed=0)
        data = prepared(log, change, **LIMITS, **options)
    except DataError:
        return
    histories, touched = walk(log, data, **options)
    users = LoggedUsers(data)
    assert users.ids == sorted(histories)
    for user, own in histories.items():
        last, seen, _ = users.past(user)
        assert last == own[-LENGTH:]
        assert {*seen} == touched[user]

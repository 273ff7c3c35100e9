"""The data after validation, against lists of a user's items."""

from collections import defaultdict
from dataclasses import replace

import polars as pl
import pytest

from prefrec.data import LazyExamples, read_prepared, seen_items, write_prepared
from prefrec.data.refit import continued, with_validation
from prefrec.data.types import COUNTED, TESTED
from prefrec.data.update import MARK
from prefrec.intake import prepare

PAIR = ["user_id", "item_id"]


@pytest.fixture(scope="module", params=["leave-last-out", "time", "time-share"])
def data(request, recipe, tmp_path_factory):
    """Prepared data of each split, as a run reads them."""
    folder = tmp_path_factory.mktemp("data")
    changes = {"split": request.param, "min_history": 2, "max_test_rows": 12}
    if request.param == "time":  # it needs dates, and the times of that log are counters
        dated = pl.col("timestamp") + COUNTED
        pl.read_csv(recipe.data.interactions).with_columns(dated).write_csv(folder / "dated.csv")
        changes["interactions"] = folder / "dated.csv"
    config = recipe.data.model_copy(update=changes)
    write_prepared(prepare(config), folder)
    return read_prepared(folder)


def _sequences(log) -> dict[str, list[str]]:
    items = defaultdict(list)
    for user, item in log.select(PAIR).iter_rows():
        items[user].append(item)
    return dict(items)


def test_validation_interactions_follow_those_of_training(data):
    longer = with_validation(data)
    before, after = (_sequences(d.train_interactions) for d in (data, longer))
    later = _sequences(data.held_out_interactions)
    targets = defaultdict(set)
    for e in data.validation:
        targets[e.user_id].add(e.target)
    for user in {*before, *targets}:
        known = before.get(user, [])
        if user in targets:
            last = max(later[user].index(item) for item in targets[user])
            known = known + later[user][: last + 1]
        assert after[user] == known
    assert longer.train_interactions.columns == data.train_interactions.columns
    assert longer.train_interactions.equals(data.known_interactions("test"))


def test_validation_examples_become_training_examples_and_choose_nothing(data):
    longer = with_validation(data)
    assert longer.validation == []
    assert isinstance(data.train, LazyExamples)
    assert isinstance(longer.train, LazyExamples)
    rows = [(e.user_id, e.target, e.history) for e in longer.train]
    own = {(e.user_id, e.target, e.history) for e in (*data.train, *data.validation)}
    assert set(rows) == own
    assert len(rows) == len(data.train) + len(data.validation)
    known = _sequences(longer.train_interactions)
    for e in longer.train:
        assert e.target in e.candidates
        assert len(set(e.candidates)) == len(data.train[0].candidates)
        assert not {*e.candidates} & ({*known[e.user_id]} - {e.target})


def test_test_examples_and_what_their_users_saw_stay(data):
    longer, rows = with_validation(data), data.examples("test", None)
    assert longer.examples("test", None) == rows
    assert [e.time for e in longer.examples("test", None)] == [e.time for e in rows]
    assert seen_items(longer, rows) == seen_items(data, rows)
    assert longer.known_interactions("test").equals(data.known_interactions("test"))


def test_examples_of_data_with_their_own_are_joined_as_lists(data):
    given = replace(data, train=[*data.train])
    assert with_validation(given).train == [*data.train, *data.validation]


@pytest.mark.parametrize("replay", [0.0, 0.5, 1000.0])
def test_a_model_goes_on_with_new_interactions_and_whole_replayed_users(data, replay):
    longer = with_validation(data)
    goes_on = continued(data, longer, replay, seed=0)
    log = goes_on.train_interactions
    assert log.drop(MARK).equals(longer.train_interactions)
    old = {*data.train_interactions.select(PAIR).iter_rows()}
    marked = {*log.filter(MARK).select(PAIR).iter_rows()}
    new = {*log.select(PAIR).iter_rows()} - old
    assert new <= marked
    assert new
    replayed = {user for user, _ in marked & old}
    assert marked - new == {(user, item) for user, item in old if user in replayed}
    assert len(marked - new) <= replay * len(new)
    assert bool(replayed) == (replay > 0)
    rows = [(e.user_id, e.target) for e in goes_on.train]
    assert sorted(rows) == sorted((e.user_id, e.target) for e in longer.train if (e.user_id, e.target) in marked)
    as_list = continued(data, replace(longer, train=[*longer.train]), replay, seed=0)
    assert [(e.user_id, e.target) for e in as_list.train] == rows


def test_old_test_examples_of_an_update_are_learnt_by_nobody(data):
    held = data.validation_interactions.select(PAIR).rows()[:2]
    facts = data.protocol["split_facts"] | {TESTED: [list(pair) for pair in held]}
    updated = replace(data, protocol=data.protocol | {"split_facts": facts})
    gone = {*data.known_interactions("test").select(PAIR).iter_rows()}
    gone -= {*updated.known_interactions("test").select(PAIR).iter_rows()}
    assert gone == {*held}
    assert not {*held} & {*with_validation(updated).train_interactions.select(PAIR).iter_rows()}

"""Examples built on access equal examples built at once; what a folder needs to sample them again."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import LazyExamples, PreparedData, RankingExample, Window, rows
from prefrec.data.candidates import draw_candidates, popularity_weights
from prefrec.data.rows import stored_rows, take, user_codes
from prefrec.data.store import prepared_digest, read_prepared, write_prepared
from prefrec.data.types import examples_to_frame
from prefrec.errors import DataError
from prefrec.evaluation import audit_prepared
from prefrec.intake import PrepareConfig, prepare
from prefrec.training import trajectories


def shop_data(paths: dict[str, Path], **options: Any) -> PreparedData:
    return prepare(PrepareConfig(source="files", **paths, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["uniform", "popularity"])
@pytest.mark.parametrize("split", ["leave-last-out", "time-share"])
def test_rows_are_those_of_windows_one_by_one(shop, kind, split):
    paths = shop(users=12, length=16, items=60)
    data = shop_data(paths, split=split, candidates={"kind": kind, "size": 5}, history_length=4)
    log = pl.read_csv(paths["interactions"]).sort("user_id", "timestamp")
    own = {user: frame["item_id"].to_list() for (user,), frame in log.group_by("user_id")}
    pool = data.catalogue.ids
    weights = popularity_weights(data.train_interactions, pool) if kind == "popularity" else None
    for part in ("train", "validation", "test"):
        made, windows = data.split(part), []
        for e in made:
            position = own[e.user_id].index(e.target)
            history = tuple(own[e.user_id][max(0, position - 4) : position])
            windows.append(Window(e.user_id, position, history, e.target))
        known = data.train_interactions if part == "train" else log
        assert made == draw_candidates(windows, pool, known, split=part, seed=0, size=5, weights=weights)
        assert len(made)


def test_training_lists_do_not_tell_held_out_items(shop):
    """They are rejected as often as items that the user never takes; lists under test hold no item of the user."""
    data = shop_data(shop(users=40, length=12, items=40), candidates={"size": 8}, history_length=4)
    known = set(data.train_interactions.select("user_id", "item_id").iter_rows())
    held_out = set(data.held_out_interactions.select("user_id", "item_id").iter_rows()) - known
    rejected = [(e.user_id, i) for e in data.train for i in e.candidates if i != e.target]
    assert not known & set(rejected)
    assert sum(pair in held_out for pair in rejected) > 20
    for e in (*data.validation, *data.test):
        assert not {(e.user_id, i) for i in e.candidates if i != e.target} & (known | held_out)


def test_a_folder_holds_places_of_training_rows_and_draws_their_lists_again(shop, tmp_path):
    """Low ratings, short users and other users' held-out interactions must not change a list."""
    paths = shop(users=12, length=16, items=60)
    header, *lines = paths["interactions"].read_text().splitlines()
    rated = [f"{line},{n % 5 + 1}" for n, line in enumerate(lines)] + ["short,i1,5,5", "short,i2,6,5"]
    paths["interactions"].write_text("\n".join([f"{header},rating", *rated]))
    data = shop_data(paths, min_rating=2, candidates={"kind": "popularity", "size": 6}, max_train_rows=20)
    write_prepared(data, tmp_path)
    back = read_prepared(tmp_path)
    assert pl.read_parquet(tmp_path / "train.parquet").columns == ["interaction"]
    assert (back.train, back.validation, back.test) == (data.train, data.validation, data.test)
    assert len(back.train) == 20
    digest, touched = prepared_digest(tmp_path), pl.read_parquet(tmp_path / "touched.parquet")
    assert "short" not in touched["user_id"]
    touched[:-1].write_parquet(tmp_path / "touched.parquet")
    assert prepared_digest(tmp_path) != digest  # lists depend on it
    touched.with_columns(item_id=pl.lit("i999")).write_parquet(tmp_path / "touched.parquet")
    with pytest.raises(DataError, match=r"touched\.parquet, row 0: item_id is in no other table"):
        read_prepared(tmp_path)
    write_prepared(data, tmp_path)
    pl.DataFrame({"interaction": [10_000]}, {"interaction": pl.UInt32}).write_parquet(tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet, row 0: no such interaction"):
        read_prepared(tmp_path)


def test_rows_that_were_changed_are_written_in_full(shop, tmp_path):
    data = shop_data(shop())
    write_prepared(replace(data, train=data.train[::2]), tmp_path)
    assert not (tmp_path / "touched.parquet").exists()
    assert read_prepared(tmp_path).train == data.train[::2]


@given(st.data())
def test_stored_rows_equal_their_examples(data):
    ids = [f"i{n}" for n in range(9)]
    some = st.lists(st.sampled_from(ids), max_size=5).map(tuple)
    drawn = data.draw(st.lists(st.tuples(st.sampled_from("uvw"), some, some, st.sampled_from(ids)), max_size=6))
    examples = [RankingExample(user, history, (target, *more), target) for user, history, more, target in drawn]
    made = stored_rows(examples_to_frame(examples), ids)
    assert made == examples == [made[n] for n in range(len(made))]
    at = np.array(data.draw(st.permutations(range(len(examples)))), dtype=np.int64)
    assert take(made, at) == take(examples, at) == [examples[n] for n in at]
    same = lambda codes: codes[:, None] == codes  # noqa: E731
    assert np.array_equal(same(user_codes(made)), same(user_codes(examples)))
    with pytest.raises(IndexError):
        made[len(examples)]


def test_many_rows_are_read_in_blocks(shop, monkeypatch):
    data = shop_data(shop())
    whole = list(data.train)
    monkeypatch.setattr(rows, "_KEPT", 3)
    monkeypatch.setattr(rows, "_BLOCK", 5)
    assert isinstance(data.train, LazyExamples)
    bare = replace(data.train, _all=[])
    assert list(bare) == whole
    assert not bare._all
    assert (bare[-1], bare[3:17:4]) == (whole[-1], whole[3:17:4])


def test_latest_interactions_of_each_user(shop):
    paths = shop(length=10, items=60)
    log = pl.read_csv(paths["interactions"]).sort("user_id", "timestamp")
    data = shop_data(paths, latest_per_user=6)
    assert data.protocol["counts"]["interactions"] == 8 * 6
    assert [e.target for e in data.test] == log.group_by("user_id", maintain_order=True).last()["item_id"].to_list()
    kept = log.group_by("user_id", maintain_order=True).tail(6)
    assert {i for e in data.test for i in e.history} <= set(kept["item_id"])
    old = {u: set(f["item_id"][:4]) for (u,), f in log.group_by("user_id")}
    assert all(not old[e.user_id] & {*e.candidates} for e in (*data.train, *data.test))  # touched all the same


def test_items_without_interactions_are_kept_where_asked(paths):
    with paths["items"].open("a") as f:
        f.write("brand-new,A new title\n")
    assert "brand-new" not in shop_data(paths).catalogue.ids
    data = shop_data(paths, unseen_items=True)
    assert "brand-new" in data.catalogue.ids
    rare = shop_data(paths, unseen_items=True, item_core=2, candidates={"size": 5})
    taken = pl.read_csv(paths["interactions"])["item_id"].value_counts()
    assert set(rare.catalogue.ids) == {"brand-new", *taken.filter(pl.col("count") >= 2)["item_id"]}
    assert len(rare.catalogue) < len(data.catalogue)  # what a filter takes out stays out


@pytest.mark.parametrize("kind", ["uniform", "popularity", "targets"])
def test_items_without_interactions_are_no_candidates(paths, kind):
    """They cannot be targets, so a ranking rule that puts them last would not need to know the user."""
    with paths["items"].open("a") as f:
        f.write("".join(f"new-{n},A new title {n}\n" for n in range(40)))
    data = shop_data(paths, unseen_items=True, candidates={"kind": kind, "size": 5})
    had = {*pl.read_csv(paths["interactions"])["item_id"].cast(pl.String)}
    assert {i for part in (data.validation, data.test) for e in part for i in e.candidates} <= had
    assert audit_prepared(data).faults == []


def test_histories_of_a_piece_begin_at_one_item(shop):
    made = shop_data(shop(users=6, length=23, items=60), candidates={"size": 5}, history_length=6).train
    assert isinstance(made, LazyExamples)
    whole: dict[str, tuple[str, ...]] = {}
    for e in made:
        whole[e.user_id] = (*whole.get(e.user_id, e.history), e.target)
    pieces = made.pieces().tolist()
    own: dict[int, list[RankingExample]] = {}
    for piece, plain, e in zip(pieces, made, replace(made, by_piece=True, _all=[]), strict=True):
        text = whole[e.user_id]
        place = text.index(e.target)
        assert (plain.target, plain.candidates) == (e.target, e.candidates)
        assert e.history == text[place - len(e.history) : place]
        assert len(e.history) == place or 3 < len(e.history) <= 6
        own.setdefault(piece, []).append(e)
    for members in own.values():
        assert {e.user_id for e in members} == {members[0].user_id}
        assert len(members) <= 3
        assert all(b.history == (*a.history, a.target) for a, b in pairwise(members))
    assert len(set(trajectories(made))) > len(set(trajectories(replace(made, by_piece=True, _all=[]))))

"""Histories as training rows."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefrec.data import Catalogue
from prefrec.errors import DataError, TokenizerError
from prefrec.prompts import PromptEncoder, TrajectoryEncoder, load_template
from prefrec.training import TrajectoryDataset, user_histories
from prefrec.training.defaults import LEAST
from tiny import bpe_tokenizer

ENCODER = PromptEncoder(bpe_tokenizer())
HISTORY = TrajectoryEncoder(load_template("history"), ENCODER)
NAMES = [f"Title {i}" for i in range(200)]


def texts(data: TrajectoryDataset) -> list[list[str]]:
    return [[ENCODER.tokenizer.decode(a[:-1]) for a in data[i]["choices"].answers] for i in range(len(data))]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 60), min_size=1, max_size=4), st.integers(2, 20), st.integers(0, 5))
def test_all_titles_stand_in_the_rows_once_and_in_order(lengths: list[int], titles: int, epoch: int) -> None:
    data = TrajectoryDataset([NAMES[:n] for n in lengths], [HISTORY], titles=titles)
    data.set_epoch(epoch)
    rows = texts(data)
    assert len(rows) == len(data) == sum(min(-(-n // titles), n // LEAST) for n in lengths)
    assert [t for row in rows for t in row] == [t for n in lengths for t in NAMES[:n]]
    assert LEAST <= min(map(len, rows)) <= max(map(len, rows)) <= 1.5 * titles + 1


@pytest.mark.parametrize("titles", range(2, 8))
def test_no_row_has_a_title_alone(titles: int) -> None:
    data = TrajectoryDataset([NAMES[:n] for n in range(2, 30)], [HISTORY], titles=titles, drop=0.5)
    for epoch in range(5):
        data.set_epoch(epoch)
        assert min(map(len, texts(data))) >= LEAST


def test_each_epoch_has_cuts_of_its_own() -> None:
    data = TrajectoryDataset([NAMES], [HISTORY], titles=40)
    first = texts(data)
    data.set_epoch(1)
    assert [len(r) for r in first] != [len(r) for r in texts(data)]
    data.set_epoch(0)
    assert texts(data) == first


def test_a_share_of_the_titles_is_left_out() -> None:
    data = TrajectoryDataset([NAMES], [HISTORY], titles=200, drop=0.25, seed=3)
    kept = []
    for epoch in range(20):
        data.set_epoch(epoch)
        kept.append(len(texts(data)[0]))
    assert 140 < sum(kept) / 20 < 160
    assert len(set(kept)) > 5


def test_a_row_of_which_nothing_would_be_left_is_kept_whole() -> None:
    data = TrajectoryDataset([NAMES[:2]] * 30, [HISTORY], titles=5, drop=0.9)
    assert texts(data) == [NAMES[:2]] * 30


def test_the_oldest_titles_of_a_long_row_are_left_out() -> None:
    longest = HISTORY.encode(NAMES[170:]).length
    data = TrajectoryDataset([NAMES], [HISTORY], titles=300, max_length=longest)
    assert texts(data) == [NAMES[170:]] or len(texts(data)[0]) < 30
    assert data[0]["choices"].length <= longest


def test_what_makes_no_row() -> None:
    with pytest.raises(DataError, match="no user of the training data has 2 interactions"):
        TrajectoryDataset([["Heat"]], [HISTORY], titles=5)
    data = TrajectoryDataset([["word " * 50] * 3], [HISTORY], titles=5, max_length=60)
    with pytest.raises(TokenizerError, match="max_length is 60: raise it"):
        data[0]


def test_histories_are_those_of_the_log() -> None:
    catalogue = Catalogue(pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["Heat", "Emma", "Babe"]}))
    log = pl.DataFrame({"user_id": ["v", "v", "u"], "item_id": ["b", "a", "c"]})
    assert user_histories(log, catalogue) == [["Emma", "Heat"], ["Babe"]]

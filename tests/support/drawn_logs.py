"""Logs that hypothesis draws."""

from dataclasses import replace
from typing import Any

import polars as pl
from hypothesis import strategies as st

from prefrec.data import Window
from prefrec.data.splits import Sequences, Split

SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}


def make_log(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


@st.composite
def logs(draw: st.DrawFn, least: int, most: int) -> pl.DataFrame:
    """Logs of `least` to `most` users with distinct (user, item) pairs and many equal timestamps."""
    rows = []
    for user in range(draw(st.integers(least, most))):
        items = draw(st.lists(st.integers(0, 30), unique=True, min_size=1, max_size=15))
        rows += [(f"u{user}", f"i{i}", draw(st.integers(0, 20))) for i in items]
    return make_log(rows)


def windows_of(sequences: Sequences, rows: Any, history_length: int = 10) -> list[Window]:
    """The windows of rows (user, position), read from the log one by one."""
    windows = []
    for user, position in rows.tolist():
        name = sequences.users[user]
        own = tuple(sequences.frame.filter(pl.col("user_id") == name)["item_id"])
        windows.append(Window(name, position, own[max(0, position - history_length) : position], own[position]))
    return windows


def learnt_of(split: Split) -> pl.DataFrame:
    """Return the interactions that a split learns from, and leave the split as it is."""
    return replace(split, interactions=split.interactions.clone()).take_interactions()

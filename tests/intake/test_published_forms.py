"""Columns of files as MovieLens, Amazon, Steam and LLaRA publish them, under their names."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from prefrec.errors import DataError
from prefrec.intake import ColumnNames, PrepareConfig, prepare
from prefrec.intake.readers import read_table
from prefrec.proposal.guess import guess

TAKEN = [(u, (7 * u + n) % 20 + 1, 1_400_000_000 + 86_400 * n, n) for u in range(1, 21) for n in range(6)]
ITEMS = range(1, 21)


def _amazon(write: Callable[[Any], str]) -> dict[str, list[str]]:
    reviews = [
        {"reviewerID": f"A{u}", "asin": f"B{i:03}", "reviewerName": "Ann", "helpful": [0, 0], "reviewText": "Good"}
        | {"overall": 5.0, "summary": "Fine", "unixReviewTime": t, "reviewTime": f"09 {n + 1}, 2014"}
        for u, i, t, n in TAKEN
    ]
    meta = [{"asin": f"B{i:03}", "title": f"Thing {i}", "price": 1.0, "related": {"x": ["B1"]}} for i in ITEMS]
    return {"reviews.json": [json.dumps(row) for row in reviews], "meta.json": [write(row) for row in meta]}


RATINGS = [f"{u}::{i}::4::{t}" for u, i, t, _ in TAKEN]
FILMS = [f"{i}::Film {i} (1995)::Drama|War" for i in ITEMS]
PLAYED = [
    f"{{u'username': u'Ann {u}', u'hours': 0.1, u'product_id': u'{i}', u'date': u'2017-12-{n + 1:02}'}}"
    for u, i, _, n in TAKEN
]
GAMES = [f"{{u'id': u'{i}', u'app_name': u'Game {i}', u'tags': [u'a']}}" for i in ITEMS]
HEARD = ["session\titem\ttime", *(f"{u}\t{i}\t{t}" for u, i, t, _ in TAKEN)]
SONGS = [f"{i}::Song {i}" for i in ITEMS]
FORMS = {
    "MovieLens-1M": (
        {"ratings.dat": RATINGS, "movies.dat": FILMS},
        ["user_id", "item_id", "timestamp", "rating", "title"],
    ),
    "Amazon": (_amazon(json.dumps), ["reviewerID", "asin", "unixReviewTime", "overall", "title"]),
    "Amazon of 2014": (_amazon(str), ["reviewerID", "asin", "unixReviewTime", "overall", "title"]),
    "Steam": (
        {"steam_reviews.json": PLAYED, "steam_games.json": GAMES},
        ["username", "product_id", "date", None, "app_name"],
    ),
    "LLaRA": ({"log.tsv": HEARD, "id2name.txt": SONGS}, ["session", "item", "time", None, "title"]),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_of_research_data(tmp_path, form):
    lines, named = FORMS[form]
    for name, own in lines.items():
        (tmp_path / name).write_text("\n".join(own) + "\n")
    log, items = (tmp_path / name for name in lines)
    settings = guess(log, items, ColumnNames(), "utf-8", 30).settings
    found = {s.field.removeprefix("columns."): s.value for s in settings}
    assert [found[field] for field in ("user", "item", "timestamp", "rating", "title")] == named
    columns = {f: found.pop(f) for f in ColumnNames.model_fields if f in found}
    data = prepare(PrepareConfig(source="files", interactions=log, items=items, columns=columns, **found))
    assert (len(data.test), len(data.catalogue)) == (20, 20)


def test_pickles_are_not_read(tmp_path):
    (tmp_path / "train_data.df").write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"train_data\.df: pickles are not supported, because they can run any code"):
        read_table(tmp_path / "train_data.df")

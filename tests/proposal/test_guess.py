"""Guessed columns and protocols, on logs with names and contents of many kinds."""

import json
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from habits import write_grocery
from prefrec.data import PreparedData
from prefrec.errors import DataError
from prefrec.intake import ColumnNames, PrepareConfig, prepare
from prefrec.proposal.guess import guess

DAY = 86_400


def _write(folder: Path, log_names: list[str], item_names: list[str], *, start=1_400_000_000) -> tuple[Path, Path]:
    """A log in temporal order of 30 users with 10 of 60 items each, and its catalogue; each with a further column."""
    rng = np.random.default_rng(0)
    rows = [
        (str(u), str(i), start + DAY * n if start else n, int(rng.integers(1, 6)), ("web", "app")[n % 2])
        for n in range(10)
        for u, i in enumerate(rng.permutation(60)[:30].tolist())
    ]
    items = [(str(i), f"Thing {i}", ("red", "blue")[i % 2]) for i in range(60)]
    tables = (pl.DataFrame(rows, log_names, orient="row"), pl.DataFrame(items, item_names, orient="row"))
    return _tables(folder, *tables, ",")


def _guess(log: Path, items: Path, longest: int = 30, **given: Any) -> tuple[dict[str, Any], dict[str, str]]:
    told = guess(log, items, ColumnNames(**given), "utf-8", longest).settings
    names = [s.field.removeprefix("columns.") for s in told]
    return tuple(dict(zip(names, (getattr(s, of) for s in told), strict=True)) for of in ("value", "why"))


def _prepared(log: Path, items: Path, found: dict[str, Any]) -> PreparedData:
    columns = {f: found.pop(f) for f in ColumnNames.model_fields if f in found}
    return prepare(PrepareConfig(source="files", interactions=log, items=items, columns=columns, **found))


@pytest.mark.parametrize(
    ("log_names", "item_names"),
    [
        (["userId", "movieId", "unixReviewTime", "overallScore", "via"], ["movieId", "movieName", "genre"]),
        (["customer", "sku", "ordered_at", "stars", "channel"], ["id", "product_name", "category_name"]),
    ],
)
def test_columns_by_their_names(tmp_path, log_names, item_names):
    found, why = _guess(*_write(tmp_path, log_names, item_names))
    assert [found[f] for f in ("user", "item", "timestamp", "rating")] == log_names[:4]
    assert [found[f] for f in ("catalogue_item", "title")] == item_names[:2]
    assert {why[f][:5] for f in ("user", "item", "timestamp", "rating", "title")} == {"sure:"}


def test_columns_by_their_content(tmp_path):
    """Users are numbers like items, and so are the quantities: items cover more of the catalogue."""
    found, why = _guess(*_write(tmp_path, list("abcde"), list("xyz")))
    fields = ("user", "item", "timestamp", "rating", "catalogue_item", "title")
    assert [found[f] for f in fields] == ["a", "b", "c", None, "x", "y"]
    assert {why[f][:6] for f in ("user", "item", "timestamp", "title")} == {"check:"}


def test_a_column_without_values_is_nothing(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "ordered_at", "score", "via"], ["item", "title", "c"])
    pl.read_csv(log).with_columns(rating=pl.lit(""), time=pl.lit("")).write_csv(log)
    found, why = _guess(log, items)
    assert (found["rating"], found["timestamp"], why["rating"]) == ("score", "ordered_at", "sure: numbers")
    pl.read_csv(log).drop("ordered_at").write_csv(log)
    with pytest.raises(DataError, match=r"none of the other columns .*'time'.* looks like a timestamp"):
        _guess(log, items)


def test_no_times_are_the_order_of_the_lines(tmp_path):
    found, why = _guess(*_write(tmp_path, ["user", "item", "n", "stars", "via"], ["item", "title", "c"], start=0))
    assert (found["timestamp"], found["split"]) == ("file-order", "leave-last-out")
    assert why["timestamp"] == "check: no column has times; are the lines in temporal order?"


def test_named_columns_are_kept(tmp_path):
    files = _write(tmp_path, ["user", "item", "time", "score", "code"], ["item", "title", "name"])
    found, why = _guess(*files, user="code", rating=None, title="name", timestamp="file-order")
    assert [found[f] for f in ("user", "rating", "title", "timestamp")] == ["code", None, "name", "file-order"]
    assert (why["user"], found["item"]) == ("as named", "item")
    with pytest.raises(DataError, match=r"no column 'usr' for user_id; there are 'user', .*Did you mean 'user'"):
        _guess(*files, user="usr")
    found, _ = _guess(*files, item="item", catalogue_item="item")
    assert (found["item"], found["catalogue_item"]) == ("item", "item")


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (
            "who,what,at\nu,9,5\nu,8,6\n",
            r"no column of \['who', 'what', 'at'\] has the same ids as a column of \['id'",
        ),
        (
            "who,what,at\nu,1,5\nv,2,6\n",
            r"log\.csv: none of the other columns \['who'\] looks like a user.*--columns\.user",
        ),
        (
            "user,what,date\nu,1,31 of May\nu,2,1 of June\nv,2,5 of June\n",
            r"log\.csv: none of the other columns \['user', 'date'\] looks like a timestamp.*--columns\.timestamp",
        ),
        (
            "user,what,date\nu,1,2024-05-01\nu,2,2024-05-02\n",
            r"log\.csv: column user has only one user, 'u'; .* Name another column with --columns\.user$",
        ),
        (
            "user,what,date\nu,1,2024-05-01\nv,2,2024-05-02\n",
            r"log\.csv: column user has another user on each line; .*--columns\.user$",
        ),
        ("user,what,date\n", r"log\.csv: the log is empty; expected one line per interaction"),
    ],
    ids=["no shared ids", "no user", "unreadable times", "one user", "one line each", "empty"],
)
def test_what_cannot_be_guessed_is_named(tmp_path, log, message):
    (tmp_path / "log.csv").write_text(log)
    (tmp_path / "items.csv").write_text("id,title\n1,A\n2,B\n")
    with pytest.raises(DataError, match=message):
        _guess(tmp_path / "log.csv", tmp_path / "items.csv")


def test_a_catalogue_without_items_is_called_empty(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    items.write_text("item,title,c\n")
    with pytest.raises(DataError, match=r"items\.csv: the catalogue has no items"):
        _guess(log, items)


def test_parts_may_have_columns_of_different_types(tmp_path):
    """Nobody uses the column of tags, which is a list in one part, a text in the next, and a duration in the last."""
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    want, table, folder = _guess(log, items)[0], pl.read_csv(log), tmp_path / "parts"
    folder.mkdir()
    for n, tags in enumerate((pl.lit(["a"]), pl.lit("a"), pl.duration(days=1))):
        table[100 * n : 100 * (n + 1)].with_columns(tags=tags).write_parquet(folder / f"{n}.parquet")
    assert _guess(folder, items)[0] == want


def test_parquet_of_pandas_json_lines_and_recbole(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    want, _ = _guess(log, items)
    table = pl.read_csv(log)
    typed = table.with_columns(pl.col("item").cast(pl.Float64), pl.from_epoch("time"), tags=pl.lit(["a"]))
    typed.write_parquet(tmp_path / "log.parquet")
    table.write_ndjson(tmp_path / "log.jsonl")
    rows = log.read_text().partition("\n")[2]
    atomic = f"user:token,item:token,time:float,stars:float,via:token\n{rows}"
    (tmp_path / "log.inter").write_text(atomic.replace(",", "\t"))
    for name in ("log.parquet", "log.jsonl", "log.inter"):
        assert _guess(tmp_path / name, items)[0] == want


def _drift(folder: Path, users: int, length: int) -> tuple[Path, Path]:
    """Users who come one after the other, each to items that nobody before saw."""
    taken = [(u, n) for u in range(users) for n in range(length)]
    rows = [(f"u{u}", f"i{u // 10 * length + n}", 1_400_000_000 + DAY * (u + n)) for u, n in taken]
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").write_csv(folder / "log.csv")
    listed = [{"item": f"i{i}", "title": f"Thing {i}"} for i in range(users // 10 * length)]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return folder / "log.csv", folder / "items.jsonl"


def test_split_and_lengths_follow_the_histories(tmp_path):
    found, why = _guess(*_drift(tmp_path, 200, 8))
    assert (found["split"], found["history_length"], found["min_history"]) == ("leave-last-out", 7, 3)
    assert int(why["split"].partition(": ")[2].partition("%")[0]) > 50  # nobody before saw most of the last items
    assert _guess(*_drift(tmp_path, 20, 8), longest=5)[0]["history_length"] == 5
    short, _ = _guess(*_drift(tmp_path, 20, 4))
    assert (short["min_history"], short["history_length"], short["candidates"]["size"]) == (1, 3, 4)
    assert _guess(*_drift(tmp_path, 20, 2))[0]["split"] == "time"  # nobody has three items


def test_settings_that_the_reader_needs(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    items.write_text(items.read_text().replace("Thing 7,", "Thing 8,").replace("Thing 9,", ","))
    found, why = _guess(log, items)
    assert (found["duplicate_titles"], found["missing_titles"]) == ("number", "drop")
    assert "1 items with the title of another" in why["duplicate_titles"]
    assert len(_prepared(log, items, found).test) == 30


@pytest.mark.parametrize(("unsold", "kept"), [(0, None), (26, True), (60, True), (61, False)])
def test_new_items_of_the_catalogue_are_proposed_to_be_kept(tmp_path, unsold, kept):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    items.write_text(items.read_text() + "".join(f"{100 + n},New thing {n},red\n" for n in range(unsold)))
    found, why = _guess(log, items)
    assert found.get("unseen_items") is kept
    if kept is not None:
        assert f"{unsold} of {60 + unsold} items have no interactions yet" in why["unseen_items"]
    assert len(_prepared(log, items, found).catalogue) == 60 + (unsold if kept else 0)


def test_missing_times_are_proposed_to_be_dropped(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    text = log.read_text()
    assert "missing_times" not in _guess(log, items)[0]
    first = text.splitlines()[1]
    user, item, _, *others = first.split(",")
    log.write_text(text.replace(first, ",".join([user, item, "", *others]), 1))
    found, why = _guess(log, items)
    assert found["missing_times"] == "drop"
    assert why["missing_times"].endswith("interactions had no time and were dropped")
    assert why["missing_times"].startswith("1 of ")
    assert len(_prepared(log, items, found).test) == 30


def test_repeated_ids_of_a_catalogue_are_named(tmp_path):
    """The message once said that no column had the ids of the log."""
    log, items = _write(tmp_path, ["user", "item_id", "time", "stars", "via"], ["item_id", "title", "c"])
    twice = pl.read_csv(items)
    pl.concat([twice, twice.with_columns(c=pl.lit("green"))]).write_csv(items)
    with pytest.raises(DataError, match=r"items\.csv: column 'item_id' .* 60 of its 120 lines .*, such as '0'; keep"):
        _guess(log, items)


def test_guests_are_proposed_to_be_dropped(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    assert "missing_users" not in _guess(log, items)[0]
    text = log.read_text()
    first = text.splitlines()[1]
    log.write_text(text.replace(first, "," + first.partition(",")[2], 1))
    found, why = _guess(log, items)
    assert found["missing_users"] == "drop"
    assert why["missing_users"].endswith("interactions had no user and were dropped")
    assert len(_prepared(log, items, found).test) == 30


def test_negative_quantities_are_proposed_as_returns(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    plain = pl.read_csv(log).with_columns(Menge=pl.lit(2))
    plain.write_csv(log)
    assert "quantity" not in _guess(log, items)[0]
    back = plain[:1].with_columns(time=pl.col("time") + 1, Menge=-2)
    pl.concat([plain, back]).write_csv(log)
    found, why = _guess(log, items)
    assert (found["quantity"], why["quantity"]) == ("Menge", "sure: 1 negative ones are returns")
    data = _prepared(log, items, found)
    assert "1 of 301 lines are returns" in "".join(data.summary)


@pytest.mark.parametrize(("follows", "meaning"), [(True, "return"), (False, "drop")])
def test_kinds_of_lines_are_proposed_by_their_names_and_places(tmp_path, follows, meaning):
    """A line that is called a return follows its purchase, or is the purchase itself."""
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    plain = pl.read_csv(log).with_columns(Belegart=pl.lit("Verkauf"))
    plain.write_csv(log)
    assert "kind" not in _guess(log, items)[0]
    last = plain[-1:].with_columns(Belegart=pl.lit("Retoure"), time=pl.col("time") + 1)
    pl.concat([plain if follows else plain[:-1], last]).write_csv(log)
    found, why = _guess(log, items)
    assert found["kind"] == "Belegart"
    assert found["kinds"] == {"Retoure": meaning, "Verkauf": "buy"}
    assert why["kinds"].startswith(f"check: {100 * follows}% of 'Retoure' have a purchase")
    assert _prepared(log, items, found).test


EVENTS = ["view", "addtocart", "purchase"]


def _with_events(log: Path) -> pl.DataFrame:
    """Return the log with all its lines as views, of which every fourth is followed by a purchase."""
    views = pl.read_csv(log).with_columns(event=pl.lit("view"))
    later = pl.col("time") + 1
    bought = views.gather_every(4).with_columns(later, event=pl.lit("purchase"))
    return pl.concat([views, bought, bought[:10].with_columns(event=pl.lit("addtocart"))])


def test_views_and_purchases_are_proposed_with_weights_and_targets(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    events = _with_events(log)
    events.write_csv(log)
    found, why = _guess(log, items)
    pairs = {kind: {*events.filter(event=kind).select("user", "item").iter_rows()} for kind in EVENTS}
    share = len(pairs["view"] & pairs["purchase"]) / len(pairs["view"])
    assert found["kind"] == "event"
    assert found["kinds"] == {"addtocart": 1.0, "purchase": "buy", "view": round(share, 2)}
    assert found["targets"] == ["purchase"]
    assert f"{share:.0%} of the pairs of user and item of 'view' have a purchase, too" in why["kinds"]
    data = _prepared(log, items, found)
    assert {(e.user_id, e.target) for e in data.test} <= {(str(u), str(i)) for u, i in pairs["purchase"]}


def test_a_file_for_each_kind_is_proposed(tmp_path):
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "title", "c"])
    events, folder = _with_events(log), tmp_path / "events"
    folder.mkdir()
    for kind, name in (("view", "views"), ("purchase", "orders")):
        events.filter(event=kind).drop("event").write_csv(folder / f"{name}.csv")
    found, _ = _guess(folder, items)
    assert (found["kind"], found["targets"]) == ("file-name", ["orders"])
    assert found["kinds"].keys() == {"views", "orders"}
    assert _prepared(folder, items, found).test


def _numbered(folder: Path, in_log: Callable[[int], Any], in_catalogue: Callable[[int], Any]) -> tuple[Path, Path]:
    """80 users and 120 items that are numbered from 1, so that numbers of users are also numbers of items."""
    rng = np.random.default_rng(0)
    rows = [
        {"user_id": user + 1, "item_id": in_log(int(item) + 1), "timestamp": 1_400_000_000 + DAY * n}
        for user in range(80)
        for n, item in enumerate(rng.permutation(120)[:10])
    ]
    items = [{"item_id": in_catalogue(i + 1), "title": f"Thing {i}"} for i in range(120)]
    pl.DataFrame(rows).write_parquet(folder / "log.parquet")
    pl.DataFrame(items).write_parquet(folder / "items.parquet")
    return folder / "log.parquet", folder / "items.parquet"


@pytest.mark.parametrize(
    ("in_log", "in_catalogue", "message"),
    [
        (
            lambda i: f"{i:04}",
            str,
            r"'0102' in the log may be '102' in the catalogue; use the same ids in both files",
        ),
        (str, lambda i: f"{i:04}", r"'102' in the log may be '0102' in the catalogue; use the same ids"),
        (lambda i: Decimal(f"{i}.00"), int, r"such as '102\.00'\).*; use the same ids in both files"),
        (lambda i: i + 5000, int, r"none of the log's 120 items.*such as '1'\); use the same ids in both files"),
    ],
    ids=["zeros in the log", "zeros in the catalogue", "decimals", "other items"],
)
def test_users_never_pass_for_items(tmp_path, in_log, in_catalogue, message):
    files = _numbered(tmp_path, in_log, in_catalogue)
    with pytest.raises(DataError, match=message):
        _guess(*files)


def test_ids_with_zeros_are_not_dropped_as_missing_titles(tmp_path):
    """Items from 100 on are the same in both files; the others would be dropped."""
    files = _numbered(tmp_path, str, lambda i: f"{i:03}")
    found, why = _guess(*files)
    assert [found[f] for f in ("user", "item", "missing_titles")] == ["user_id", "item_id", "error"]
    assert why["missing_titles"].startswith("check: 80% of the interactions are with items without a title; '68' in")
    with pytest.raises(DataError, match=r"'68' in the log may be '068' in the catalogue.*--missing-titles drop"):
        _prepared(*files, found)


def test_most_of_a_log_is_not_dropped_for_missing_titles(tmp_path):
    files = _numbered(tmp_path, lambda i: f"sku{i if i > 40 else i + 1000}", lambda i: f"sku{i}")
    assert _guess(*files)[0]["missing_titles"] == "drop"
    files = _numbered(tmp_path, lambda i: f"sku{i if i > 80 else i + 1000}", lambda i: f"sku{i}")
    found, why = _guess(*files)
    assert found["missing_titles"] == "error"
    assert "are ids the same in both files?" in why["missing_titles"]


def test_ratings_and_times_never_pass_for_items(tmp_path):
    """Each rating is also the number of an item, but the ids of `sku` are not in this catalogue."""
    log, items = _write(tmp_path, ["customer", "sku", "time", "stars", "via"], ["id", "title", "c"])
    pl.read_csv(log).with_columns(pl.col("sku") + 1000).write_csv(log)
    with pytest.raises(DataError, match=r"no column of .* has the same ids as a column of \['id', 'title', 'c'\]"):
        _guess(log, items)


def _tables(folder: Path, log: Any, items: Any, separator: str = ";") -> tuple[Path, Path]:
    pl.DataFrame(log).write_csv(folder / "log.csv", separator=separator)
    pl.DataFrame(items).write_csv(folder / "items.csv", separator=separator)
    return folder / "log.csv", folder / "items.csv"


@pytest.mark.parametrize(
    ("log_names", "item_names"),
    [
        (["Kundennummer", "Artikelnummer", "Bestelldatum", "Bewertung"], ["Artikelnummer", "Produktname"]),
        (["id_client", "article", "horodatage", "évaluation"], ["code", "libellé"]),
    ],
)
def test_names_in_other_languages(tmp_path, log_names, item_names):
    """With dates of a day first, ratings with commas, and a second date that no user is."""
    rng = np.random.default_rng(0)
    log = [
        (f"{u}", f"{i}", f"{n + 10}.04.2025 21:1{n}", "4,5", "12.05.25")
        for n in range(10)
        for u, i in enumerate(rng.permutation(60)[:30].tolist())
    ]
    items = pl.DataFrame([(f"{i}", f"Ding {i}") for i in range(60)], item_names, orient="row")
    files = _tables(tmp_path, pl.DataFrame(log, [*log_names, "Lieferung"], orient="row"), items)
    found, why = _guess(*files)
    assert [found[f] for f in ("user", "item", "timestamp", "rating")] == log_names
    assert [found[f] for f in ("catalogue_item", "title")] == item_names
    assert {why[f][:5] for f in ("user", "item", "timestamp", "rating", "title")} == {"sure:"}
    assert found["timestamp_format"] == "%d.%m.%Y %H:%M"
    data = _prepared(*files, found)
    assert data.train_interactions["rating"].unique().to_list() == [4.5]
    assert data.protocol["notes"][0] == "times from 2025-04-10 to 2025-04-19"


def test_days_or_months_first_are_checked(tmp_path):
    log = [{"user": f"u{n % 9}", "item": f"i{n % 7}", "date": f"0{n % 9 + 1}/0{n % 7 + 1}/2025"} for n in range(63)]
    found, why = _guess(*_tables(tmp_path, log, [{"item": f"i{n}", "title": f"Thing {n}"} for n in range(7)], ","))
    assert found["timestamp_format"] == "%d/%m/%Y"
    assert why["timestamp_format"] == "check: %d/%m/%Y and %m/%d/%Y both fit 01/01/2025"


def test_lists_fit_the_items_that_are_kept(tmp_path):
    """Of 60 items 25 are in the log, and users have 10. One user who has nearly all is left out, with a count."""
    taken = [(f"u{u}", (3 * u + n) % 25, n) for u in range(200) for n in range(10)]
    taken += [("all", i, i) for i in range(24)]
    log = [{"user": u, "item": f"i{i}", "date": f"2025-04-{n + 1:02}"} for u, i, n in taken]
    files = _tables(tmp_path, log, [{"item": f"i{n}", "title": f"Thing {n}"} for n in range(60)])
    found, _ = _guess(*files)
    room = guess(*files, ColumnNames(), "utf-8", 30).room
    assert (found["candidates"]["size"], found["history_length"], room) == (15, 23, 1)
    data = _prepared(*files, found)
    assert "1 users without examples: fewer than 14 unseen items (candidates.size); they are answered" in data.summary
    assert len(data.test) == 200
    assert "all" not in {e.user_id for e in (*data.train, *data.validation, *data.test)}


def test_repeats_are_kept_where_users_buy_again(tmp_path):
    files = write_grocery(tmp_path)
    found, why = _guess(*files.values())
    log = pl.read_csv(files["interactions"])
    share = 1 - log.select("user_id", "item_id").n_unique() / len(log)
    assert found["repeats"] == "keep"
    assert (
        why["repeats"] == f"{share:.0%} of the log repeats earlier interactions; drop would recommend only new items"
    )
    assert found["history_length"] == log.group_by("user_id").len()["len"].max() - 1
    assert _prepared(*files.values(), found).keeps_repeats
    log.unique(["user_id", "item_id"]).write_csv(files["interactions"])
    assert "repeats" not in _guess(*files.values())[0]


def test_dates_of_items_are_no_attributes(tmp_path):
    """Whatever their form; a year, a price and a code that could be a day of a spreadsheet are attributes."""
    log, items = _write(tmp_path, ["user", "item", "time", "stars", "via"], ["item", "name", "colour"])
    days = [date(2020, 1, 1) + timedelta(days=7 * (n % 12)) for n in range(60)]
    columns = {
        "launched": days,
        "listed": [f"{day:%d.%m.%Y}" for day in days],
        "changed": [f"{day}T09:15:00" if n % 5 else None for n, day in enumerate(days)],
        "sale date": [int(f"{day:%Y%m%d}") for day in days],
        "year": [f"{1990 + n % 9}" for n in range(60)],
        "price": [n * 1.5 for n in range(60)],
        "category_id": [43_000 + n % 12 for n in range(60)],
    }
    expected = {"colour": "same", "year": "same", "price": "near", "category_id": "same"}
    frame = pl.read_csv(items).with_columns(pl.Series(name, values) for name, values in columns.items())
    frame.write_csv(items)
    assert guess(log, items, ColumnNames(), "utf-8", 30).attributes == expected
    frame.write_parquet(items := tmp_path / "items.parquet")
    assert guess(log, items, ColumnNames(), "utf-8", 30).attributes == expected

"""Anybody's files: every bad input ends in a message that says what to do."""

from pathlib import Path

import polars as pl
import pytest

from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.sources import Source
from read_sources import files


def test_parquet_and_mapped_columns(tmp_path):
    log = pl.DataFrame({"who": [1, 2], "what": [7, 7], "when": [5.0, 6.0], "stars": [3, 4]})
    log.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "items.item").write_text("id:token\tname:token_seq\n7\tHope\n")
    names = {"user": "who", "item": "what", "timestamp": "when", "rating": "stars"}
    source = files(tmp_path / "log.parquet", tmp_path / "items.item", catalogue_item="id", title="name", **names)
    assert source.interactions.rows() == [("1", "7", 5, 3.0), ("2", "7", 6, 4.0)]


def test_a_folder_of_files_is_one_log(shop, tmp_path):
    paths, folder = shop(), tmp_path / "log"
    whole = pl.read_csv(paths["interactions"])
    folder.mkdir()
    with pytest.raises(DataError, match="log: the folder has no files"):
        files(folder, paths["items"])
    (folder / "_SUCCESS").touch()
    for n, at in enumerate(range(0, len(whole), 30)):
        whole[at : at + 30].write_parquet(folder / f"part-{n}.parquet")
    assert files(folder, paths["items"]).interactions.equals(files(**paths).interactions)


def test_a_pattern_names_files(paths, tmp_path):
    whole = pl.read_csv(paths["interactions"])
    for month, rows in (("2024-01", whole[:30]), ("2024-02", whole[30:])):
        (tmp_path / "logs" / month).mkdir(parents=True)
        rows.write_parquet(tmp_path / "logs" / month / "part.parquet")
        rows.write_csv(tmp_path / "logs" / month / "part.csv")
    for pattern in ("2024-*/*.csv", "**/part.parquet"):
        assert files(tmp_path / "logs" / pattern, paths["items"]).interactions.equals(files(**paths).interactions)
    with pytest.raises(DataError, match=r"2023-\*/\*\.csv: no file matches; expected parts of a log"):
        files(tmp_path / "logs" / "2023-*" / "*.csv", paths["items"])


def test_addresses_reach_polars(shop, monkeypatch):
    paths, asked = shop(), []
    log = pl.read_csv(paths["interactions"]).lazy()
    monkeypatch.setattr(pl, "scan_parquet", lambda address: asked.append(address) or log)
    addresses = ["s3://bucket/2024-*/*.parquet", "https://host.org:80/a%20b.parquet"]
    for address in addresses:
        assert files(Path(address), paths["items"]).interactions.equals(files(**paths).interactions)
    files(Path("/home/u/recipes") / addresses[0], paths["items"])  # as a recipe has it
    assert asked == [*addresses, addresses[0]]
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"log\.parquet: not a readable Parquet file \(.*\); check the address"):
        files(Path("nowhere://bucket/log.parquet"), paths["items"])


def test_ids_in_parquet_are_those_of_text(paths, tmp_path):
    """Codes stand for the same ids, with spaces around some, and a bad one is named by its row in the file."""
    log = pl.read_csv(paths["interactions"])
    log = pl.concat([log.with_columns(user_id=pl.col("user_id") + suffix) for suffix in ("", " ", " ")])
    log.write_csv(tmp_path / "spaces.csv")
    log.with_columns(other=pl.lit(1)).write_parquet(tmp_path / "spaces.parquet", row_group_size=10)
    text, coded = (files(tmp_path / f"spaces.{form}", paths["items"]) for form in ("csv", "parquet"))
    assert coded.interactions.rows() == text.interactions.rows()
    assert coded.interactions["user_id"].to_physical().dtype == pl.UInt32
    rows = 140_000  # more than are read at once
    bad = pl.DataFrame({"user_id": ["u"] * (rows - 1) + [" "], "item_id": "i1", "timestamp": 1})
    bad.write_parquet(tmp_path / "bad.parquet")
    with pytest.raises(DataError, match=r"bad\.parquet, row 139999: user_id is empty \(1 rows\)"):
        files(tmp_path / "bad.parquet", paths["items"])


def test_further_columns_of_the_catalogue_are_kept(shop, tmp_path):
    """Columns with nothing but numbers become numbers; a user's id among them need not be one."""
    items = tmp_path / "more.csv"
    rows = "".join(f"i{n},Thing {n},{1990 + n},{'x' if n % 2 else ''},{'n/a' if n == 3 else n},\n" for n in range(99))
    items.write_text("item_id,title,year,brand,size,user_id\n" + rows)
    frame = files(**(shop() | {"items": items})).catalogue.frame
    assert frame.columns == ["item_id", "title", "year", "brand", "size"]
    assert frame.dtypes == [pl.String, pl.String, pl.Float64, pl.String, pl.String]
    assert frame.filter(pl.sql_expr("year > 2000 and brand = 'x'"))["item_id"][0] == "i11"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["0101", "101", "00101", "7"], None),
        (["1E3", "1000", "7", None], None),
        (["-07", "7", "1", "2"], None),
        (["9007199254740993", "9007199254740992", "1", "2"], None),
        (["4006381333931", "0", "-5", None], [4006381333931.0, 0.0, -5.0, None]),
        (["1990.0", "0.5", "+3", ".5"], [1990.0, 0.5, 3.0, 0.5]),
        (["0,5", "1.234,50", "10,25", "7"], [0.5, 1234.5, 10.25, 7.0]),
        (["1.10", "1.1", "2.0", "1.2"], None),
        (["1,10", "1,1", "2,0", "1,2"], None),
        (["1.10", "5", "5.0", "7.25"], [1.1, 5.0, 5.0, 7.25]),
        (["1e-05", "1E+16", "1.5E7", "0.30000000000000004"], [1e-05, 1e16, 1.5e7, 0.30000000000000004]),
    ],
)
def test_only_plain_numbers_of_a_text_file_become_numbers(shop, tmp_path, given, kept):
    """Codes stay texts, because two of them may be one number."""
    paths, items = shop(), tmp_path / "coded.tsv"
    catalogue = pl.read_csv(paths["items"])[:40].with_columns(code=pl.Series(given * 10))
    catalogue.write_csv(items, separator="\t")
    frame = files(**(paths | {"items": items})).catalogue.frame
    assert frame["code"][:4].to_list() == (kept or given)


def test_a_number_in_two_forms_is_named(shop, tmp_path):
    items = tmp_path / "versions.csv"
    items.write_text("item_id,title,version\n" + "".join(f"i{n},Thing {n},1.{n + 1}\n" for n in range(99)))
    assert files(**(shop() | {"items": items})).notes[-1] == (
        "versions.csv, column version: read as texts, because 1.1 and 1.10 are one number; if they are numbers and "
        "not codes, write them in one form"
    )


def test_texts_of_a_parquet_catalogue_stay_texts(shop, tmp_path):
    paths, items = shop(), tmp_path / "typed.parquet"
    pl.read_csv(paths["items"]).with_columns(zip=pl.lit("10115"), year=1990).write_parquet(items)
    schema = files(**(paths | {"items": items})).catalogue.frame.schema
    assert (schema["zip"], schema["year"]) == (pl.String, pl.Int32)


def test_attributes_of_users(shop, tmp_path):
    users = tmp_path / "users.csv"
    users.write_text("user_id,plan,age\nu0, free ,31\nu1,paid,\n")
    assert files(**shop()).users is None
    source = files(**shop(), users=users)
    assert source.users.columns == ["user_id", "plan", "age"]
    assert source.users.rows() == [("u0", "free", "31"), ("u1", "paid", None)]
    for text, message in (
        ("user_id,plan\nu0,free\nu0,paid\n", r"users\.csv: user 'u0' has more than one line"),
        ("user_id\nu0\n", r"users\.csv: the only column is that of the ids"),
        ("customer,plan\nu0,free\n", r"users\.csv: no column 'user_id'.*Did you mean 'customer'\?$"),
    ):
        users.write_text(text)
        with pytest.raises(DataError, match=message):
            files(**shop(), users=users)


def test_the_order_of_the_lines_in_place_of_times(tmp_path):
    log, items = tmp_path / "log.csv", tmp_path / "items.csv"
    log.write_text("user_id,item_id\n" + "".join(f"v,1{i}\nu,{i}\n" for i in (5, 2, 9, 1, 7, 3)))
    items.write_text("item_id,title\n" + "".join(f"{i},Thing {i}\n" for i in range(20)))
    told = r"no column 'timestamp'.*if there are no times .* name the column file-order"
    with pytest.raises(DataError, match=told):
        files(log, items)
    config = {"source": "files", "interactions": log, "items": items, "candidates": {"size": 4}}
    data = prepare(PrepareConfig(**config, columns={"timestamp": "file-order"}))
    rows = {(e.user_id, " ".join(e.history), e.target) for e in data.test}
    assert rows == {("u", "5 2 9 1 7", "3"), ("v", "15 12 19 11 17", "13")}
    assert data.train_interactions.filter(user_id="u")["item_id"].to_list() == list("5291")
    assert "no times: interactions are in the order of the log's lines" in data.protocol["notes"]


def test_a_log_in_parts_is_that_of_one_file(tmp_path):
    """Lines are in order over all parts, ratings may begin later, and one part may have finer times."""
    items, parts = tmp_path / "items.csv", [tmp_path / name for name in ("one.csv", "two.parquet")]
    items.write_text("item_id,title\n" + "".join(f"{i},Thing {i}\n" for i in range(5)))
    parts[0].write_text("user_id,item_id,timestamp\nu,3,10\nu,1,20\n")
    later = pl.DataFrame({"user_id": ["u", "v"], "item_id": [2, 4], "timestamp": [30.25, 40.0], "rating": [5, None]})
    later.write_parquet(parts[1])
    config = {"source": "files", "interactions": parts[0], "more_interactions": parts[1:], "items": items}

    def log(**columns: str) -> pl.DataFrame:
        settings = PrepareConfig.model_validate(config | {"columns": columns})
        return settings.kind.read(settings).interactions

    whole = log().select("user_id", "item_id", "timestamp", "subsecond", "rating").rows()
    assert whole[:2] == [("u", "3", 10, 0, None), ("u", "1", 20, 0, None)]
    assert whole[2:] == [("u", "2", 30, 250_000, 5.0), ("v", "4", 40, 0, None)]
    assert log(timestamp="file-order")["timestamp"].to_list() == [0, 1, 2, 3]
    parts[0].write_text("user_id,item_id,when\nu,3,10\n")
    with pytest.raises(DataError, match=r"two\.parquet: no column 'when'"):
        log(timestamp="when")


def test_empty_and_conflicting_titles(paths):
    text = paths["items"].read_text()
    paths["items"].write_text(text + 'i99," "\ni3,Thing 3\n')
    assert len(files(**paths).catalogue) == 40
    paths["items"].write_text(text.replace("Thing 3\n", "\u200b \n"))
    with pytest.raises(DataError, match=r"1 items of the log have no title .*'i3'; \d inter.*--missing-titles drop"):
        files(**paths)
    dropped = files(**paths, missing_titles="drop")
    assert "i3" not in dropped.interactions["item_id"].to_list()
    assert len(dropped.catalogue) == 39
    for wrong, message in (
        ("item_id,title\ni1,\n", r"items\.csv: no item has a title \(column title\)"),
        (text + "i3,Other\n", r"item 'i3' has 2 titles: 'Thing 3' / 'Other' .1 such items.; keep one line"),
        ("item_id,title\n", "the catalogue has no items; expected one item per line"),
    ):
        paths["items"].write_text(wrong)
        with pytest.raises(DataError, match=message):
            files(**paths)


def test_rows_without_a_time_are_dropped_if_told_and_counted(tmp_path):
    parts, items = [tmp_path / "one.csv", tmp_path / "two.csv"], tmp_path / "items.csv"
    parts[0].write_text("user_id,item_id,when,rating\n1,7,5,\n1,8,,4\n1,9,7.5,3\n")
    parts[1].write_text("user_id,item_id,when,rating\n2,7,NaN,2\n")
    items.write_text("item_id,title\n7,Hope\n8,Air\n9,Heat\n")
    config = {"source": "files", "interactions": parts[0], "more_interactions": parts[1:], "items": items}

    def read_log(**settings: str) -> Source:
        read = PrepareConfig.model_validate(config | {"columns": {"timestamp": "when"}} | settings)
        return read.kind.read(read)

    with pytest.raises(DataError, match=r"one\.csv, line 3, column when: None is not .*--missing-times drop"):
        read_log()
    source = read_log(missing_times="drop")
    assert source.notes == ["2 of 4 interactions had no time and were dropped", "1 of 2 interactions have no rating"]
    assert source.interactions.rows() == [("1", "7", 5, None, 0), ("1", "9", 7, 3.0, 500_000)]
    parts[0].write_text("user_id,item_id,when,rating\n1,7,,\n1,8,,four\n")
    with pytest.raises(DataError, match=r"line 3, column rating: 'four' is not a number"):
        read_log(missing_times="drop")
    parts[0].write_text("user_id,item_id,when,rating\n1,7,,\n")
    told = r"one\.csv, column when: no interaction has a time.*, or file-order if .* with --columns\.timestamp"
    with pytest.raises(DataError, match=told):
        read_log(missing_times="drop")


def test_rows_without_a_user_are_dropped_if_told_and_counted(tmp_path):
    """One purchase of a guest once stopped the night, without a way to go on."""
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n1,7,5\n,8,6\n 2 ,7,7\n")
    (tmp_path / "items.csv").write_text("item_id,title\n7,Hope\n8,Air\n")
    paths = {"interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    way_out = r"fill or drop these rows, with --missing-users drop \(`missing_users: drop` in a recipe\)$"
    with pytest.raises(DataError, match=r"log\.csv, line 3: user_id is empty \(1 rows\); " + way_out):
        files(**paths)
    source = files(**paths, missing_users="drop")
    assert source.interactions.rows() == [("1", "7", 5), ("2", "7", 7)]
    assert source.notes == ["1 of 3 interactions had no user and were dropped"]
    # Messages on other columns name the lines of the file.
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n,7,5\n1,8,six\n")
    with pytest.raises(DataError, match=r"log\.csv, line 3, column timestamp: 'six'"):
        files(**paths, missing_users="drop")
    pl.DataFrame({"user_id": [1.0, None, float("nan")], "item_id": [7, 8, 7], "timestamp": [5, 6, 7]}).write_parquet(
        tmp_path / "log.parquet"
    )
    paths["interactions"] = tmp_path / "log.parquet"
    assert files(**paths, missing_users="drop").interactions["user_id"].to_list() == ["1"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\n,7,5\n")
    paths["interactions"] = tmp_path / "log.csv"
    with pytest.raises(DataError, match=r"column user_id: no interaction has a user\. Name .* with --columns\.user "):
        files(**paths, missing_users="drop")


def test_ratings_may_be_empty_and_left_unread(tmp_path):
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n1,7, 5,\n1,8,6, 4\n1,9,7,NaN\n")
    (tmp_path / "items.csv").write_text("item_id,title\n7,Hope\n8,Air\n9,Heat\n")
    source = files(tmp_path / "log.csv", tmp_path / "items.csv")
    assert source.interactions.rows() == [("1", "7", 5, None), ("1", "8", 6, 4.0), ("1", "9", 7, None)]
    assert source.notes == ["2 of 3 interactions have no rating"]
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp,rating\n1,7,5,\n1,8,6,good\n")
    with pytest.raises(DataError, match=r"line 3, column rating: 'good' is not a number.*--columns.rating none"):
        files(tmp_path / "log.csv", tmp_path / "items.csv")
    bare = files(tmp_path / "log.csv", tmp_path / "items.csv", rating=None)
    assert bare.interactions.columns == ["user_id", "item_id", "timestamp"]


def test_duplicate_titles(paths):
    paths["items"].write_text(paths["items"].read_text().replace("Thing 5\n", "thing 3\n"))
    with pytest.raises(DataError, match=r"'Thing 3' is the title of i3, i5.*merge .* or number"):
        files(**paths)
    merged = files(**paths, duplicate_titles="merge")
    assert len(merged.catalogue) == 39
    assert "i5" not in merged.interactions["item_id"].to_list()
    assert files(**paths, duplicate_titles="number").catalogue.titles["i5"] == "Thing 3 (2)"


def test_wrong_encoding(paths):
    paths["items"].write_bytes(paths["items"].read_text().replace("Thing 3\n", "Café\n").encode("latin-1"))
    with pytest.raises(DataError, match=r"items\.csv, line 5: byte 0xe9 is not utf-8.*--encoding cp1252"):
        files(**paths)
    paths["interactions"].write_text(paths["interactions"].read_text().replace("u0,", "Zoë,"), encoding="utf-8")
    source = files(**paths, encoding="latin-1")  # one of the files is UTF-8
    assert (source.catalogue.titles["i3"], source.interactions["user_id"][0]) == ("Café", "Zoë")


def test_html_entities_are_read_as_characters(paths):
    items = pl.read_csv(paths["items"]).with_columns(brand=pl.lit("H&amp;M"))
    items[0, "title"] = "A &amp; B&#39;s &quot;x&quot; AT&T R&D"
    items.write_csv(paths["items"])
    frame = files(**paths).catalogue.frame
    assert (frame["title"][0], frame["brand"][0]) == ('A & B\'s "x" AT&T R&D', "H&M")
    assert frame["item_id"].to_list() == items["item_id"].to_list()


def test_lines_of_the_catalogue_that_are_lost_are_counted(paths):
    items = pl.read_csv(paths["items"]).with_columns(price=pl.lit(5))
    again = items[:3].with_columns(price=pl.Series([5, 9, 7], dtype=pl.Int32))
    pl.concat([items, again]).write_csv(paths["items"])
    source = files(**paths)
    told = "2 catalogue lines repeat the id and title of an earlier line with other values, and were dropped"
    assert source.notes == [told]
    assert source.catalogue.frame["price"].to_list() == [5] * len(items)

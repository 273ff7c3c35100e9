"""Reading files: formats, and an error with file, line, column and way out for each bad one."""

import base64
import gzip
import os
import zlib
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from prefrec.data.times import time_columns
from prefrec.errors import DataError
from prefrec.intake.readers import check_ids, pick_columns, read_json_rows, read_table
from prefrec.intake.times import parse_timestamps

DAMAGED = (
    "c-oazO-~a+7@plO%eLtO4KvwI_OJ)p6d}-E#kMNQ6qK(jr79pXnuXmh8(K=bTM8bGUO90xo{aGan0SzQHpK7){0$zBCu58RXZE9jLX=H+-mm9<o"
    "_A*27I8^~92DWj0x<x9)cgK@C20V_lAxjas}2D?4=?l*L<i&{FJA#EwxNq`LyJ1%6F~>ZFfkS;r2)WqNMd`#wd#)@6DARdo}xF5T2O^!-KT3iX@"
    "6~LPaV;ANVoGZZO5~!$Fz4@^%;AtpU5guKdRpG9Dp_uJZ%RD2m8dHuzP_IF`^KmPo9Pgr-^$`)p9+fx<=-?hF&q~Bctwd>aW<TbVRln4pCXqk_}"
    "74V(5Ll5y_%=k!)CjKtcdW=UC|w+;YKiSe8)%J|YhFcG;G@$HDc`-QnRjLw(3f568KBt>!@iz+@NOy525OkSV~=g~uM{IFdWuJb(!j^L4{>R?7f"
    "!k}MU}uZ(<#Zw&e#hn?uH09BxViOFZWZ?u(w2z~Z@w|M#F+u{D}cF=1|^;3XDK>gG%!-UiYcq!UiIK(!i?(o-7yEwFyfFk-3Clu%<hd5P0FWNfk"
    "p^HgeDoxK_b(fZ{sv-Vh`{}cR^BCis<i*)_8qeS$_ES?ByLiO6Gq|Tn>dhw2PheaQaTGtYLIaB~qfs8?If~z;o)4ltv@}ZBG4l3Mz2*eYmuWadE"
    "ym-M%jQ_6u|Q-TzrXxve_+UyqxH1!=EM3Vg$5R5!s9K>-$_51)BK?~D1PHFzWWiMUvDl^x;1lb)|=NWD|q?|NoL(}(>NFs=Whj@yi2KwErsWCJ7"
    "5~k(xc7$5T8$5(q}h)K0G)G#5=`W#i+YVYHib7uB~<}>sH-$YO9Lgr}d?k)MCS_m`cXZrS(Pgl5LxM#<sJ%sa@7HStFe@^xS}L>vqPl%$(jW(O*"
    "UD1MbBDD3ZV6--&G%5d"
)
"""A log as Parquet with one changed byte (zlib, base 85), found by the fuzzer: polars alone aborts on it."""


def test_csv_keeps_ids_as_they_are(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('user_id,title\n007,"Good, the Bad"\n1e5,x\n', encoding="utf-8-sig")
    rows = [{"user_id": "007", "title": "Good, the Bad"}, {"user_id": "1e5", "title": "x"}]
    assert read_table(path).rows(named=True) == rows


@pytest.mark.parametrize("name", ["a.inter", "a.tsv.gz"])
def test_tab_separated_and_recbole_headers(tmp_path, name):
    path, data = tmp_path / name, b'user_id:token\ttitle:token_seq\n1\t"Weird Al" Yankovic\n'
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert read_table(path).rows(named=True) == [{"user_id": "1", "title": '"Weird Al" Yankovic'}]


@pytest.mark.parametrize("name", ["LOG.CSV", "LOG.CSV.GZ", "LOG.PARQUET", "LOG.JSONL.GZ"])
def test_suffixes_may_be_in_capitals(tmp_path, name):
    path, frame = tmp_path / name, pl.DataFrame({"user_id": ["u", "v"]})
    frame.write_csv(tmp_path / "csv")
    frame.write_ndjson(tmp_path / "jsonl")
    frame.write_parquet(tmp_path / "parquet")
    content = (tmp_path / name.split(".")[1].lower()).read_bytes()
    path.write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    assert read_table(path).equals(frame)
    if "PARQUET" in name:
        with pytest.raises(DataError, match=r"LOG\.PARQUET, row 1: user_id 1e\+20"):
            check_ids(pl.DataFrame({"user_id": [1.0, 1e20]}), "user_id", path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "user_id,time,time\nu,1,2\n"),
        ("a.csv", '"time", time,user_id\n1,2,u\n'),
        ("a.tsv", "time\tuser_id\ttime\n1\tu\t2\n"),
        ("a.inter", "time:float\tuser_id:token\ttime:token\n1\tu\t2\n"),
    ],
)
def test_two_columns_of_the_same_name_are_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="two columns are called 'time'; rename one in the header"):
        read_table(tmp_path / name)
    (tmp_path / "unnamed.csv").write_text(",,user_id\n0,1,u\n")
    assert read_table(tmp_path / "unnamed.csv")["user_id"].to_list() == ["u"]


def test_a_blank_first_line_is_not_an_empty_file(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n  \nuser_id\n1\n")
    with pytest.raises(DataError, match=r"a\.csv: line 1 is blank; expected a header"):
        read_table(path)
    for name, text in (("a.csv", " \n\n"), ("a.jsonl", ""), ("a.jsonl", "\n"), ("a.jsonl", "\ufeff")):
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match=f"{name}: the file is empty; expected"):
            read_table(tmp_path / name)
    assert read_json_rows(tmp_path / "a.jsonl", {"a": pl.String}).schema == {"a": pl.String}


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.csv", 'title,user_id\n"a\nb\n""c""",u\nd,\n', 5),
        ("a.csv.gz", 'title;user_id\r\n"a, b\r\nc";u\r\nd;\r\n', 4),
        ("a.csv", "title,user_id\n\x93a\x94,u\nd,\n", 3),
        ("a.tsv", 'title\tuser_id\n"a\tu\n"b\t\n', 3),
        ("ratings.dat", "1::2::3::4\n::2::3::4\n", 2),
        ("ratings.dat", "user_id::b\n1::2\n::4\n", 3),
        ("id2name.txt", "1::a\n::b\n", 2),
    ],
)
def test_messages_name_the_line_of_the_file(tmp_path, name, text, line):
    content = text.encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    frame = read_table(tmp_path / name, "cp1252")
    column = "user_id" if "user_id" in frame.columns else "item_id"
    with pytest.raises(DataError, match=rf"{name}, line {line}: {column} is empty"):
        check_ids(frame, column, tmp_path / name)


def test_missing_file_names_a_near_one(tmp_path):
    (tmp_path / "ratings.csv").touch()
    with pytest.raises(DataError, match=r"rating\.csv: no such file\. Did you mean 'ratings\.csv'\?"):
        read_table(tmp_path / "rating.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)
    with pytest.raises(DataError, match=r"no such file\. Check the path"):
        read_table(tmp_path / "no" / "x.parquet")


MARKED = [("utf-8", "cp1252", "Café"), ("utf-8-sig", "utf-8", "Café"), ("utf-16", "latin-1", "Café")]
SAID = [(encoding, encoding, "七人の侍") for encoding in ("utf-16-le", "iso-2022-jp", "shift-jis")]


@pytest.mark.parametrize(("encoding", "given", "title"), MARKED + SAID)
def test_utf8_and_marked_files_are_read_whatever_is_said_and_others_as_it_is_said(tmp_path, encoding, given, title):
    (tmp_path / "a.csv").write_bytes(f"item_id,title\n1,{title}\n".encode(encoding))
    assert read_table(tmp_path / "a.csv", given).rows() == [("1", title)]


def test_json_lines_are_a_table(tmp_path):
    lines = b'{"user_id": 1, "title": "Hope"}\n{"title": null, "user_id": 2}\n'
    for name, data in (("a.jsonl", lines), ("a.jsonl.gz", gzip.compress(lines)), ("a.json", b'[{"user_id": 1}]')):
        (tmp_path / name).write_bytes(data)
    for name, encoding in (("bom.jsonl", "utf-8-sig"), ("bom.json", "utf-8-sig"), ("wide.jsonl", "utf-16")):
        text = '[{"user_id": 1}]' if name == "bom.json" else '{"user_id": 1}\n'
        (tmp_path / name).write_text(text, encoding=encoding)
        assert read_table(tmp_path / name).rows() == [(1,)]
    rows = [{"user_id": 1, "title": "Hope"}, {"user_id": 2, "title": None}]
    for name, want in (("a.jsonl", rows), ("a.jsonl.gz", rows), ("a.json", [{"user_id": 1}])):
        assert read_table(tmp_path / name).rows(named=True) == want
    (tmp_path / "cut.jsonl").write_bytes(lines[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl: truncated, damaged or not valid JSON"):
        read_table(tmp_path / "cut.jsonl")


@pytest.mark.parametrize("name", ["x^2", "x\x01\0\0\0"])
def test_a_header_is_never_taken_for_a_compressed_file(tmp_path, name):
    """Its first bytes may be those of zlib."""
    path = tmp_path / "log.tsv"
    path.write_text(f"{name}\tb\n1\t2\n", encoding="utf-8")
    assert read_table(path).rows(named=True) == [{name: "1", "b": "2"}]
    path.write_text(f"{name}\n", encoding="utf-8")
    assert read_table(path).columns == [name]


@pytest.mark.parametrize("end", ["", "\r\n"])
def test_a_quotation_mark_inside_a_field_is_text(tmp_path, end):
    text = 'item_id,title\n1,7" single\n2,"Good, the ""Bad"""\n3,"a\nb"\n4,12" mix\n5\n6,x"' + end
    (tmp_path / "a.csv").write_text(text, encoding="utf-8", newline="")
    titles = ['7" single', 'Good, the "Bad"', "a\nb", '12" mix', None, 'x"']
    assert read_table(tmp_path / "a.csv").rows() == [(str(n), t) for n, t in enumerate(titles, start=1)]


UNPAIRED = r".* quotation marks are unbalanced\. Quote the whole"


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ('2,"Alien\n3,x" y\n4,z', UNPAIRED),
        ('2,"7" single"\n3,x" y\n4,z', UNPAIRED),
        ('2,7" single, live', "cannot be read as a table: more than the 2 fields"),
    ],
)
def test_unpaired_quotation_marks_and_lines_too_long_behind_quoted_commas_are_named(tmp_path, rows, told):
    (tmp_path / "a.csv").write_text(f'item_id,title\n1,"Good, the Bad"\n{rows}\n')
    with pytest.raises(DataError, match=rf"a\.csv, line 3: {told}"):
        read_table(tmp_path / "a.csv")


@pytest.mark.parametrize("end", ["\r\n\r\n\r\n", "\n  \n"])
def test_blank_lines_at_the_end_are_none(tmp_path, end):
    (tmp_path / "a.csv").write_text("user_id,item_id\n1,2" + end, newline="")
    assert read_table(tmp_path / "a.csv").rows() == [("1", "2")]
    (tmp_path / "a.data").write_text(end, newline="")
    assert read_table(tmp_path / "a.data", header=["user_id", "item_id"]).is_empty()


def test_unknown_column_lists_those_there_and_the_nearest():
    frame = pl.DataFrame({"userId": ["1"], "movieId": ["2"]})
    told = r"log: no column 'user_id' for user_id; there are 'userId', 'movieId'\. Did you mean 'userId'\? Name the "
    with pytest.raises(DataError, match=told + r"right one with --columns\.user \(`columns\.user` in a recipe\)$"):
        pick_columns(frame, {"user_id": "user_id"}, Path("log"), options={"user_id": "user"})
    assert pick_columns(frame, {"user_id": "userId", "rating": "r"}, Path("x"), ["rating"]).columns == ["user_id"]


def test_floating_point_ids_are_those_of_whole_numbers():
    frame = pl.DataFrame({"user_id": [1.0, 2.0]})
    assert check_ids(frame, "user_id", Path("log.parquet"))["user_id"].to_list() == ["1", "2"]
    with pytest.raises(DataError, match=r"log\.parquet, row 1: user_id 1e\+20 is not an id"):
        check_ids(pl.DataFrame({"user_id": [1.0, 1e20]}), "user_id", Path("log.parquet"))


@pytest.mark.parametrize(("kind", "bits"), [(pl.Float32, 24), (pl.Float64, 53)])
def test_floating_point_ids_end_where_they_are_no_longer_exact(kind, bits):
    frame = pl.DataFrame({"user_id": [2**bits - 1, 2**bits + 1]}, {"user_id": pl.Int64}).cast(kind)
    assert check_ids(frame[:1], "user_id", Path("log.parquet"))["user_id"].to_list() == [str(2**bits - 1)]
    reason = rf"floating point of the type {kind.__name__} is not exact from 2\*\*{bits} on"
    told = rf"log\.parquet, row 1: user_id .* is not an id \(1 rows\): {reason}"
    with pytest.raises(DataError, match=told):
        check_ids(frame, "user_id", Path("log.parquet"))


SECONDS = int(datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC).timestamp())


NUMBERS = (SECONDS * 1000, f" {SECONDS * 1_000_000_000}", float(SECONDS), f" {SECONDS} ")
DATES = ("2020-01-02 03:04:05", "2020-01-02T05:04:05+02:00", datetime(2020, 1, 2, 3, 4, 5))


@pytest.mark.parametrize("value", NUMBERS + DATES, ids=repr)
def test_timestamps_become_seconds(value):
    frame, _ = parse_timestamps(pl.DataFrame({"t": [value]}), "t", Path("log.csv"))
    assert (frame["t"].to_list(), frame.schema["t"]) == ([SECONDS], pl.Int64)


@pytest.mark.parametrize(("factor", "unit"), [(1_000, "milli"), (1_000_000, "micro"), (1_000_000_000, "nano")])
def test_times_of_two_units_are_refused(factor, unit):
    """Zero is a time of any unit."""
    frame = pl.DataFrame({"timestamp": [0, SECONDS, SECONDS, SECONDS * factor]})
    told = rf"log\.csv, line 5, column ordered_at: {SECONDS * factor} looks like {unit}seconds since 1970, {SECONDS} "
    with pytest.raises(DataError, match=told + r"\(line 3\) like seconds; write all times in one unit"):
        parse_timestamps(frame, "timestamp", Path("log.csv"), "ordered_at")


@pytest.mark.parametrize(
    ("values", "micros"),
    [
        ([SECONDS * 1000, SECONDS * 1000 + 250], [0, 250_000]),
        ([SECONDS + 0.5, float(SECONDS)], [500_000, 0]),
        ([str(SECONDS * 10**9 + 999_999_999), str(SECONDS * 10**9)], [999_999, 0]),
        (["2020-01-02T03:04:05.000123Z", "2020-01-02T03:04:05Z"], [123, 0]),
        ([datetime(2020, 1, 2, 3, 4, 5, 7), datetime(2020, 1, 2, 3, 4, 5)], [7, 0]),
        ([SECONDS * 1000, SECONDS * 1000], None),
    ],
)
def test_times_finer_than_a_second_keep_what_orders_them(values, micros):
    frame, _ = parse_timestamps(pl.DataFrame({"timestamp": values}), "timestamp", Path("log.csv"))
    assert frame["timestamp"].to_list() == [SECONDS, SECONDS]
    assert time_columns(frame) == ["timestamp", "subsecond"][: 1 if micros is None else 2]
    assert micros is None or frame["subsecond"].to_list() == micros


@pytest.mark.parametrize("text", [b'{"a": 1}\n\n{"a": 2, "b": [3]}\n', b'[{"a": 1}, {"a": 2, "b": [3]}]'])
def test_json_lines_and_arrays(tmp_path, text):
    path = tmp_path / "a[1]*.json.gz"
    path.write_bytes(gzip.compress(text))
    assert read_json_rows(path).rows() == [(1, None), (2, [3])]
    assert read_json_rows(path, {"a": pl.String, "c": pl.String}).rows() == [("1", None), ("2", None)]


def test_a_damaged_parquet_file_does_not_take_the_process_with_it(tmp_path):
    (tmp_path / "log.parquet").write_bytes(zlib.decompress(base64.b85decode(DAMAGED)))
    with pytest.raises(DataError, match=r"log\.parquet: not a readable Parquet file"):
        read_table(tmp_path / "log.parquet")


def test_a_parquet_column_that_says_far_too_many_values_is_not_believed(tmp_path):
    """Arrow would make room for them: gigabytes for a file of a few hundred bytes."""
    path, rows = tmp_path / "log.parquet", 12345
    pl.DataFrame({"user_id": ["u"] * rows}).write_parquet(path, statistics=False)
    whole = path.read_bytes()
    foot = whole.rindex(b"user_id")  # what the column says of itself stands around its name
    said, wrong = b"\xf2\xc0\x01", b"\xfe\xff\x7f"  # varints: 12345, a million
    places = [i for i in range(len(whole)) if whole.startswith(said, i) and abs(i - foot) < 300]
    told = []
    for place in places:
        path.write_bytes(whole[:place] + wrong + whole[place + len(said) :])
        try:
            read_table(path)
        except DataError as e:
            told.append(str(e))
    damaged = "log.parquet: not a readable Parquet file (column user_id claims 1048575 values in 12345 rows"
    assert [one for one in told if damaged in one]
    path.write_bytes(whole)
    assert len(read_table(path)) == rows


def test_a_pipe_or_a_device_is_refused(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    for path in (tmp_path / "log.csv", Path("/dev/zero")):
        with pytest.raises(DataError, match=f"{path} is a pipe or a device"):
            read_table(path)


def test_a_message_does_not_hold_the_whole_header(tmp_path):
    for header in ("x" * 10_000, ",".join(f"column{n}" for n in range(5000))):
        (tmp_path / "log.csv").write_text(f"{header}\n1\n")
        with pytest.raises(DataError) as error:
            pick_columns(read_table(tmp_path / "log.csv"), {"user_id": "user_id"}, tmp_path / "log.csv")
        assert len(str(error.value)) < 1000


def test_a_compressed_file_may_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("prefrec.data.parquet.UNPACKED", 1 << 20)
    rows = b"user_id,item_id\n" + b"1,2\n" * (1 << 18)
    told = "unpacked it has more than 1 MiB; if you trust it, unpack it yourself"
    for name, content in (("a.csv.gz", rows), ("a.jsonl.gz", b'{"user_id": "' + b"x" * (1 << 20) + b'"}')):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match=f"{name}: {told}"):
            read_table(path)
    (tmp_path / "fits.csv.gz").write_bytes(gzip.compress(rows[: 1 << 20]))
    assert len(read_table(tmp_path / "fits.csv.gz")) == (1 << 18) - 4
    monkeypatch.setattr("prefrec.data.parquet.RATIO", 1 << 20)  # a large file may have more
    assert len(read_table(tmp_path / "a.csv.gz")) == 1 << 18


def test_a_parquet_file_may_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("prefrec.data.parquet.UNPACKED", 1 << 20)
    wide = pl.DataFrame({"user_id": ["x" * 4096] * 2000, "n": [1] * 2000})
    long = pl.DataFrame({"user_id": ["x"] * (1 << 18), "n": [1] * (1 << 18)})
    for frame in (wide, long):
        frame.write_parquet(tmp_path / "a.parquet", statistics=False)  # they hold the long text again
        assert (tmp_path / "a.parquet").stat().st_size < 9000
        told = r"unpacked it has more than 1 MiB; if you trust it, divide it into several files"
        with pytest.raises(DataError, match=told):
            read_table(tmp_path / "a.parquet")
    frame = wide[:200]
    frame.write_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet").equals(frame)


def test_texts_of_small_parquet_files_are_read_as_those_of_large_ones(tmp_path, monkeypatch):
    texts = ["a", "", None, "ä", "a"]
    frame = pl.DataFrame({"s": texts, "l": [["a"], [], None, ["b", None], ["a"]], "n": [1, 2, None, 4, 5]})
    frame = frame.with_columns(c=pl.col("s").cast(pl.Categorical), r=pl.struct("s", "n"), e=pl.lit(None, pl.String))
    for name, some in (("a", frame), ("b", frame[:0]), ("c", frame.with_columns(pl.col("s").cast(pl.Binary)))):
        path = tmp_path / f"{name}.parquet"
        some.write_parquet(path, row_group_size=2)
        small = read_table(path)
        with monkeypatch.context() as patch:
            patch.setattr("prefrec.data.parquet._SMALL", 0)
            large = read_table(path)
        assert small.schema == large.schema
        assert small.equals(large)
        assert small.select("s", "l", "n", "r").equals(some.select("s", "l", "n", "r"))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_what_polars_would_unpack_in_silence_is_refused(tmp_path, name):
    path, content = tmp_path / name, gzip.compress(b'{"user_id": 1}\n')
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(DataError, match=r"the content is compressed(, but its name| twice)"):
        read_table(path)


def test_bytes_behind_the_end_of_gzip_are_named(tmp_path):
    path, content = tmp_path / "a.csv.gz", gzip.compress(b"user_id\n1\n")
    path.write_bytes(content + b"trailing")
    with pytest.raises(DataError, match="there are other bytes behind the end of the gzip data; download it again"):
        read_table(path)
    path.write_bytes(content + gzip.compress(b"2\n") + bytes(512))  # parts one after the other, and padding
    assert read_table(path)["user_id"].to_list() == ["1", "2"]


def test_lines_that_end_in_carriage_returns_only_are_lines(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"user_id,item_id\r1,2\r3,4\r")
    assert read_table(path).rows() == [("1", "2"), ("3", "4")]
    path.write_bytes(b'user_id,item_id\r\n1,"2\r3"\r\n')
    assert read_table(path).rows() == [("1", "2\r3")]

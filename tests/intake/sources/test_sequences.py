"""User sequences as published benchmarks have them: lines and JSON, with titles as a table or as JSON."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefrec.data import has_dates
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.config import CandidateConfig, ColumnNames
from prefrec.intake.sources.sequences import read_sequences
from prefrec.intake.sources.windows import read_rows

LINES = "1 10 11 12 13 14\n2 11 10 14 12\n\n3 14 13 10 12\n4 15 16 17 18 19\n"


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def titles(folder: Path) -> Path:
    return write(
        folder, "items.csv", "item_id,title,brand\n" + "".join(f"{i},Film {i},B{i % 2}\n" for i in range(10, 24))
    )


def prepared(log: Path, items: Path):
    return prepare(
        PrepareConfig(
            source="sequences", interactions=log, items=items, min_history=1, candidates=CandidateConfig(size=3)
        )
    )


def test_lines_become_a_log_with_positions_as_times(tmp_path: Path) -> None:
    log = read_sequences(write(tmp_path, "Beauty.txt", LINES))
    assert log.filter(pl.col("user_id") == "2").rows() == [
        ("2", "11", 0),
        ("2", "10", 1),
        ("2", "14", 2),
        ("2", "12", 3),
    ]
    assert not has_dates(log)


def test_the_last_item_is_the_test_target_and_the_one_before_it_validation(tmp_path: Path) -> None:
    data = prepared(write(tmp_path, "sequential_data.txt", LINES), titles(tmp_path))
    assert {(e.user_id, e.history, e.target) for e in data.test} == {
        ("1", ("10", "11", "12", "13"), "14"),
        ("2", ("11", "10", "14"), "12"),
        ("3", ("14", "13", "10"), "12"),
        ("4", ("15", "16", "17", "18"), "19"),
    }
    assert {(e.user_id, e.target) for e in data.validation} == {
        ("1", "13"),
        ("2", "14"),
        ("3", "10"),
        ("4", "18"),
    }


def test_json_of_users_and_of_items_with_fields_is_the_same_data(tmp_path: Path) -> None:
    lines = prepared(write(tmp_path, "Beauty.txt", LINES), titles(tmp_path))
    sequences = {line.split()[0]: [int(i) for i in line.split()[1:]] for line in LINES.splitlines() if line}
    log = write(tmp_path, "Beauty.inter.json", json.dumps(sequences))
    items = {i: {"title": f"Film {i}", "brand": f"B{i % 2}", "categories": ["a", "b"]} for i in range(10, 24)}
    items_path = write(tmp_path, "Beauty.item.json", json.dumps(items))
    data = prepared(log, items_path)
    assert data.test == lines.test
    assert data.catalogue.titles == lines.catalogue.titles
    assert data.catalogue.frame["categories"].to_list() == ["a, b"] * 10


def test_titles_may_be_one_json_object(tmp_path: Path) -> None:
    items = write(tmp_path, "id2name.json", json.dumps({str(i): f"Film {i}" for i in range(10, 24)}))
    assert prepared(write(tmp_path, "a.txt", LINES), items).catalogue.titles["12"] == "Film 12"


@given(st.dictionaries(st.integers(0, 99), st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1))
def test_both_forms_hold_the_same_log(
    tmp_path_factory: pytest.TempPathFactory, sequences: dict[int, list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("forms")
    lines = "".join(f"{user} {' '.join(map(str, items))}\n" for user, items in sequences.items())
    zipped = folder / "lines.txt.gz"
    zipped.write_bytes(gzip.compress(lines.encode()))
    object_ = write(folder, "a.inter.json", json.dumps({str(user): items for user, items in sequences.items()}))
    assert read_sequences(zipped).equals(read_sequences(object_))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.txt", "1 10 11\n2\n", "line 2: user '2' has no items"),
        ("a.txt", "1 10\n1 11\n", "line 2: user '1' has a sequence in line 1 already"),
        ("a.txt", "\n", "no sequences"),
        ("a.json", "[1, 2]", "expected one JSON object of user → item ids"),
        ("a.json", '{"1": [[2]]}', "1.0"),
    ],
)
def test_bad_files_are_refused_with_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match="(?s)" + name.replace(".", r"\.")) as caught:
        read_sequences(write(tmp_path, name, text))
    assert message in str(caught.value)


def test_items_of_json_without_a_title_name_the_field(tmp_path: Path) -> None:
    items = write(tmp_path, "a.item.json", json.dumps({"10": {"name": "x"}}))
    with pytest.raises(DataError, match=r"item '10' has no field 'title' \(it has name\)"):
        prepared(write(tmp_path, "a.txt", LINES), items)


def test_rows_of_minionerec_have_their_target_and_their_ids(tmp_path: Path) -> None:
    text = (
        "user_id,history_item_title,item_title,history_item_id,item_id,history_item_sid,item_sid\n"
        "A1,\"['Film 10', 'Film 11']\",Film 12,\"[10, 11]\",12,\"['<a_1>', '<a_2>']\",<a_3>\n"
    )
    rows = read_rows(write(tmp_path, "Industrial.csv", text), ColumnNames()).rows
    assert [(row.user, row.history, row.target) for row in rows] == [("A1", ("10", "11"), "12")]

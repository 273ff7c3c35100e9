"""Goodreads: the UCSD files, and windows split by group."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from read_sources import goodreads, goodreads_windows, read

DATE = "Wed Jan 10 10:24:35 -0800 2018"


def shelf(user: str, book: str, read: bool = True, rating: int = 4, date: str = DATE) -> dict[str, Any]:
    return {"user_id": user, "book_id": book, "is_read": read, "rating": rating, "date_added": date, "review_id": "x"}


def write(folder: Path, rows: list[dict[str, Any]], books: list[dict[str, Any]]) -> tuple[Path, Path]:
    paths = folder / "goodreads_interactions_poetry.json.gz", folder / "goodreads_books_poetry.json.gz"
    for path, content in zip(paths, (rows, books), strict=True):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, content)).encode()))
    return paths


TITLES = {"1": "Poems", "2": "Odes", "3": "odes ", "9": ""}
BOOKS = [{"book_id": book, "title": title} for book, title in TITLES.items()]


def test_ucsd_files(tmp_path):
    source = goodreads(*write(tmp_path, [shelf("u", "1"), shelf("u", "3", rating=0), shelf("v", "2", False)], BOOKS))
    assert source.interactions.rows() == [("u", "1", 1_515_608_675, 4.0), ("u", "2", 1_515_608_675, None)]
    assert source.catalogue.titles == {"1": "Poems", "2": "Odes"}
    assert ("v", "2") in source.touched.rows()
    assert source.notes[-1] == "1 of 3 shelved books were not read and are left out"
    assert read("goodreads", path=tmp_path).interactions.equals(source.interactions)


def test_unread_books_can_stay(tmp_path):
    paths = write(tmp_path, [shelf("u", "1", False)], BOOKS)
    assert len(goodreads(*paths, read_only=False).interactions) == 1
    with pytest.raises(DataError, match=r"no book is marked as read.*--no-read-only"):
        goodreads(*paths)


def test_a_title_that_nobody_sees_is_none(tmp_path):
    paths = write(tmp_path, [shelf("u", "1"), shelf("u", "2")], [BOOKS[0], {"book_id": "2", "title": "\u200b"}])
    with pytest.raises(DataError, match="1 items of the log have no title"):
        goodreads(*paths)
    row = '{"history": ["a", "\\u200b"], "target": "b", "group": 1}'
    (window_folder(tmp_path) / "windows_train.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"windows_train\.jsonl, line 1: expected history"):
        goodreads_windows(tmp_path)


def window_folder(tmp_path: Path, groups: int = 20) -> Path:
    rows = [{"history": [f"A{g}", f"B{g}"], "target": f"C{n}", "group": g} for g in range(groups) for n in range(2)]
    rows.append({"history": ["c0", "A0"], "target": "C0", "group": 0})
    text = [json.dumps(r) for r in rows]
    (tmp_path / "windows_train.jsonl").write_text("\n".join(text[::2]))
    (tmp_path / "windows_valid_recovered.jsonl").write_text("\n".join(text[1::2]))
    return tmp_path


def test_windows_keep_groups_together(tmp_path):
    source = goodreads_windows(window_folder(tmp_path), history_length=1)
    users = {part: {w.user_id for w in ws} for part, ws in source.given.windows.items()}
    assert [len(u) for u in users.values()] == [16, 2, 2]
    assert len(set().union(*users.values())) == 20
    assert users["train"] == set(source.given.learn["user_id"])
    assert all(len(w.history) == 1 for w in source.given.windows["train"])
    assert source.notes[0] == "1 windows whose target is in the history are left out"
    assert source.notes[1] == "1 spellings differ in case or spacing only and count as one book"
    assert len({(u, i) for u, i, _ in source.interactions.iter_rows()}) == len(source.interactions)


def test_windows_of_the_length_asked_for(tmp_path):
    folder = window_folder(tmp_path)
    (folder / "windows_valid_recovered.jsonl").write_text('{"history": ["X"], "target": "Y", "group": "short"}')

    def lengths(**options: Any) -> set[int]:
        data = prepare(PrepareConfig(source="goodreads-windows", path=folder, candidates={"size": 5}, **options))
        return {len(e.history) for part in (data.train, data.validation, data.test) for e in part}

    assert (min(lengths(min_history=1)), lengths(min_history=2)) == (1, {2})
    assert "1 windows of fewer than 2 titles are left out" in goodreads_windows(folder, min_history=2).notes
    assert lengths(min_history=1, history_length=1) == {1}
    with pytest.raises(DataError, match=r"no example has min_history=3 items \(longest: 2\); lower --min-history"):
        lengths()
    assert lengths(min_history=2, history_length=20) == {2}


@pytest.mark.shared_data
def test_real_windows(shared_data):
    data = prepare(PrepareConfig(source="goodreads-windows", path=shared_data / "goodreads-windows"))
    rows = data.protocol["counts"]["rows"]
    assert len(data.catalogue) == 4_046
    rising = sum(int(e.history[-1]) < int(e.target) for e in data.train)
    assert 0.45 < rising / len(data.train) < 0.55  # ids tell nothing about what comes next
    assert sum(rows.values()) == 4_999 + 2_474 - 7
    assert min(rows.values()) > 500
    users = [{e.user_id for e in part} for part in (data.train, data.validation, data.test)]
    assert len(set.union(*users)) == sum(map(len, users))  # no user is in two parts
    assert not users[2] & set(data.train_interactions["user_id"].to_list())


def test_spellings_with_html_entities_are_one_book(tmp_path):
    rows = [
        {"history": [f"A{g}", "Salt &amp; Sea" if g % 2 else "Salt & Sea"], "target": f"C{g}", "group": g}
        for g in range(20)
    ]
    text = "\n".join(map(json.dumps, rows))
    (tmp_path / "windows_train.jsonl").write_text(text)
    (tmp_path / "windows_valid_recovered.jsonl").write_text(text)
    titles = [*goodreads_windows(tmp_path).catalogue.titles.values()]
    assert (titles.count("Salt & Sea"), len(titles)) == (1, 41)

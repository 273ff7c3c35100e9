"""The published JSON: there and back, and refusals."""

import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec_lab.datasets.published import read_published, to_published, write_published, write_sequences

SHARED = Path(os.environ.get("PREFREC_SHARED_DATA", Path(__file__).parents[3] / ".." / "shared" / "data"))


def catalogue(*titles: str) -> Catalogue:
    return Catalogue(pl.DataFrame({"item_id": [f"i{n}" for n in range(len(titles))], "title": list(titles)}))


AIR = catalogue("Air", "Moby", "Björk: Live", "Hope")
EXAMPLES = [RankingExample("u", ("i0", "i1"), ("i2", "i3"), "i3"), RankingExample("v", (), ("i2", "i0"), "i2")]
PARTS = ("train", "validation", "test")


def lists(rows: list[RankingExample]) -> list[tuple]:
    return [(e.history, e.candidates, e.target) for e in rows]


def test_round_trip(tmp_path):
    path = tmp_path / "test.json"
    write_published(EXAMPLES, AIR, path)
    first = {"historyList": "Air::Moby", "itemList": ["Björk: Live", "Hope"], "trueSelection": "Hope"}
    assert json.loads(path.read_text())[0] == first
    _, back = read_published(path, AIR)
    assert (lists(back), [e.user_id for e in back]) == (lists(EXAMPLES), ["session-0", "session-1"])


def test_a_folder_of_published_files_is_a_source(tmp_path):
    write_published(EXAMPLES, AIR, tmp_path / "air-train.json")
    write_published(EXAMPLES[:1], AIR, tmp_path / "air-test.json")
    data = prepare(PrepareConfig(source="published-json", path=tmp_path, domain="music"))
    assert [len(data.split(s)) for s in PARTS] == [2, 0, 1]
    assert data.test[0].user_id == "test-session-0"
    assert to_published(data.train, data.catalogue) == to_published(EXAMPLES, AIR)
    taken = [("train-session-0", item, n) for n, item in enumerate("013")]
    assert data.train_interactions.rows() == [*taken, ("train-session-1", "2", 0)]


@pytest.mark.parametrize("shuffled", [False, True])
def test_rows_that_continue_each_other_are_one_session(tmp_path, shuffled):
    """Windows of up to five titles of three sequences, two of which begin with the same three titles."""
    titles = catalogue(*(f"Title {i}" for i in range(30)))
    sequences = [[*range(12)], [0, 1, 2, *range(12, 20)], [*range(20, 26)]]
    rows, owner = [], []
    for number, sequence in enumerate(sequences):
        for k in range(3, len(sequence)):
            history = tuple(f"i{i}" for i in sequence[max(0, k - 5) : k])
            rows.append(RankingExample("", history, (f"i{sequence[k]}", "i29"), f"i{sequence[k]}"))
            owner.append(number)
    order = np.random.default_rng(0).permutation(len(rows)) if shuffled else range(len(rows))
    write_published([rows[i] for i in order], titles, tmp_path / "train.json")
    data = prepare(PrepareConfig(source="published-json", path=tmp_path))
    users = [e.user_id for e in data.train]
    assert len(set(users)) == len(set(zip(users, (owner[i] for i in order), strict=True))) == 3
    log = data.train_interactions.group_by("user_id", maintain_order=True).agg("item_id")
    found = {tuple(data.catalogue.titles_of(items)) for items in log["item_id"].to_list()}
    assert found == {tuple(f"Title {i}" for i in sequence) for sequence in sequences}


def test_published_files_become_the_sequences_that_they_were_made_of(tmp_path):
    """There and back: rows with the authors' lists, whose draws depend on the ids in id2name.txt."""
    sequences = [("train", range(12)), ("train", range(30, 45)), ("val", range(14, 20)), ("val", range(13, 20))]
    sequences += [("test", range(5, 12)), ("test", (3, 9, 1, 20))]
    lines = [f"{n}\t{part}\t{' '.join(map(str, items))}\n" for n, (part, items) in enumerate(sequences)]
    (tmp_path / "first").mkdir()
    (tmp_path / "first/sequences.tsv").write_text("session\tsplit\titems\n" + "".join(lines))
    names = tmp_path / "first/id2name.txt"
    names.write_text("".join(f"{i}::Band {i}\n" for i in range(60)))
    how = {"source": "lastfm-published", "candidates": {"kind": "published"}}
    data = prepare(PrepareConfig(path=tmp_path / "first", **how))
    for part in PARTS:
        write_published(data.split(part), data.catalogue, tmp_path / f"json/{part}.json")
    write_sequences(tmp_path / "json", tmp_path / "again", names)
    for name in ("sequences.tsv", "id2name.txt"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / "first" / name).read_text()
    again = prepare(PrepareConfig(path=tmp_path / "again", **how))
    assert [again.split(p) for p in PARTS] == [data.train, data.validation, data.test]
    write_sequences(tmp_path / "json", tmp_path / "numbered")
    numbered = prepare(PrepareConfig(path=tmp_path / "numbered", source="lastfm-published"))
    shown = [(numbered.catalogue.titles_of((*e.history, e.target))) for e in numbered.test]
    assert shown == [data.catalogue.titles_of((*e.history, e.target)) for e in data.test]
    names.write_text("0::Band 0\n")
    with pytest.raises(DataError, match=r"title 'Band 1' is not in the catalogue of 1 items"):
        write_sequences(tmp_path / "json", tmp_path / "again", names)


@pytest.mark.shared_data
def test_the_sessions_of_lastfm_are_recovered(tmp_path):
    folder = SHARED / "lastfm-sdpo"
    if not (folder / "lastfm-val.json").is_file():
        pytest.skip("needs lastfm-sdpo in the folder that PREFREC_SHARED_DATA names (default: ../shared/data)")
    _, rows = read_published(folder / "lastfm-val.json")
    assert (len(rows), len({e.user_id for e in rows})) == (2767, 122)
    write_sequences(folder, tmp_path, folder / "id2name.txt")
    given, found = (
        {line.split("\t")[2] for line in (f / "sequences.tsv").read_text().splitlines() if "\tval\t" in line}
        for f in (folder, tmp_path)
    )
    assert (len(found), found) == (122, given)

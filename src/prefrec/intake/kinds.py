"""Kinds of lines of a log, such as views and purchases: what each is, its weight, and whether it may be a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from prefrec.data.types import IS_TARGET, WEIGHT
from prefrec.errors import DataError
from prefrec.intake import readers


def parse_kinds(
    log: pl.DataFrame,
    path: Path,
    called: str,
    kinds: Mapping[str, str | float],
    targets: Sequence[str] = (),
) -> pl.DataFrame:
    """Replace the column `kind` (`called` in the file) by what the lines are.

    Args:
        log: a part of the log, with the column `kind`.
        path: its file, for messages.
        called: name of the column in the file, for messages.
        kinds: value of the column → what its lines are, or their weight, as in `PrepareConfig`.
        targets: values of the column whose lines may be targets. Default: all.

    Returns:
        The log with `kind`, which is buy, return, drop or other; with `WEIGHT` if a kind has a weight other than 1;
        with `IS_TARGET` if there are `targets`.

    Raises:
        DataError: `kinds` does not name a value of the column.
    """
    texts = readers.as_text(log, "kind", path, called).fill_null("").str.strip_chars()
    unknown = ~texts.is_in([*kinds])
    if unknown.any():
        shown = ", ".join(map(repr, texts.filter(unknown).unique(maintain_order=True)[:5]))
        raise DataError(
            f"{path}, {readers.first_line(unknown, path)}, column {called}: {shown} ({unknown.sum()} rows) is not in "
            "`kinds` of the recipe; name it there as buy, return, drop or a weight from 0 to 1"
        )
    words = {value: _word(kind) for value, kind in kinds.items()}
    weights = {value: float(kind) for value, kind in kinds.items() if _word(kind) == "other"}
    columns = [texts.replace_strict(words, return_dtype=pl.String).alias("kind")]
    if any(weight != 1 for weight in weights.values()):
        columns.append(texts.replace_strict(weights, default=1.0, return_dtype=pl.Float64).alias(WEIGHT))
    if targets:
        columns.append(texts.is_in([*targets]).alias(IS_TARGET))
    return log.with_columns(columns)


def _word(kind: str | float) -> str:
    if isinstance(kind, str):
        return kind
    return "other" if kind else "drop"


def count_by_kind(log: pl.DataFrame) -> list[str]:
    """Return notes with the number of interactions of each weight, and of those that may be targets."""
    notes = []
    if WEIGHT in log.columns:
        counts = log.group_by(WEIGHT).len().sort(WEIGHT, descending=True).iter_rows()
        notes.append(f"interactions by weight: {', '.join(f'{weight:g}: {n:,}' for weight, n in counts)}")
    if IS_TARGET in log.columns:
        notes.append(f"{log[IS_TARGET].sum():,} of {len(log):,} interactions are of a kind that targets may have")
    return notes

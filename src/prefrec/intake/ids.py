"""Tell of ids that look like several spellings of one, like missing ones, or like accounts that many people share.

Ids themselves are never changed.
"""

from __future__ import annotations

import polars as pl
from rich.markup import escape

from prefrec.console import warn

MISSING = ("null", "nan", "none", "nil", "na", "n/a", "<na>", "nat", "undefined")
"""Texts that programs write where there is no id, in lower case."""

_GUESTS = r"(?i)^(gast|g(ä|ae)ste?|guests?|invit[eé]|invitado|anonym|an[oó]nimo|unknown|unbekannt|inconnu|laufkund)"
"""Beginnings of ids that shops give to all customers without an account."""
_TIMES, _MANY, _MANY_GUESTS = 3, 0.01, 0.002
"""A user has too many interactions for one person from three times the 99th percentile and 1% of the log on.

An id that `_GUESTS` matches has too many from three times the median and 0.2% of the log on.
"""

_NAMED = 3
"""Number of such accounts that the warning names."""

_INVISIBLE = r"[\p{Cc}\p{Cf}]"
_PADDED = r"^0*(\d+?)(?:\.0+)?$"
"""A whole number, perhaps with leading zeros or a fraction of zeros, as in 007 and 7.00."""


def warn_of_ids(log: pl.DataFrame, items: pl.Series) -> None:
    """Warn of ids of a log's users and of a catalogue's items that are probably not meant.

    Two ids that differ only in `.0`, invisible characters or the form of accents (Unicode's NFC and NFD) stay two; a
    user `null` or `NaN` stays one, and so does an account that many people seem to share.
    """
    users = log["user_id"].unique().cast(pl.String)
    for ids, what in ((users, "user"), (items.cast(pl.String), "item")):
        _warn_of_spellings(ids, what)
    _warn_of_crowds(log["user_id"])
    if (words := users.filter(users.str.to_lowercase().is_in(MISSING))).is_empty():
        return
    counts = log["user_id"].value_counts().filter(pl.col("user_id").cast(pl.String).is_in(words.to_list()))
    for user, count in counts.with_columns(pl.col("user_id").cast(pl.String)).sort("user_id").iter_rows():
        share = f"{count:,} interactions ({count / len(log):.1%} of the log)"
        warn(escape(f"the user {user!r} has {share}: if the id is missing there, drop these rows from the log"))


def _warn_of_crowds(owners: pl.Series) -> None:
    """Warn once of all users with too many interactions for one person: name the largest, count the others."""
    counts = owners.value_counts(sort=True).with_columns(pl.col("user_id").cast(pl.String))
    count, user = pl.col("count"), pl.col("user_id")
    is_crowd = (count >= _TIMES * count.quantile(0.99, "higher")) & (count >= _MANY * len(owners))
    are_guests = (
        user.str.contains(_GUESTS) & (count >= _TIMES * count.median()) & (count >= _MANY_GUESTS * len(owners))
    )
    crowds = counts.filter((is_crowd | are_guests) & ~user.str.to_lowercase().is_in(MISSING))
    if crowds.is_empty():
        return
    middle = counts["count"].median()
    told = [
        f"the user {name!r} has {most:,} interactions ({most / len(owners):.1%} of the log, "
        f"{most / middle:.0f} times the median of users)"
        for name, most in crowds.head(_NAMED).iter_rows()
    ]
    if rest := len(crowds) - len(told):
        theirs = int(crowds["count"][_NAMED:].sum())
        told.append(
            f"{rest:,} more, with {crowds['count'][-1]:,} to {crowds['count'][_NAMED]:,} interactions each, have "
            f"{theirs:,} ({theirs / len(owners):.1%} of the log)"
        )
    which, ids = ("this account", "its ids") if len(crowds) == 1 else ("these accounts", "their ids")
    warn(
        escape(
            f"{'; '.join(told)}: if many people share {which}, empty {ids} in the log and set --missing-users drop "
            "(`missing_users: drop` in a recipe)"
        )
    )


def _warn_of_spellings(ids: pl.Series, what: str) -> None:
    forms = ids.str.normalize("NFKC").str.replace_all(_INVISIBLE, "").str.replace(r"^(\d+)\.0+$", "$1")
    forms = forms.alias("form")
    changed = forms.filter(forms != ids).unique()
    if changed.is_empty():
        return
    frame = pl.DataFrame([ids.alias("id"), forms]).filter(pl.col("form").is_in(changed.to_list()))
    alike = frame.group_by("form").agg(pl.col("id").sort()).filter(pl.col("id").list.len() > 1).sort("form")
    if len(alike):
        some = " and ".join(map(ascii, alike["id"][0]))
        more = f" (and {len(alike) - 1:,} more)" if len(alike) > 1 else ""
        why = "differ only in .0, invisible characters or the form of letters"
        warn(escape(f"the {what}s {some}{more} {why}, and count as several; write each id in one way"))


def other_spelling(unknown: pl.Series, known: pl.Series) -> str:
    """Return a clause on how `known` spells the first of the ids `unknown`, if it spells at least half of them.

    Spellings of one id differ in leading zeros, a fraction of zeros or the case of letters. "" if fewer are spelled
    differently.
    """
    forms = pl.DataFrame([known.alias("known"), _plain(known).alias("form")]).unique("form", maintain_order=True)
    ids = unknown.unique(maintain_order=True)
    spelled = pl.DataFrame([ids.alias("id"), _plain(ids).alias("form")]).join(forms, on="form", maintain_order="left")
    if not len(spelled) or 2 * len(spelled) < len(ids):
        return ""
    return f"{spelled['id'][0]!r} in the log may be {spelled['known'][0]!r} in the catalogue"


def _plain(ids: pl.Series) -> pl.Series:
    return ids.cast(pl.String).str.to_lowercase().str.replace(_PADDED, "$1")

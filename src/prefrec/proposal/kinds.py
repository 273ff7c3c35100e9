"""Guess what the kinds of lines of a log are: purchases, returns, and others such as views, which have weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import polars as pl

from prefrec.intake import readers
from prefrec.proposal.setting import Setting
from prefrec.proposal.words import event, means_return

_FOLLOW = 0.5
"""Share of the lines of a kind that follow a purchase, from which they are returns of it."""
_LEAST = 0.01
"""Least weight of a kind that is proposed."""


def why_kinds(values: Iterable[str]) -> str | None:
    """Return why these values are kinds of lines: some are named like returns, or some like purchases, others not."""
    kinds = [*values]
    if named := [repr(kind) for kind in kinds if means_return(kind)]:
        return f"check: {' and '.join(named)} look like returns or cancelled orders"
    bought, others = ([repr(kind) for kind in kinds if event(kind) == name] for name in ("purchase", "other"))
    if bought and others:
        return f"check: {' and '.join(bought)} look like purchases, {' and '.join(others)} like other interactions"
    return None


def kind_files(paths: list[Path]) -> Setting | None:
    """Return the setting of the column of kinds if the log has a file for each kind; else None."""
    names = [readers.file_name(path).partition(".")[0] for path in paths]
    if len(names) > 1 and all(event(name) for name in names) and (why := why_kinds(names)):
        return Setting("kind", readers.FILE_NAME, why)
    return None


def kinds_of(log: pl.DataFrame, columns: Mapping[str, Setting]) -> list[Setting]:
    """Return the settings `kinds` and perhaps `targets` for the column of kinds of lines, all texts.

    What is named like a return takes an earlier purchase back if most such lines follow a line of the same user and
    item. Otherwise the lines are the purchases themselves, marked later, and no purchase.

    If some kinds are named like purchases and some like views or carts, the purchases are targets, and the weight of
    each other kind is the share of its pairs of a user and an item that have a purchase, too.
    """
    user, item, kind = (columns[field].value for field in ("user", "item", "kind"))
    texts = log[kind].fill_null("")
    kinds: dict[str, str | float] = dict.fromkeys(texts.unique().sort().to_list(), "buy")
    returned = [value for value in kinds if means_return(value)]
    undone = [value for value in kinds if value not in returned and event(value) == "undone"]
    bought = [value for value in kinds if event(value) == "purchase" and value not in returned]
    others = [value for value in kinds if value not in (*returned, *undone, *bought)]
    if not (bought and any(event(value) == "other" for value in others)):
        bought, others = [*bought, *others], []
    purchases = log.filter(texts.is_in(bought)).select(user, item).unique()
    shares = []
    for value in (*returned, *others):
        lines = log.filter(texts == value).select(user, item)
        lines = lines if value in returned else lines.unique()
        share = len(lines.join(purchases, on=[user, item], how="semi")) / len(lines)
        if value in returned:
            kinds[value] = "return" if share >= _FOLLOW else "drop"
            shares.append(f"{share:.0%} of {value!r} have a purchase of their user and item")
        else:
            kinds[value] = max(round(share, 2), _LEAST)
            shares.append(f"{share:.0%} of the pairs of user and item of {value!r} have a purchase, too")
    kinds |= dict.fromkeys(undone, "drop")
    settings = [Setting("kinds", kinds, f"check: {'; '.join(shares) or 'no value is named like a return'}")]
    if others:
        settings.append(Setting("targets", bought, "what is asked for; histories have all kinds"))
    return settings

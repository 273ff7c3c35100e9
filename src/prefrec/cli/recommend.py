"""`prefrec recommend`: recommend items for one history or for all users."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import polars as pl
from cyclopts import CycloptsError, Group, Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.data import UnknownUserError
from prefrec.errors import DataError
from prefrec.files import check_destination
from prefrec.intake.readers import pick_columns, read_table, read_text
from prefrec.intake.sources.base import check_one_line, read_lists
from prefrec.recommend.rules import Rules

WHO = Group("Users")


def recommend(
    run: o.RunFolder,
    /,
    *,
    all_users: Annotated[bool, Parameter(group=WHO, help="Recommend to all users of the run's log.")] = False,
    users: Annotated[
        list[str] | None, Parameter(group=WHO, help="User id, or a file with one id per line. Repeatable.")
    ] = None,
    history: Annotated[o.History, Parameter(group=WHO)] = None,
    history_file: Annotated[
        Path | None,
        Parameter(group=WHO, help="Table with `history` (a list of titles or ids) and optionally `user_id`."),
    ] = None,
    k: Annotated[int, Parameter(validator=Number(gte=1), help="Items per user.")] = 10,
    out: Annotated[Path | None, Parameter(help="File to write, .parquet or .csv. Default: print.")] = None,
    ranker: Annotated[
        str | None,
        Parameter(help="Any ranker of the run. Default: the best; with --exclude-seen, the best for new items."),
    ] = None,
    as_json: o.AsJson = False,
    section: o.Own[Rules] = o.untouched(Rules),
) -> None:
    """Recommend items of the catalogue for one history or to all users, with filters and boosts.

    A user's history is the whole log, including test items. --allow and --deny take ids, or files with one id per
    line. --boost takes COLUMN=VALUE=FACTOR, such as brand=Acme=2. After an interruption, the same command resumes.
    The processes of `accelerate launch` share the users.

    Example: prefrec recommend runs/shop --all-users --out top.parquet --where "genre = 'Comedy' and year > 1990"
    --at-most 2 --per brand

    Example: prefrec recommend runs/demo --history Alien --history Aliens
    """
    # A validator of the group would hide that an option such as --user does not exist.
    if sum(given is not None for given in (all_users or None, users, history, history_file)) != 1:
        raise CycloptsError("give exactly one of --all-users, --users, --history and --history-file")
    # Imported here, so that --help need not wait for torch and transformers.
    from prefrec.evaluation.labels import as_table
    from prefrec.recommend.answers import ANSWERS
    from prefrec.recommender import Recommender

    if out:
        check_destination(out)  # before hours of answers
    recommender = Recommender.from_run(run, ranker)
    histories = {"-": history} if history else _histories(history_file) if history_file else None
    rules = section.model_dump() | {"deny": ids_of(section.deny), "allow": section.allow and ids_of(section.allow)}
    asked: dict[str, Any] = {"users": users and ids_of(users), "histories": histories, **rules}
    try:
        blocks = recommender.recommend_blocks(out, k, **asked)
    except UnknownUserError as e:
        raise DataError(f"{e}; --users takes one id: repeat it for more") from e
    if out and not as_json:
        # Block after block, because the answers may not fit into memory.
        counts = [(block["user_id"].n_unique(), len(block)) for block in blocks]
        print(f"{sum(n for n, _ in counts)} users, {sum(n for _, n in counts)} rows: {out}")
        return
    answers = pl.concat([pl.DataFrame(schema=ANSWERS), *blocks])  # also without blocks, if there is nobody to answer
    if as_json:
        o.print_json(answers.to_dicts())
    else:
        print(as_table(answers.drop("user_id") if history else answers))


def ids_of(given: Sequence[str]) -> list[str]:
    """Return ids; a file is replaced by the ids in its lines."""
    ids: list[str] = []
    for text in given:
        # `Path.is_file` raises an error for a text that is too long for a name.
        ids += read_text(Path(text)).splitlines() if os.path.isfile(text) else [text]
    return [item.strip() for item in ids if item.strip()]


def _histories(path: Path) -> dict[str, list[str | int]]:
    """Return user → history; without user ids, users are numbered by row, from 1.

    Numbers remain numbers, because they are ids, and texts are first looked up as titles.
    """
    names = {"user_id": "user_id", "history": "history"}
    frame = pick_columns(read_table(path), names, path, optional=["user_id"])
    users = frame["user_id"] if "user_id" in frame.columns else pl.Series(range(1, len(frame) + 1)).cast(pl.String)
    check_one_line(users, path)
    return dict(zip(users, read_lists(frame["history"], path, "history"), strict=True))

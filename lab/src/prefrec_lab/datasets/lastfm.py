"""Last.FM of HetRec 2011: chronological from the raw tag dates, or in the published S-DPO form."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from prefrec.data.splits import core
from prefrec.data.types import ITEM_SCHEMA, LOG_SCHEMA, Catalogue, Window
from prefrec.errors import DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.readers import check_ids, first_line, parse_numbers, pick_columns, read_table, read_text
from prefrec.intake.sources.base import GivenSplit, Source, SourceKind, clean_catalogue
from prefrec.intake.titles import resolve_duplicates
from prefrec_lab.datasets.titles import is_blank

# Last.fm opened in 2002 and the data were published in 2011. Other dates are errors.
_FIRST_YEAR, _LAST_YEAR = 2002, 2011
_MIN_PAIRS = 4
SEQUENCES, NAMES = "sequences.tsv", "id2name.txt"
"""Files of the published form."""
SPLIT_FILES = {"train": "train", "val": "validation", "test": "test"}
"""Names of the parts in `SEQUENCES` → ours."""


def lastfm_hetrec(config: PrepareConfig) -> Source:
    """Read Last.FM chronologically: for each user and artist, the date of the user's first tag of that artist.

    `config.path` has `user_taggedartists.dat`, `artists.dat` and, optionally, `user_artists.dat` (play counts). The
    pairs are those of the published S-DPO data: distinct pairs → artists in `artists.dat` → artists with ≥ 4 pairs →
    users with ≥ 4 pairs, one pass each. Pairs without a usable date are left out of the log but count as touched, as
    do artists that a user listened to. The rating of a pair is its play count, null if the user never listened. Most
    dates are the first of a month, so ties are frequent; `prefrec.data.splits.order` breaks them at random.
    """
    folder = config.required("path")
    items = _artists(folder / "artists.dat")
    dated = _first_tags(folder / "user_taggedartists.dat")
    pairs = core(dated.join(items, on="item_id", how="semi"), _MIN_PAIRS, _MIN_PAIRS, iterative=False)
    if pairs.is_empty():
        raise DataError(f"{folder}: no artist has {_MIN_PAIRS} users who tagged it")
    items = items.join(pairs, on="item_id", how="semi", maintain_order="left")
    listened = _listened(folder / "user_artists.dat")
    items, renamed, notes = resolve_duplicates(items, "merge")
    pairs, listened = (f.with_columns(pl.col("item_id").replace(renamed)) for f in (pairs, listened))
    if "rating" in listened.columns:
        counts = listened.group_by("user_id", "item_id").agg(pl.col("rating").sum())
        pairs = pairs.join(counts, on=["user_id", "item_id"], how="left", maintain_order="left")
        listened = listened.drop("rating")
    undated = int(pairs["timestamp"].null_count())
    notes += [f"{undated} of {len(pairs)} pairs have no date in {_FIRST_YEAR}–{_LAST_YEAR} and are left out"]
    notes += ["dates are mostly months: interactions of one date are in a seeded random order"]
    if listened.is_empty():
        notes += ["no user_artists.dat: artists that a user listened to and never tagged may be negatives"]
    touched = pl.concat([pairs.select("user_id", "item_id"), listened]).unique(maintain_order=True)
    log, counted = pairs.drop_nulls("timestamp"), "rating" in pairs.columns
    return Source("lastfm-hetrec", "music", Catalogue(items), log, notes, touched=touched, counts=counted)


def lastfm_published(config: PrepareConfig) -> Source:
    """Read the LastFM of the S-DPO papers with its own split, for comparison with published numbers only.

    `config.path` has `sequences.tsv` (session, split, items) and `id2name.txt` (`id::name`). Every prefix of every
    session with at least `min_history` items is a row. Sessions are ordered by artist id and not by time, so a rule
    that ignores the user can find the target. HetRec's `artists.dat` as `config.items` adds the column `artist_id`,
    with which the audit detects that order.
    """
    folder = config.required("path")
    items = read_names(folder / NAMES)
    if config.items is not None:
        numbered = _artists(config.items).select("title", artist_id=pl.col("item_id").cast(pl.Int64))
        first = numbered.unique("title", keep="first", maintain_order=True)
        items = items.join(first, on="title", how="left", maintain_order="left")
    known = set(items["item_id"].to_list())
    windows: dict[str, list[Window]] = {part: [] for part in SPLIT_FILES.values()}
    log: list[tuple[str, str, int]] = []
    train_users = []
    for user, part, sequence in _sessions(folder / SEQUENCES):
        unknown = next((i for i in sequence if i not in known), None)
        if unknown is not None:
            raise DataError(f"{folder / 'sequences.tsv'}: session {user} has item {unknown!r}, absent in id2name.txt")
        log += [(user, item, n) for n, item in enumerate(sequence)]
        if part == "train":
            train_users.append(user)
        windows[part] += [
            Window(user, n, tuple(sequence[max(0, n - config.history_length) : n]), sequence[n])
            for n in range(config.min_history, len(sequence))
        ]
    frame = pl.DataFrame(log, schema=LOG_SCHEMA, orient="row")
    notes = ["sequences ascend by artist id, not by time: the published order gives the target away"]
    given = GivenSplit(windows, frame.filter(pl.col("user_id").is_in(train_users)).select("user_id", "item_id"))
    return Source("lastfm-published", "music", Catalogue(items), frame, notes, given)


def _artists(path: Path) -> pl.DataFrame:
    return clean_catalogue(pick_columns(read_table(path), {"item_id": "id", "title": "name"}, path), path, "name")


def _listened(path: Path) -> pl.DataFrame:
    """Return play counts as `user_id, item_id, rating`; without the file, an empty frame of ids."""
    if not path.exists():
        return pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    wanted = {"user_id": "userID", "item_id": "artistID", "rating": "weight"}
    return parse_numbers(pick_columns(read_table(path), wanted, path), "rating", path, "weight")


def _first_tags(path: Path) -> pl.DataFrame:
    """Return distinct pairs with the time of the first usable date, or null."""
    dates = ("day", "month", "year")
    tags = pick_columns(read_table(path), {"user_id": "userID", "item_id": "artistID"} | {c: c for c in dates}, path)
    for column in dates:
        tags = parse_numbers(tags, column, path)
    within = pl.col("year").is_between(_FIRST_YEAR, _LAST_YEAR)
    written = [pl.col(c).cast(pl.Int64, strict=False).cast(pl.String).str.zfill(2) for c in reversed(dates)]
    date = pl.concat_str(written, separator="-").str.to_date("%Y-%m-%d", strict=False)
    tags = tags.with_columns(pl.when(within).then(date.cast(pl.Datetime("us")).dt.epoch("s")).alias("timestamp"))
    bad = tags.select(within & pl.col("timestamp").is_null()).to_series()
    if bad.any():
        row = int(bad.arg_true()[0])
        given = ", ".join(f"{c} {tags[c][row]:g}" for c in dates)
        raise DataError(f"{path}, {first_line(bad, path)}: {given} is not a date; correct or drop the line")
    return tags.group_by("user_id", "item_id", maintain_order=True).agg(pl.col("timestamp").min())


def read_names(path: Path) -> pl.DataFrame:
    """Return `item_id, title` of a published `id2name.txt`; raise DataError if a line is not `id::name`."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        item, separator, name = line.partition("::")
        if not separator or is_blank(name):
            raise DataError(f"{path}, line {number}: expected id::name, found {line[:60]!r}")
        rows.append((item, name))
    return clean_catalogue(pl.DataFrame(rows, schema=ITEM_SCHEMA, orient="row"), path)


def _sessions(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Yield user, part and items of each session."""
    frame = pick_columns(read_table(path), {"user_id": "session", "split": "split", "items": "items"}, path)
    for number, (user, split, items) in enumerate(check_ids(frame, "items", path).iter_rows(), start=2):
        if split not in SPLIT_FILES:
            raise DataError(f"{path}, line {number}: split is {split!r}; expected train, val or test")
        yield user, SPLIT_FILES[split], items.split()


HETREC = SourceKind(lastfm_hetrec)
PUBLISHED = SourceKind(lastfm_published, takes=("items",), given=True)

"""Last.FM of HetRec 2011: chronological from the raw tag dates, or in the published S-DPO form."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from prefrec.data.filters import core
from prefrec.data.readers import check_ids, first_line, parse_numbers, pick_columns, read_table, read_text
from prefrec.data.sources.base import GivenSplit, Source, clean_catalogue
from prefrec.data.titles import is_blank, resolve_duplicates
from prefrec.data.types import Catalogue, Window
from prefrec.errors import DataError

FIRST_YEAR, LAST_YEAR = 2002, 2011
"""Last.fm opened in 2002 and the data were published in 2011; other dates are errors."""
MIN_PAIRS = 4
_PARTS = {"train": "train", "val": "validation", "test": "test"}


def lastfm_hetrec(path: Path) -> Source:
    """Read Last.FM chronologically: for each user and artist, the date of the user's first tag of that artist.

    The pairs are those of the published S-DPO data: distinct pairs → artists in `artists.dat` → artists with
    ≥ 4 pairs → users with ≥ 4 pairs, one pass each. Pairs without a usable date are left out of the log but count as
    touched, as do artists that a user listened to. The rating of a pair is its play count, null if the user never
    listened. Most dates are the first of a month, so ties are frequent; `prefrec.data.splits.order` breaks them at
    random.

    Args:
        path: folder with `user_taggedartists.dat`, `artists.dat` and, optionally, `user_artists.dat` (play counts).

    Raises:
        DataError: a file is missing or damaged.
    """
    folder = Path(path)
    items = _artists(folder / "artists.dat")
    dated = _first_tags(folder / "user_taggedartists.dat")
    pairs = core(dated.join(items, on="item_id", how="semi"), MIN_PAIRS, MIN_PAIRS, iterative=False)
    if pairs.is_empty():
        raise DataError(f"{folder}: no artist has {MIN_PAIRS} users who tagged it")
    items = items.join(pairs, on="item_id", how="semi", maintain_order="left")
    listened = _listened(folder / "user_artists.dat")
    items, renamed, notes = resolve_duplicates(items, "merge")
    pairs, listened = (f.with_columns(pl.col("item_id").replace(renamed)) for f in (pairs, listened))
    if "rating" in listened.columns:
        counts = listened.group_by("user_id", "item_id").agg(pl.col("rating").sum())
        pairs = pairs.join(counts, on=["user_id", "item_id"], how="left", maintain_order="left")
        listened = listened.drop("rating")
    undated = int(pairs["timestamp"].null_count())
    notes += [f"{undated} of {len(pairs)} pairs have no date in {FIRST_YEAR}–{LAST_YEAR} and are left out"]
    notes += ["dates are mostly months: interactions of one date are in a seeded random order"]
    if listened.is_empty():
        notes += ["no user_artists.dat: artists that a user listened to and never tagged may be negatives"]
    return Source(
        "lastfm-hetrec",
        "music",
        Catalogue(items),
        pairs.drop_nulls("timestamp"),
        notes,
        touched=pl.concat([pairs.select("user_id", "item_id"), listened]).unique(maintain_order=True),
        counts="rating" in pairs.columns,
    )


def lastfm_published(
    path: Path, history_length: int = 10, min_history: int = 3, artists: Path | None = None
) -> Source:
    """Read the LastFM of the S-DPO papers with its own split, for comparison with published numbers only.

    Every prefix of every session with at least `min_history` items is a row. Sessions are ordered by artist id and
    not by time, so a rule that ignores the user can find the target.

    Args:
        path: folder with `sequences.tsv` (session, split, items) and `id2name.txt` (`id::name`).
        artists: HetRec's `artists.dat`; adds the column `artist_id`, with which the audit detects that order.

    Raises:
        DataError: a file is missing or damaged, or a session has an unknown item or split.
    """
    folder = Path(path)
    items = _names(folder / "id2name.txt")
    if artists is not None:
        items = items.join(_artist_numbers(artists), on="title", how="left", maintain_order="left")
    known = set(items["item_id"].to_list())
    windows: dict[str, list[Window]] = {part: [] for part in _PARTS.values()}
    log: list[tuple[str, str, int]] = []
    train_users = set()
    for user, part, sequence in _sessions(folder / "sequences.tsv"):
        unknown = next((i for i in sequence if i not in known), None)
        if unknown is not None:
            raise DataError(f"{folder / 'sequences.tsv'}: session {user} has item {unknown!r}, absent in id2name.txt")
        log += [(user, item, n) for n, item in enumerate(sequence)]
        if part == "train":
            train_users.add(user)
        windows[part] += [
            Window(user, n, tuple(sequence[max(0, n - history_length) : n]), sequence[n])
            for n in range(min_history, len(sequence))
        ]
    frame = pl.DataFrame(
        log, schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}, orient="row"
    )
    notes = ["sequences ascend by artist id, not by time: the published order gives the target away"]
    given = GivenSplit(windows, frame.filter(pl.col("user_id").is_in(list(train_users))).select("user_id", "item_id"))
    return Source("lastfm-published", "music", Catalogue(items), frame, notes, given)


def _artists(path: Path) -> pl.DataFrame:
    items = pick_columns(read_table(path), {"item_id": "id", "title": "name"}, path)
    return clean_catalogue(check_ids(items, "item_id", path, "id"), path, "name")


def _artist_numbers(path: Path) -> pl.DataFrame:
    """Return `title, artist_id`, the first artist of each name."""
    numbered = _artists(path).select("title", artist_id=pl.col("item_id").cast(pl.Int64))
    return numbered.unique("title", keep="first", maintain_order=True)


def _listened(path: Path) -> pl.DataFrame:
    """Return play counts as `user_id, item_id, rating`; without the file, an empty frame of ids."""
    if not path.exists():
        return pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    wanted = {"user_id": "userID", "item_id": "artistID", "rating": "weight"}
    pairs = pick_columns(read_table(path), wanted, path)
    for column in ("user_id", "item_id"):
        pairs = check_ids(pairs, column, path, wanted[column])
    return parse_numbers(pairs, "rating", path, "weight")


def _first_tags(path: Path) -> pl.DataFrame:
    """Return distinct pairs with the time of the first usable date, or null."""
    wanted = {"user_id": "userID", "item_id": "artistID", "day": "day", "month": "month", "year": "year"}
    tags = pick_columns(read_table(path), wanted, path)
    for column in ("user_id", "item_id"):
        tags = check_ids(tags, column, path, wanted[column])
    for column in ("day", "month", "year"):
        tags = parse_numbers(tags, column, path)
    within = pl.col("year").is_between(FIRST_YEAR, LAST_YEAR)
    written = [pl.col(c).cast(pl.Int64, strict=False).cast(pl.String).str.zfill(2) for c in ("year", "month", "day")]
    date = pl.concat_str(written, separator="-").str.to_date("%Y-%m-%d", strict=False)
    tags = tags.with_columns(pl.when(within).then(date.cast(pl.Datetime("us")).dt.epoch("s")).alias("timestamp"))
    bad = tags.select(within & pl.col("timestamp").is_null()).to_series()
    if bad.any():
        row = int(bad.arg_true()[0])
        given = ", ".join(f"{c} {tags[c][row]:g}" for c in ("day", "month", "year"))
        raise DataError(f"{path}, {first_line(bad, path)}: {given} is not a date; correct or drop the line")
    return tags.group_by("user_id", "item_id", maintain_order=True).agg(pl.col("timestamp").min())


def _names(path: Path) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        item, separator, name = line.partition("::")
        if not separator or is_blank(name):
            raise DataError(f"{path}, line {number}: expected id::name, found {line[:60]!r}")
        rows.append((item, name))
    items = pl.DataFrame(rows, schema={"item_id": pl.String, "title": pl.String}, orient="row")
    return clean_catalogue(items, path)


def _sessions(path: Path) -> list[tuple[str, str, list[str]]]:
    wanted = {"user_id": "session", "split": "split", "items": "items"}
    frame = check_ids(pick_columns(read_table(path), wanted, path), "items", path)
    sessions = []
    for number, (user, split, items) in enumerate(frame.iter_rows(), start=2):
        if split not in _PARTS:
            raise DataError(f"{path}, line {number}: split is {split!r}; expected train, val or test")
        sessions.append((user, _PARTS[split], items.split()))
    return sessions

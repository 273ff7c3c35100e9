"""Last.FM of HetRec 2011: chronological from the raw tag dates, and the S-DPO paper family's form."""

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
"""Last.fm opened in 2002 and the data were published in 2011; dates outside are mistakes."""
MIN_PAIRS = 4
_PARTS = {"train": "train", "val": "validation", "test": "test"}


def lastfm_hetrec(path: Path) -> Source:
    """Chronological Last.FM: for each user and artist, the date of the user's first tag of that artist.

    The pairs are those of the published S-DPO data: distinct pairs → artists in `artists.dat` → artists with
    ≥ 4 pairs → users with ≥ 4 pairs, one pass each. A tag with a bogus year does not date its pair; pairs
    without any usable date are then left out of the log (they still count as touched). Most dates are the
    first of a month, so ties are frequent; `prefrec.data.splits.order` breaks them at random. Artists that a user
    listened to count as touched too; how often the user did is the rating of a pair, which is null where the user
    never did.

    Args:
        path: folder with `user_taggedartists.dat`, `artists.dat` and, for what users listened to, `user_artists.dat`.

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
    """The S-DPO paper family's LastFM with its own split, for comparison with published numbers.

    Every prefix of every session with at least `min_history` items is a row. Its order inside a session is
    the artist id, not time, which a rule without any user in it can exploit: do not measure on it.

    Args:
        path: folder with `sequences.tsv` (session, split, items) and `id2name.txt` (`id::name`).
        artists: HetRec's `artists.dat`; adds the column `artist_id`, by which the audit shows that order.

    Raises:
        DataError: a file is missing or damaged, or a session holds an unknown item or split.
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
    """`title, artist_id`; of two artists with one name the first."""
    numbered = _artists(path).select("title", artist_id=pl.col("item_id").cast(pl.Int64))
    return numbered.unique("title", keep="first", maintain_order=True)


def _listened(path: Path) -> pl.DataFrame:
    """Return who listened to what how often: `user_id, item_id, rating`; empty, with ids alone, without the file."""
    if not path.exists():
        return pl.DataFrame(schema={"user_id": pl.String, "item_id": pl.String})
    wanted = {"user_id": "userID", "item_id": "artistID", "rating": "weight"}
    pairs = pick_columns(read_table(path), wanted, path)
    for column in ("user_id", "item_id"):
        pairs = check_ids(pairs, column, path, wanted[column])
    return parse_numbers(pairs, "rating", path, "weight")


def _first_tags(path: Path) -> pl.DataFrame:
    """Distinct pairs with the time of the first usable date, or null."""
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
        raise DataError(f"{path}, {first_line(bad, path)}: {given} is no date; correct or drop the line")
    return tags.group_by("user_id", "item_id", maintain_order=True).agg(pl.col("timestamp").min())


def _names(path: Path) -> pl.DataFrame:
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        item, found, name = line.partition("::")
        if not found or is_blank(name):
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

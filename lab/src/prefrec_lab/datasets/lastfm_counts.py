"""Last.FM of HetRec 2011 by listening counts: a log whose ratings are fifths of each user's own counts.

    python -m prefrec_lab.datasets.lastfm_counts FOLDER OUT

FOLDER has `user_artists.dat` and `artists.dat`. OUT gets `log.csv` and `artists.csv` for `source: files`. Counts have
no dates, so each user's artists are in a random order with a fixed seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.intake.readers import parse_numbers, pick_columns, read_table

SEED = 0
"""Of the order of each user's artists."""
LOG, ARTISTS = "log.csv", "artists.csv"


def write_counts(folder: Path, out: Path) -> None:
    """Write the log and the artists of `folder` to the folder `out`."""
    out.mkdir(parents=True, exist_ok=True)
    counts, artists = folder / "user_artists.dat", folder / "artists.dat"
    wanted = {"user_id": "userID", "item_id": "artistID", "plays": "weight"}
    log = parse_numbers(pick_columns(read_table(counts), wanted, counts), "plays", counts, "weight")
    titles = pick_columns(read_table(artists), {"item_id": "id", "title": "name"}, artists)
    log = log.join(titles, on="item_id", how="semi", maintain_order="left")
    fifths(log).write_csv(out / LOG)
    titles.join(log, on="item_id", how="semi", maintain_order="left").write_csv(out / ARTISTS)


def fifths(log: pl.DataFrame) -> pl.DataFrame:
    """Return `user_id, item_id, timestamp, rating` of a log with `plays`.

    The rating is 5 for the fifth of a user's artists that the user played most, and 1 for the least played fifth.
    Equal counts share the mean of their ranks. The timestamp is a place in a random order.
    """
    share = ((pl.col("plays").rank("average") - 0.5) / pl.len()).over("user_id")
    order = np.random.default_rng(SEED).permutation(len(log))
    rated = log.with_columns(rating=1 + (5 * share).floor().clip(0, 4), timestamp=pl.Series(order))
    return rated.select("user_id", "item_id", "timestamp", "rating")


def main() -> None:
    """Write the files of the folders that the command names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    write_counts(arguments.folder, arguments.out)


if __name__ == "__main__":
    main()

"""The titles of the made-up shop as a catalogue, and questions about them."""

import numpy as np
import polars as pl

from prefrec.data import Catalogue, RankingExample
from tiny_run import TITLES

IDS = [f"i{i}" for i in range(len(TITLES))]
CATALOGUE = Catalogue(pl.DataFrame({"item_id": IDS, "title": TITLES}))


def examples(n: int = 5, long: int = 6, items: list[str] = IDS) -> list[RankingExample]:
    """Histories of 1 to n items, and lists of `long` candidates and of two fewer by turns."""
    rng, made = np.random.default_rng(0), []
    for u in range(n):
        d = rng.permutation(items).tolist()
        made.append(RankingExample(f"u{u}", tuple(d[: u + 1]), tuple(d[20 : 20 + long - 2 * (u % 2)]), d[21]))
    return made

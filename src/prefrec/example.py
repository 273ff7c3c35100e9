"""A small synthetic log and catalogue, for examples."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import polars as pl

KINDS = {
    "Comedy": ("Wedding", "Neighbour", "Holiday", "Uncle", "Dog", "Kitchen", "School", "Party"),
    "Thriller": ("Witness", "Night", "Killer", "Train", "Letter", "Harbour", "Spy", "Silence"),
    "Space": ("Planet", "Orbit", "Star", "Comet", "Moon", "Signal", "Galaxy", "Crew"),
    "Western": ("Ranch", "Sheriff", "Canyon", "Horse", "Gold", "Desert", "Outlaw", "Saloon"),
}
"""Genre → last words of titles."""
FIRST = ("The Last", "A Quiet", "Red", "The Lost", "Beyond the", "Seven")
USERS, LENGTH, DAY = 300, 12, 86_400


class Example(NamedTuple):
    """A log (`user_id`, `item_id`, `timestamp`) and its items (`item_id`, `title`, `genre`, `year`)."""

    log: pl.DataFrame
    items: pl.DataFrame


def load_example(seed: int = 0) -> Example:
    """Return a synthetic log of 300 users and 192 films, for `prefrec.fit(*prefrec.load_example())`.

    Each user has a favourite genre, and usually continues with a film that often follows the previous one. The data
    contain no real users.

    Args:
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    rows = [(f"{a} {b}", genre) for genre, words in KINDS.items() for a in FIRST for b in words]
    titles, genres = map(list, zip(*rows, strict=True))
    size = len(titles)
    of_genre = {g: [i for i, genre in enumerate(genres) if genre == g] for g in KINDS}
    years = 1970 + rng.integers(50, size=size)
    items = pl.DataFrame({"item_id": list(range(1, size + 1)), "title": titles, "genre": genres, "year": years})
    following = {i: rng.choice(of_genre[genres[i]], 3, replace=False) for i in range(size)}
    log = []
    for user in range(1, USERS + 1):
        favourite = of_genre[list(KINDS)[int(rng.integers(len(KINDS)))]]
        time = 1_600_000_000 + int(rng.integers(300)) * DAY
        item = int(rng.choice(favourite))
        seen = set()
        for _ in range(LENGTH):
            seen.add(item)
            log.append((user, item + 1, time))
            time += int(rng.integers(1, 5)) * DAY
            near = [int(i) for i in following[item] if i not in seen]
            follows = near and rng.random() < 0.7
            item = int(rng.choice(near if follows else [i for i in favourite if i not in seen]))
    return Example(pl.DataFrame(log, ["user_id", "item_id", "timestamp"], orient="row"), items)

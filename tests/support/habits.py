"""A made-up grocery: users fill a basket every few days, mostly with what they usually buy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

DAY = 86_400


def grocery(
    users: int = 60, items: int = 80, baskets: int = 12, habit: float = 0.8, seed: int = 0
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the log and the catalogue of a grocery.

    Each user has ten habitual products, which differ in how often they are bought, and shops every 3 to 7 days. A
    product comes from the habits with probability `habit`, otherwise from all products, popular ones more often. Half
    of the users change some habits on the way, so that recent purchases say more than frequent ones.
    """
    rng = np.random.default_rng(seed)
    popularity = 1 / np.arange(1, items + 1) ** 0.7
    popularity /= popularity.sum()
    rows = []
    for user in range(users):
        usual = rng.choice(items, 10, replace=False, p=popularity)
        rates = rng.dirichlet(np.full(10, 0.7))
        day = int(rng.integers(0, 30))
        for number in range(baskets):
            if user % 2 and number == baskets // 2:
                usual[:4] = rng.choice(items, 4, replace=False, p=popularity)
            day += int(rng.integers(3, 8))
            size = 1 + int(rng.poisson(3))
            bought = [
                int(rng.choice(usual, p=rates) if rng.random() < habit else rng.choice(items, p=popularity))
                for _ in range(size)
            ]
            rows += [(f"u{user:04}", f"i{item:03}", 1_600_000_000 + DAY * day) for item in dict.fromkeys(bought)]
    log = pl.DataFrame(rows, ["user_id", "item_id", "timestamp"], orient="row")
    catalogue = pl.DataFrame(
        {"item_id": [f"i{i:03}" for i in range(items)], "title": [f"Product {i}" for i in range(items)]}
    )
    return log, catalogue


def write_grocery(folder: Path, **settings: float) -> dict[str, Path]:
    """Write the log and the catalogue of a grocery as CSV; return the files by their names in a configuration."""
    log, catalogue = grocery(**settings)  # type: ignore[arg-type]
    paths = {"interactions": folder / "log.csv", "items": folder / "items.csv"}
    log.write_csv(paths["interactions"])
    catalogue.write_csv(paths["items"])
    return paths

"""A made-up drugstore with a planted truth: what a user needs, and when it runs out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

DAY = 86_400
START = 1_600_000_000
CYCLES = (10, 14, 21, 28, 35, 45, 60, 90, 120, 180)
"""Days that a product of each category lasts, on average."""


@dataclass(frozen=True)
class Shop:
    """A log with its catalogue, and the planted truth.

    Attributes:
        log: `user_id, item_id, timestamp`; the items of a basket have one time.
        catalogue: `item_id, title, category`.
        due: `user_id, item_id, timestamp, share`: at that purchase, how much of the item's cycle had passed since the
            purchase before; 1 is when it ran out. Only purchases of items that the user keeps to have a row.
    """

    log: pl.DataFrame
    catalogue: pl.DataFrame
    due: pl.DataFrame


def replenishing_shop(users: int = 1000, per_category: int = 40, days: int = 500, seed: int = 0) -> Shop:
    """Return a shop whose users buy an item again when it runs out, and sometimes try another one.

    Each user needs a few categories, visits every 4 to 20 days, uses products up at a pace of their own, and keeps to
    some of the products that they try. A visit buys what has run out, with noise of a quarter of the cycle, and on
    average 1.1 products that are new to the user, by popularity. A third of the products appear on the way, and the
    popularity of each one rises or falls by its own trend.
    """
    rng = np.random.default_rng(seed)
    count = len(CYCLES) * per_category
    category = np.arange(count) % len(CYCLES)
    cycle = np.array(CYCLES)[category] * rng.lognormal(0, 0.15, count)
    launch = np.where(rng.random(count) < 0.33, rng.uniform(0, days, count), -1)
    base = rng.permuted(1 / np.arange(1, count + 1) ** 0.8)
    trend = rng.normal(0, 1.0, count) / days
    rows: list[tuple[str, str, int]] = []
    shares: list[tuple[str, str, int, float]] = []
    for user in range(users):
        weight = rng.dirichlet(np.full(len(CYCLES), 0.5))
        pace = rng.lognormal(0, 0.25)
        gap = rng.uniform(4, 20)
        day = rng.uniform(0, days / 2)
        last: dict[int, float] = {}
        lasts: dict[int, float] = {}  # how long the item in the user's home lasts; no entry: it is not bought again
        while (day := day + rng.exponential(gap)) < days:
            needed = [item for item, since in last.items() if item in lasts and day - since >= lasts[item]]
            appeal = base * np.exp(trend * day) * (launch <= day) * weight[category]
            tried = _tried(rng, int(rng.poisson(1.1)), appeal)
            time = START + int(day) * DAY
            for item in dict.fromkeys([*needed, *tried]):
                if item in lasts:
                    shares.append((f"u{user:04}", f"i{item:03}", time, (day - last[item]) / lasts[item]))
                keeps = item in lasts or rng.random() < 0.14
                last[item] = day
                lasts.pop(item, None)
                if keeps and rng.random() < 0.94:
                    lasts[item] = cycle[item] * pace * rng.lognormal(0, 0.25)
                rows.append((f"u{user:04}", f"i{item:03}", time))
    columns = ["user_id", "item_id", "timestamp"]
    words = ("soap", "milk", "tea", "cream", "oil", "brush", "paper", "salt", "wax", "bulb")
    catalogue = pl.DataFrame(
        {
            "item_id": [f"i{item:03}" for item in range(count)],
            "title": [f"{words[category[item]]} {item}" for item in range(count)],
            "category": [words[category[item]] for item in range(count)],
        }
    )
    return Shop(
        pl.DataFrame(rows, columns, orient="row"),
        catalogue,
        pl.DataFrame(shares, [*columns, "share"], orient="row"),
    )


def _tried(rng: np.random.Generator, count: int, appeal: NDArray[np.float64]) -> list[int]:
    """Return `count` products to try, drawn by their appeal [I]."""
    return rng.choice(len(appeal), count, replace=False, p=appeal / appeal.sum()).tolist() if count else []

"""The peak memory of a run with a blend in full ranking, on a made-up shop of any size, in a process of its own."""

from pathlib import Path

import numpy as np
import polars as pl

from command import prefrec
from prefrec.resources import peak_bytes
from reliability.children import call
from reliability.parts import Part
from tiny_run import write_recipe

ITEMS, USERS = 20_000, 4_000
MOST_GB = 3.0
"""Most memory of a run without EASE, whose matrices of 20,000 items take 3.2 GB."""
LENGTH = 12
"""Interactions of each user."""
PARTS = ["title TF-IDF", "window co-occurrence", "transition graph", "item-kNN"]


def large_shop(folder: Path, items: int, users: int) -> Path:
    """Write a log of so many users, who walk through the items, and a recipe with a blend that selects its parts."""
    folder.mkdir(parents=True)
    starts = np.random.default_rng(0).integers(items, size=users).tolist()
    log = [
        (f"u{user}", f"i{(start + n * (1 + user % 5)) % items}", n)
        for user, start in enumerate(starts)
        for n in range(LENGTH)
    ]
    pl.DataFrame(log, schema=["user_id", "item_id", "timestamp"], orient="row").write_csv(folder / "log.csv")
    titles = [f"Item {n} of series {n % 997}" for n in range(items)]
    pl.DataFrame({"item_id": [f"i{n}" for n in range(items)], "title": titles}).write_csv(folder / "items.csv")
    data = {"source": "files", "interactions": str(folder / "log.csv"), "items": str(folder / "items.csv")}
    recipe = {
        "name": "large",
        "data": data | {"history_length": 10, "candidates": {"kind": "uniform", "size": 20}},
        "rankers": [{"kind": "blend", "parts": PARTS, "select": True}],
        "evaluate": {"zero_shot": False, "baselines": ["popularity", *PARTS]},
        "refit": True,
    }
    return write_recipe(folder, recipe)


def peak_of_run(recipe: Path, run: Path) -> int:
    """Carry a recipe out, and return the peak memory of this process in bytes."""
    prefrec("run", str(recipe), "--out", str(run))
    return peak_bytes("cpu")


def within_memory(part: Part, folder: Path, items: int = ITEMS, users: int = USERS) -> None:
    """Run the large shop in a child; it is lost if it takes more than `MOST_GB`."""
    peak = call(peak_of_run, large_shop(folder / "shop", items, users), folder / "run") / 1e9
    part.tried += 1
    part.facts = {"items": items, "users": users, "peak GB": round(peak, 2)}
    if not (folder / "run" / "metrics.json").is_file():
        part.lost.append("the run has no results")
    if peak > MOST_GB:
        part.lost.append(f"a run of {items:,} items takes {peak:.1f} GB, more than {MOST_GB:g} GB")

"""Measure how long `recommend_all` takes for many users: before a change, after it, and by implicit, in one run.

    python scripts/batch_speed.py runs/demo --users 100000 --before v0.2.0 --implicit

The users are resampled: each has a random nine tenths of the log of a random user of the run. Each measurement is a
process of its own with two threads at most; it loads the ranker, answers 10 users, and then times all. The tree
before, a git revision, answers `--before-users` users, because its time is proportional to them. Standard output is a
table of seconds for all users. implicit (`pip install implicit`) fits BM25, 200 neighbours an item, to the same log.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
RANKERS = ["window co-occurrence", "transition graph", "item-kNN", "EASE", "title TF-IDF", "blend"]
KEPT = 0.9
"""Share of a drawn user's items that a resampled user has."""


def resampled(log: pl.DataFrame, users: int) -> pl.DataFrame:
    """Return the log of new users, each with a random part of the items of a random user."""
    rng = np.random.default_rng(0)
    by_user = log.group_by("user_id", maintain_order=True).agg("item_id", "timestamp")
    drawn = by_user[rng.integers(len(by_user), size=users)].with_columns(user_id="u" + pl.int_range(users).cast(str))
    long = drawn.explode("item_id", "timestamp", empty_as_null=False).select("user_id", "item_id", "timestamp")
    return long.filter(pl.Series(rng.random(len(long)) < KEPT)).sort("user_id", "timestamp", maintain_order=True)


def time_ours(run: str, ranker: str, users: int) -> dict[str, Any]:
    """Return the seconds of `recommend_all` for all users."""
    from prefrec.console import show_progress
    from prefrec.pipeline.opened import open_run
    from prefrec.recommender import Recommender

    show_progress(False)
    opened = open_run(Path(run))
    log = resampled(opened.data.known_interactions("test"), users)
    data = replace(opened.data, train_interactions=log, held_out_interactions=None)
    opened_ranker = opened.stage(ranker) if hasattr(opened, "stage") else opened.entry(ranker)
    recommender = Recommender(data, opened_ranker)
    recommender.recommend_all(users=[f"u{n}" for n in range(10)])
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        answers = recommender.recommend_all(Path(folder) / "top.parquet")
        seconds = time.perf_counter() - start
    return {"seconds": seconds, "rows": len(answers)}


def time_implicit(run: str, ranker: str, users: int) -> dict[str, Any]:
    """Return the seconds of implicit's `recommend` for all users, with the matrix of their items given."""
    from implicit.nearest_neighbours import BM25Recommender
    from scipy import sparse

    from prefrec.pipeline.opened import open_run

    data = open_run(Path(run)).data
    known = data.known_interactions("test")

    def matrix(log: pl.DataFrame) -> Any:
        rows = log["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
        columns = [data.catalogue.index[item] for item in log["item_id"]]
        return sparse.csr_matrix((np.ones(len(log)), (rows, columns)), shape=(rows.max() + 1, len(data.catalogue)))

    model = BM25Recommender(K=200, num_threads=2)
    model.fit(matrix(known), show_progress=False)
    histories = matrix(resampled(known, users))
    start = time.perf_counter()
    items, _ = model.recommend(np.arange(users), histories, N=10, filter_already_liked_items=True)
    return {"seconds": time.perf_counter() - start, "rows": int(items.size)}


def measured(tree: Path, what: str, run: str, ranker: str, users: int) -> dict[str, Any]:
    """Return the measurement of a worker process that imports prefrec from `tree`."""
    parts = [tree / part for part in ("src", "server/src", "systems/src", "lab/src")]
    path = os.pathsep.join(map(str, [*parts, os.environ.get("PYTHONPATH", "")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "2")
    command = [sys.executable, __file__, run, "--worker", what, "--rankers", ranker, "--users", str(users)]
    done = subprocess.run(
        command, env=os.environ | threads | {"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(run: str, rankers: list[str], users: int, before: str | None, fewer: int, with_implicit: bool) -> Table:
    """Return the table; before and after take turns, so that another load of the machine affects both."""
    table = Table("ranker", *(["before, s"] if before else []), "after, s", "users/s", *(["ratio"] if before else []))
    with tempfile.TemporaryDirectory() as folder:
        if before:
            archive = subprocess.run(["git", "-C", ROOT, "archive", before], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for ranker in rankers:
            old = measured(Path(folder), "ours", run, ranker, fewer)["seconds"] * users / fewer if before else 0.0
            new = measured(ROOT, "ours", run, ranker, users)["seconds"]
            cells = [f"{new:.1f}", f"{users / new:,.0f}"]
            table.add_row(ranker, *([f"{old:.0f}", *cells, f"{old / new:.1f}"] if before else cells))
    if with_implicit:
        seconds = measured(ROOT, "implicit", run, "", users)["seconds"]
        blank = [""] if before else []
        table.add_row("implicit, BM25", *blank, f"{seconds:.1f}", f"{users / seconds:,.0f}", *blank)
    return table


def main() -> None:
    """Measure, or be the worker of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--rankers", default=",".join(RANKERS), help="names in the table of the run")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--before", help="git revision to compare with")
    parser.add_argument("--before-users", type=int, default=2_000)
    parser.add_argument("--implicit", action="store_true", help="measure implicit, too")
    parser.add_argument("--worker", choices=["ours", "implicit"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        time_it = time_ours if given.worker == "ours" else time_implicit
        sys.stdout.write(json.dumps(time_it(given.run, given.rankers, given.users)) + "\n")
        return
    rankers = given.rankers.split(",")
    Console(width=100).print(
        compare(given.run, rankers, given.users, given.before, given.before_users, given.implicit)
    )


if __name__ == "__main__":
    main()

"""Measure how long `recommend_all` takes for many users: before a change, after it, and by implicit, in one run.

    python -m prefrec_lab.bench.batch_speed runs/counts --users 100000 --repeats 3 --implicit --save

The users are resampled: each has a random nine tenths of the log of a random user of the run. Each measurement is a
process of its own with two threads at most; it loads the ranker, answers 10 users, and then times all. The rankers
take turns, so that other work affects all of them; a cell is the median of the repeats, with the least and the most.

`--before v0.2.0` also measures the tree of a git revision, with `--before-users` users, because its time is
proportional to them. implicit (`pip install implicit`) fits BM25, 200 neighbours an item, to the same log. Standard
output is a table of seconds for all users; `--save` writes it to lab/results/65-answers-for-all-users.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from prefrec_lab.results import RESULTS, ROOT, save

RESULT = RESULTS / "65-answers-for-all-users.json"
RANKERS = ["window co-occurrence", "transition graph", "item-kNN", "EASE", "title TF-IDF", "blend"]
KEPT = 0.9
"""Share of a drawn user's items that a resampled user has."""
IMPLICIT = "implicit, BM25"


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
    recommender = Recommender(data, opened.stage(ranker))
    recommender.recommend_all(users=[f"u{n}" for n in range(10)])
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        answers = recommender.recommend_all(Path(folder) / "top.parquet")
        took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    return took | {"rows": len(answers)}


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
    start, used = time.perf_counter(), time.process_time()
    items, _ = model.recommend(np.arange(users), histories, N=10, filter_already_liked_items=True)
    took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - used}
    return took | {"rows": int(items.size)}


def measured(tree: Path, what: str, run: str, ranker: str, users: int) -> dict[str, Any]:
    """Return the measurement of a worker process that imports prefrec from `tree`."""
    parts = [*(tree / part for part in ("src", "server/src", "systems/src")), ROOT / "lab/src"]
    path = os.pathsep.join(map(str, [*parts, os.environ.get("PYTHONPATH", "")]))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"), "2")
    command = [sys.executable, "-m", "prefrec_lab.bench.batch_speed", run, "--worker", what]
    command += ["--rankers", ranker, "--users", str(users)]
    done = subprocess.run(
        command, env=os.environ | threads | {"PYTHONPATH": path}, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(given: argparse.Namespace) -> dict[str, Any]:
    """Return the table of results: title, columns and rows."""
    run, users, rankers = given.run, given.users, given.rankers.split(",")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if given.before:
            archive = subprocess.run(["git", "-C", ROOT, "archive", given.before], stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        for _ in range(given.repeats):
            for ranker in rankers:
                if given.before:
                    old = measured(Path(folder), "ours", run, ranker, given.before_users)
                    found.setdefault((ranker, "before"), []).append(old)
                found.setdefault((ranker, "now"), []).append(measured(ROOT, "ours", run, ranker, users))
            if given.implicit:
                found.setdefault((IMPLICIT, "now"), []).append(measured(ROOT, "implicit", run, "", users))

    def times(ranker: str, what: str, when: str = "now") -> list[float]:
        scale = users / given.before_users if when == "before" else 1.0
        return [one[what] * scale for one in found[ranker, when]]

    columns = ["ranker", "seconds", "CPU seconds", "users/s"]
    columns += ["CPU time relative to implicit"] if given.implicit else []
    columns += ["seconds before", "times as fast"] if given.before else []
    rows = []
    for ranker in (*rankers, *([IMPLICIT] if given.implicit else [])):
        seconds, cpu = times(ranker, "seconds"), times(ranker, "cpu")
        row = [ranker, _range(seconds), _range(cpu), f"{users / statistics.median(seconds):,.0f}"]
        if given.implicit:
            row.append(f"{statistics.median(cpu) / statistics.median(times(IMPLICIT, 'cpu')):.1f}")
        if given.before:
            before = times(ranker, "seconds", "before") if ranker in rankers else []
            ratio = statistics.median(before) / statistics.median(seconds) if before else 0.0
            row += [_range(before), f"{ratio:.1f}"] if before else ["–", "–"]
        rows.append(row)
    return {"title": f"The ten best items for each of {users:,} users", "columns": columns, "rows": rows}


def _range(values: Sequence[float]) -> str:
    """Return the median, with the least and the most if there are several values."""
    median = f"{statistics.median(values):.1f}"
    return median if len(values) == 1 else f"{median} [{min(values):.1f}, {max(values):.1f}]"


def facts(given: argparse.Namespace) -> dict[str, Any]:
    """Return what was measured, where and when, for the file of results."""
    from prefrec.resources import processor_says

    commit = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short=8", "HEAD"], stdout=subprocess.PIPE, check=True)
    loaded = f"load average {os.getloadavg()[0]:.1f} at the beginning"
    return {
        "commit": commit.stdout.decode().strip(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{processor_says('model name')}, {len(os.sched_getaffinity(0))} cores, two threads, {loaded}",
        "n": f"{given.users:,} users, {given.repeats} repeats",
    }


def main() -> None:
    """Measure, or be the worker of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--rankers", default=",".join(RANKERS), help="names in the table of the run")
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--before", help="git revision to compare with")
    parser.add_argument("--before-users", type=int, default=2_000)
    parser.add_argument("--implicit", action="store_true", help="measure implicit, too")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULT.name}")
    parser.add_argument("--worker", choices=["ours", "implicit"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        time_it = time_ours if given.worker == "ours" else time_implicit
        sys.stdout.write(json.dumps(time_it(given.run, given.rankers, given.users)) + "\n")
        return
    about = facts(given)
    table = compare(given)
    shown = Table(*table["columns"])
    for row in table["rows"]:
        shown.add_row(*row)
    Console(width=120).print(shown)
    if given.save:
        save(json.loads(RESULT.read_text(encoding="utf-8")) | about | {"tables": [table]}, RESULT)


if __name__ == "__main__":
    main()

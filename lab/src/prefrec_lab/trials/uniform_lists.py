"""Expected HR@1 among 20 uniform candidates, from a full ranking: no draw of the candidates adds noise.

The S-DPO and LLaRA papers draw 19 negatives per test row once. With 95 test users the draw alone moves HR@1, so what
is compared here is its expectation over all draws from the items that the user has not seen.
"""

from __future__ import annotations

from math import comb
from pathlib import Path

import numpy as np
import polars as pl

from prefrec.evaluation.intervals import mean_interval, paired_difference
from prefrec.pipeline.opened import open_run
from prefrec_lab.results import Table
from prefrec_lab.trials.shared import whole_catalogue

DRAWN = 19
"""Negatives of a list."""
SHOWN = ("popularity", "item-kNN", "EASE", "window co-occurrence", "title-tower", "blend")
PUBLISHED = 0.526
"""HR@1 of Llama-2-7B after S-DPO on MovieLens, as the paper reports it."""


def expected_hit(better: int, tied: int, others: int, drawn: int = DRAWN) -> float:
    """Return the probability that a target is first among itself and `drawn` of the other items.

    Args:
        better: other items that score above the target.
        tied: other items with its score; each order of equal scores is equally likely.
        others: all other items.
        drawn: items that are drawn from the others without replacement.
    """
    worse = others - better - tied
    lists = [comb(tied, among) * comb(worse, drawn - among) / (among + 1) for among in range(min(tied, drawn) + 1)]
    return sum(lists) / comb(others, drawn)


def hits(predictions: pl.DataFrame) -> np.ndarray:
    """Return the expected HR@1 [B] of one ranker's predictions in full ranking."""
    columns = predictions.sort("row").select("rank", "tied", "listed").iter_rows()
    return np.array([expected_hit(rank - 1, tied, listed - 1) for rank, tied, listed in columns])


def list_table(folder: Path) -> Table:
    """Return expected HR@1 of a run's rankers with intervals over users, and each one minus window co-occurrence."""
    frame = whole_catalogue(folder)
    rows = frame.filter(ranker="window co-occurrence").sort("row")
    users, targets = rows["user_id"].to_list(), rows["target"].to_list()
    each = {name: hits(frame.filter(ranker=name)) for name in SHOWN}
    drawn = pl.read_parquet(folder / "predictions.parquet").filter(pl.col("rank") == 1)
    lines = []
    for name, values in each.items():
        mean = mean_interval(values, users, targets)
        gap = paired_difference(values, each["window co-occurrence"], users, targets)
        once = (1 / (1 + drawn.filter(ranker=name)["tied"])).sum() / len(values)
        ends = f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]".replace("-", "−")
        shown = [f"{mean.mean:.3f} [{mean.low:.3f}, {mean.high:.3f}]", f"{once:.3f}"]
        lines.append([name, *shown, "–" if name == "window co-occurrence" else ends])
    lines.append(["S-DPO, Llama-2-7B", "–", f"{PUBLISHED:.3f}", "–"])
    items = len(open_run(folder).data.catalogue)
    title = f"MovieLens-100K, the last tenth of 943 users: HR@1 among 20 of {items:,} items, {len(users)} rows"
    columns = ["model", "expected HR@1", "HR@1, one draw", "expected, minus window co-occurrence"]
    return {"title": title, "columns": columns, "rows": lines}

"""Made-up data with clean lists."""

import numpy as np
import polars as pl

from drawn_logs import make_log
from prefrec.data import Catalogue, PreparedData, RankingExample


def made_up(seed: int) -> PreparedData:
    """Users, items and lists without any pattern: 40 test lists of 6 candidates."""
    rng, ids = np.random.default_rng(seed), [str(i) for i in range(30)]
    catalogue = Catalogue(pl.DataFrame({"item_id": ids, "title": [f"Title {i}" for i in ids]}))

    def rows(n: int, name: str) -> list[RankingExample]:
        drawn = [rng.permutation(ids).tolist() for _ in range(n)]
        targets = rng.integers(3, 9, n)
        return [
            RankingExample(f"{name}{u}", tuple(d[:3]), tuple(d[3:9]), d[t])
            for u, (d, t) in enumerate(zip(drawn, targets, strict=True))
        ]

    log = make_log([(f"u{u}", str(i), t) for u in range(30) for t, i in enumerate(rng.permutation(30)[:5])])
    protocol = {"format_version": 3, "domain": "generic"}
    return PreparedData(catalogue, rows(50, "u"), [], rows(40, "w"), log, protocol)

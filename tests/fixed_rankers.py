"""A catalogue of six items, and a ranker with an order of its own."""

import numpy as np
import polars as pl

from prefrec.data import Catalogue

ITEMS = list("abcdef")
CATALOGUE = Catalogue(pl.DataFrame({"item_id": ITEMS, "title": [f"Title {i}" for i in ITEMS]}))


class Fixed:
    """Scores by an order of the items."""

    def __init__(self, name: str, order: str) -> None:
        self.name = name
        self.order = order

    def score(self, examples):
        width = max(len(e.candidates) for e in examples)
        rows = [[-float(self.order.index(c)) for c in e.candidates] for e in examples]
        return np.array([r + [-np.inf] * (width - len(r)) for r in rows])

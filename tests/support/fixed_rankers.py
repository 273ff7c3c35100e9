"""A catalogue of six items, and a ranker with an order of its own."""

import numpy as np
import polars as pl

from prefrec.data import Catalogue
from prefrec.stages.base import RankerStage, View

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


class FixedStage(RankerStage):
    """The stage of a ranker that is in memory; `full` is its ranker for full ranking, if it supports that.

    `less` are its ablations.
    """

    less = ()

    def __init__(self, ranker, key=None, full=None):
        self.name = ranker.name
        self.ranker = ranker
        self._key = key or ranker.name
        self._full = full

    @property
    def key(self):
        return self._key

    def load(self, batch_size):
        return self.ranker

    @property
    def ablations(self):
        return [*self.less]

    @property
    def full(self):
        return FixedStage(self._full, self._key, self._full) if self._full else None


class ListsAlone(View):
    """A stage whose ranker does not support full ranking."""

    full = None

    def load(self, batch_size):
        return self.of.load(batch_size)

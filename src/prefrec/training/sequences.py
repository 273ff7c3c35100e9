"""Users' histories as training rows in which every title is a target, cut and subsampled anew every epoch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Catalogue
from prefrec.errors import DataError, TokenizerError
from prefrec.lm.items import ItemTrajectoryEncoder
from prefrec.prompts import Trajectory, TrajectoryEncoder
from prefrec.training.datasets import EncodedRows
from prefrec.training.defaults import LEAST


class TrajectoryDataset(EncodedRows):
    """A dataset of rows with about `titles` titles each, for SFT.

    A user's history of n titles becomes ceil(n / titles) rows, or fewer if one would have less than `LEAST` titles.
    Every epoch cuts it at other positions and drops each title with probability `drop`, so that a title does not
    always follow the same one. The random choices depend only on seed, epoch and user.

    Args:
        histories: titles of each user, oldest first; users with fewer than `LEAST` titles are dropped.
        encoders: one encoder per phrasing; each row uses a random one.
        titles: approximate number of titles per row; cuts move by up to half a row.
        drop: probability of dropping a title.
        max_length: maximum number of tokens per row; the oldest titles of longer rows are dropped. Default: no limit.

    Raises:
        DataError: no user has `LEAST` titles.
    """

    def __init__(
        self,
        histories: Sequence[Sequence[str]],
        encoders: Sequence[TrajectoryEncoder | ItemTrajectoryEncoder],
        *,
        titles: int,
        drop: float = 0.0,
        max_length: int | None = None,
        seed: int = 0,
    ) -> None:
        self.histories = [h for h in histories if len(h) >= LEAST]
        if not self.histories:
            raise DataError(f"no user of the training data has {LEAST} interactions")
        self.encoders = list(encoders)
        self.drop = drop
        self.max_length = max_length
        self.seed = seed
        self._counts = [min(-(-len(h) // titles), len(h) // LEAST) for h in self.histories]
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Cut and subsample the histories for this epoch."""
        self.epoch = epoch
        self.__dict__.pop("choice_sets", None)

    @cached_property
    def choice_sets(self) -> list[Trajectory]:
        """The rows of this epoch."""
        return [row for user in range(len(self.histories)) for row in self._rows(user)]

    def __len__(self) -> int:
        return sum(self._counts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"choices": self.choice_sets[index]}

    def _rows(self, user: int) -> Iterator[Trajectory]:
        history, count = self.histories[user], self._counts[user]
        rng = np.random.default_rng((self.seed, self.epoch, user))
        shift = rng.uniform(-0.5, 0.5)
        inner = np.floor((np.arange(1, count) + shift) * len(history) / count).astype(int)
        # A row of one title has no title to learn from. With `titles` of 7 or more, all cuts lie within these bounds.
        least = LEAST * np.arange(1, count)
        inner = np.clip(inner, least, len(history) - least[::-1])
        cuts = [0, *inner.tolist(), len(history)]
        for start, end in pairwise(cuts):
            kept = start + np.flatnonzero(rng.random(end - start) >= self.drop)
            if len(kept) < LEAST:
                kept = np.arange(start, end)
            encoder = self.encoders[rng.integers(len(self.encoders))]
            yield self._fitted(encoder, [history[i] for i in kept])

    def _fitted(self, encoder: TrajectoryEncoder | ItemTrajectoryEncoder, titles: list[str]) -> Trajectory:
        row = encoder.encode(titles)
        while self.max_length is not None and row.length > self.max_length:
            if len(titles) <= LEAST:
                raise TokenizerError(
                    f"{len(titles)} titles have {row.length} tokens, but max_length is {self.max_length}: raise it "
                    f"(the first title begins with {titles[0][:60]!r})"
                )
            share = self.max_length / row.length
            titles = titles[len(titles) - max(LEAST, min(len(titles) - 1, int(share * len(titles)))) :]
            row = encoder.encode(titles)
        return row


def user_histories(interactions: pl.DataFrame, catalogue: Catalogue) -> list[list[str]]:
    """Return the titles of each user, oldest first; `interactions` are grouped by user and sorted by time."""
    users = interactions.group_by("user_id", maintain_order=True).agg("item_id")
    return [catalogue.titles_of(items) for items in users["item_id"].to_list()]

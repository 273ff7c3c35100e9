"""Cut a log into what is learnt and what is held out, and sample the candidates of its examples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import track
from prefrec.data import splits
from prefrec.data.candidates import (
    SampledCandidates,
    item_weights,
    keys_without,
    pair_keys,
    published_candidates,
    window_codes,
    with_candidates,
)
from prefrec.data.rows import CandidateSets, LazyExamples, RankingExample
from prefrec.data.target_candidates import auto_kind, target_candidates
from prefrec.data.types import LOG_SCHEMA, SPLITS
from prefrec.errors import DataError
from prefrec.intake.config import PrepareConfig
from prefrec.intake.sources.base import GivenSplit

Change = Callable[[splits.Sequences, splits.Split], splits.Split]
Parts = Mapping[str, Sequence[RankingExample]]
"""The examples of training, validation and test."""


class Cut(ABC):
    """A log that is cut into parts, whose examples have no candidates yet.

    Attributes:
        config: how examples are made.
        sampler: samples uniform candidates of validation and test examples. Its users are those of `sequences`,
            perhaps followed by others.
        sequences: the log. `OwnCut` removes the columns of its frame.
        ids: item ids of the catalogue. Items are elsewhere indices into it.
        items: items of all sequences [n].
        learn: which interactions of the sequences to learn from [n].
        learnt: their items.
        interactions: the interactions to learn from.
        held_out: all other interactions.
        unmeasured: targets of the validation examples that are left out (`kept_rows`), as interactions.
        undated: `user_id, item_id, timestamp` of interactions that are not learnt and have no order. Times are empty.
        owners: user of each example, for validation and test.
        targets: target of each example, for validation and test.
        facts: counts for the protocol, such as of dropped users.
    """

    items: NDArray[np.int32]
    learn: NDArray[np.bool_]
    learnt: NDArray[np.int32]
    interactions: pl.DataFrame
    held_out: pl.DataFrame
    unmeasured: pl.DataFrame
    undated: pl.DataFrame
    owners: dict[str, NDArray[Any]]
    targets: dict[str, NDArray[Any]]
    facts: dict[str, Any]

    def __init__(
        self, config: PrepareConfig, sampler: SampledCandidates, sequences: splits.Sequences, ids: Sequence[str]
    ) -> None:
        self.config, self.sampler, self.sequences, self.ids = config, sampler, sequences, ids

    @abstractmethod
    def build(self, part: str, sets: CandidateSets) -> Sequence[RankingExample]:
        """Return the examples of a part with candidates from `sets`."""

    def examples(self) -> tuple[str, Parts]:
        """Return the kind of candidates, and the examples of all parts with their candidates.

        If `auto` chooses `targets` and an example has too few of them, the kind is `uniform`.
        """
        kind = self.config.candidates.kind
        if kind != "auto":
            return kind, self._with_candidates(kind)
        chosen = auto_kind(np.concatenate([*self.targets.values()]), self._sold)
        try:
            return chosen, self._with_candidates(chosen)
        except DataError:
            if chosen != "targets":
                raise
            return "uniform", self._with_candidates("uniform")

    def _with_candidates(self, kind: str) -> Parts:
        sampler = self.sampler
        if kind == "published":
            return {
                part: published_candidates(self.build(part, _only_target), self.ids, sampler.size) for part in SPLITS
            }
        weights = item_weights(self.config.candidates.kind, self.learnt, len(self.ids))
        # Training examples are sampled again when they are read, from all items.
        train = replace(sampler, weights=weights, split="train", touched=self._known_keys)
        sets: dict[str, CandidateSets] = {"train": train}
        for part in SPLITS[1:]:
            sets[part] = of_part = replace(sampler, weights=weights * sampler.weights, split=part)
            if kind == "targets":
                sets[part] = target_candidates(of_part, self.owners[part], self.targets[part], self._sold)
        return {part: self.build(part, sets[part]) for part in SPLITS}

    @property
    def _sold(self) -> NDArray[np.bool_]:
        """Whether each item occurs in training interactions [I]."""
        return np.bincount(self.learnt, minlength=len(self.ids)) > 0

    @property
    def _known_keys(self) -> NDArray[np.int64]:
        """The keys of what users touched (`pair_keys`) without held-out interactions, for training examples."""
        # Held-out items may be training negatives of their user: their absence would reveal them to a model.
        held_out = ~self.learn
        owners = np.searchsorted(self.sequences.offsets, np.flatnonzero(held_out), side="right") - 1
        return keys_without(self.sampler.touched, pair_keys((owners, self.items[held_out]), len(self.ids)))


class OwnCut(Cut):
    """A log that is cut by `config.split`, after which `change` may replace the split."""

    def __init__(
        self,
        config: PrepareConfig,
        sampler: SampledCandidates,
        sequences: splits.Sequences,
        ids: Sequence[str],
        change: Change | None = None,
    ) -> None:
        super().__init__(config, sampler, sequences, ids)
        split = _split(config, sequences)
        if change:
            split = change(sequences, split)
        short = self._drop_short(split) if config.repeats == "keep" else 0
        self._place(split)
        if short:
            self.facts["examples_too_short"] = short
        self.interactions, self.learnt = split.take_interactions(), self.items[split.learn]

    def _drop_short(self, split: splits.Split) -> int:
        """Drop validation and test examples with too few interactions before the time of the target; return how many.

        With repeats, what is bought at one time has no order: the rest of a basket does not precede an item of it.
        """
        moments, offsets, dropped = self.sequences.moments, self.sequences.offsets, 0
        for part in SPLITS[1:]:
            users, places = split.rows[part].T
            kept = moments[offsets[users] + places] - offsets[users] >= self.config.min_history
            if not kept.any():
                raise DataError(
                    f"no {part} example has min_history={self.config.min_history} interactions before the time of "
                    "its target: lower --min-history (`min_history` in a recipe), or set repeats to drop"
                )
            split.rows[part] = split.rows[part][kept]
            dropped += int((~kept).sum())
        return dropped

    def _place(self, split: splits.Split) -> None:
        """Find where the examples of a split are in the sequences, and what is held out."""
        rows, facts = _kept_rows(self.config, split.rows, self.sampler)
        left_out = _left_out(split.rows["validation"], rows["validation"])
        split.rows.clear()  # a row takes 8 bytes, its position 4
        self.learn, self.facts = split.learn, split.facts | facts
        self.held_out = self.sequences.frame.filter(pl.Series(~split.learn))
        self.undated = self.held_out.select(*LOG_SCHEMA).clear()
        self.unmeasured = self.sequences.frame.select(*LOG_SCHEMA)[
            self.sequences.offsets[left_out[:, 0]] + left_out[:, 1]
        ]
        self.items = indices(self.sequences.items, self.ids)
        # On disk, a training example is only the position of its target in the training interactions.
        self.offsets = dict.fromkeys(SPLITS, self.sequences.offsets)
        self.offsets["train"] = _offsets_in(self.sequences, split.learn, rows["train"])
        self.positions = {
            part: self.offsets[part].astype(np.uint32)[of_split[:, 0]] + of_split[:, 1].astype(np.uint32)
            for part, of_split in rows.items()
        }
        self.owners = {part: rows[part][:, 0] for part in SPLITS[1:]}
        self.targets = {part: self.items[self.positions[part]] for part in SPLITS[1:]}
        self.times = dict[str, NDArray[np.int64]]()
        self.ends = dict[str, NDArray[np.int64]]()
        if self.config.repeats == "keep":
            self.times = {part: self.sequences.timestamps[self.positions[part]] for part in SPLITS[1:]}
            self.ends = {part: self.sequences.moments[self.positions[part]] for part in SPLITS[1:]}

    def build(self, part: str, sets: CandidateSets) -> LazyExamples:
        """Return the examples of a part, which are built on access."""
        offsets, positions = self.offsets[part], self.positions[part]
        flat = self.items if offsets is self.sequences.offsets else self.learnt
        users, length = self.sequences.users, self.config.history_length
        times, ends = self.times.get(part), self.ends.get(part)
        return LazyExamples(self.ids, users, flat, offsets, positions, length, sets, times, ends)


class GivenCut(Cut):
    """A log with ready-made examples, `given` by its source."""

    def __init__(
        self,
        config: PrepareConfig,
        sampler: SampledCandidates,
        sequences: splits.Sequences,
        ids: Sequence[str],
        given: GivenSplit,
    ) -> None:
        names = [w.user_id for of_split in given.windows.values() for w in of_split]
        users = pl.Series([*dict.fromkeys([*sequences.users, *names])], dtype=pl.String)
        super().__init__(config, replace(sampler, users=users), sequences, ids)
        self.windows = given.windows
        # The fourth column is the number of the window.
        coded = {
            part: np.column_stack([window_codes(of_split, users, ids), np.arange(len(of_split))])
            for part, of_split in given.windows.items()
        }
        self.coded, self.facts = _kept_rows(config, coded, self.sampler)
        self.owners = {part: self.coded[part][:, 0] for part in SPLITS[1:]}
        self.targets = {part: self.coded[part][:, 2] for part in SPLITS[1:]}
        self.items = indices(sequences.items, ids)
        pairs = np.repeat(np.arange(len(sequences.users)), sequences.lengths) * len(ids) + self.items
        self.learn = np.isin(pairs, log_keys(given.learn, sequences.users, ids))
        self.learnt = self.items[self.learn]
        self.interactions = sequences.frame.filter(pl.Series(self.learn))
        others = sequences.frame.filter(pl.Series(~self.learn))
        left_out = _left_out(coded["validation"], self.coded["validation"])
        self.held_out, self.undated = others, others.select(*LOG_SCHEMA).clear()
        self.unmeasured = sequences.frame.select(*LOG_SCHEMA).filter(
            pl.Series(np.isin(pairs, left_out[:, 0] * len(ids) + left_out[:, 2]))
        )
        if not given.ordered:  # then it is unknown what came before an example
            self.undated = others.select("user_id", "item_id", timestamp=pl.lit(None, pl.Int64))
            self.held_out, self.unmeasured = others.clear(), self.unmeasured.clear()

    def build(self, part: str, sets: CandidateSets) -> list[RankingExample]:
        """Return the examples of a part."""
        coded = self.coded[part]
        windows = [self.windows[part][n] for n in coded[:, 3].tolist()]
        progress = partial(track, description=f"{part} candidates")
        return with_candidates(windows, coded[:, :3], self.ids, sets, self.sampler.size, progress)


def _kept_rows(
    config: PrepareConfig, rows: Mapping[str, NDArray[Any]], sampler: SampledCandidates
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Return the examples of users with enough unseen items, at most `max_…_rows` of a part, and facts.

    The first column of `rows` is the user. Raise DataError if a part loses all its examples.
    """
    users = np.unique(np.concatenate([of_split[:, 0] for of_split in rows.values()]))
    # `published_candidates` makes this check itself.
    short = users[:0] if config.candidates.kind == "published" else sampler.short(users)[0]
    kept = {}
    for part, of_split in rows.items():
        roomy = of_split[~np.isin(of_split[:, 0], short)] if len(short) else of_split
        if len(of_split) and not len(roomy):
            sampler.check(short)
        kept[part] = roomy[sample_rows(config, part, roomy[:, 0])]
    return kept, {"users_without_room": len(short)} if len(short) else {}


def _left_out(rows: NDArray[Any], kept: NDArray[Any]) -> NDArray[Any]:
    """Return the examples, with their users and positions in the first two columns, that are not among the kept."""
    users, places = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    length = 1 + int(places.max(initial=0))
    return rows[~np.isin(users * length + places, kept[:, 0].astype(np.int64) * length + kept[:, 1])]


def _only_target(_: Any, owners: Any, positions: Any, targets: NDArray[np.int32]) -> list[list[int]]:
    return targets[:, None].tolist()


def indices(names: pl.Series, ids: Sequence[str] | pl.Series) -> NDArray[np.int32]:
    """Return the index in `ids` of each of these items or users, a series of `Enum`; -1 for those not in `ids`."""
    indices = np.full(len(names.dtype.categories), -1, dtype=np.int32)  # type: ignore[attr-defined]
    indices[pl.Series(ids, dtype=pl.String).cast(names.dtype).to_physical().to_numpy()] = np.arange(len(ids))
    return indices[names.to_physical().to_numpy()]


def log_keys(log: pl.DataFrame, users: pl.Series, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the keys (`pair_keys`) of the interactions with these users and items."""
    owners, items = indices(log["user_id"], users), indices(log["item_id"], ids)
    known = (owners >= 0) & (items >= 0)
    return pair_keys((owners, items) if known.all() else (owners[known], items[known]), len(ids))


def _offsets_in(sequences: splits.Sequences, learn: NDArray[np.bool_], rows: splits.Targets) -> NDArray[np.int64]:
    """Return where each user begins in the training interactions, or in all if those lack a target or its history."""
    counts = np.add.reduceat(learn, sequences.offsets[:-1], dtype=np.int32)  # each user has an interaction
    offsets = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    are_first = np.array_equal(learn, sequences.positions < np.repeat(counts, sequences.lengths))
    return offsets if are_first and (rows[:, 1] < counts[rows[:, 0]]).all() else sequences.offsets


def _split(config: PrepareConfig, sequences: splits.Sequences) -> splits.Split:
    match config.split_name:
        case "leave-last-out":
            return splits.leave_last_out(sequences, config.min_history)
        case "time":
            return splits.by_time(sequences, config.min_history, config.windows or "all")
        case "time-share":
            return splits.by_share(sequences, config.min_history, config.windows or "last", config.seed)
        case _:
            return splits.by_user(sequences, config.min_history, config.windows or "last")


def sample_rows(config: PrepareConfig, part: str, users: Sequence[str] | NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the indices of the examples of a part to keep, given the user of each."""
    limit: int | None = getattr(config, f"max_{part}_rows")
    # Each part has its own generator, so that the limit of one does not change the examples of another.
    rng = np.random.default_rng([config.seed, 2, SPLITS.index(part)])
    if limit is None or len(users) <= limit:
        return np.arange(len(users))
    if part == "train":
        return np.sort(rng.choice(len(users), size=limit, replace=False))
    return splits.sample_users(users, limit, rng)

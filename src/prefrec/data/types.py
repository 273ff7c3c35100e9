"""Types of prepared data: catalogue, ranking examples, windows."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import polars as pl
import polars.selectors as cs

from prefrec.data.rows import RankingExample, spread, take
from prefrec.data.titles import UNSAFE, clean_titles
from prefrec.equality import ByValue
from prefrec.errors import DataError

FORMAT_VERSION = 3
"""Version of the folder format that `prefrec prepare` writes, and the only one that is read."""
SPLITS = ("train", "validation", "test")
COUNTED = 100_000_000
"""Seconds since 1970, a day in 1973. If all times are smaller, they are counters and not dates."""
ITEM_SCHEMA = {"item_id": pl.String, "title": pl.String}
LOG_SCHEMA = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
WEIGHT = "weight"
"""Column of a log whose kinds of interactions have weights, from 0 to 1. Without it, all weights are 1."""
IS_TARGET = "is_target"
"""Column of a log that is being prepared: whether an interaction is of a kind that targets may have."""
_PAIR = {"user_id": pl.String, "item_id": pl.String}
_MOMENT = {**_PAIR, "timestamp": pl.Int64}
TESTED = "tested"
"""Key in the split's facts for the test examples of the earlier run that an update holds out, by their `identity`."""
_ID, _IDS = pl.String(), pl.List(pl.String)
EXAMPLE_SCHEMA = pl.Schema({"user_id": _ID, "history": _IDS, "candidates": _IDS, "target": _ID})


@dataclass(frozen=True, slots=True)
class Window:
    """A ranking example without candidates.

    `position` is the target's index in the user's sequence. Together with `user_id` it identifies the example.
    """

    user_id: str
    position: int
    history: tuple[str, ...]
    target: str


@dataclass(frozen=True, eq=False)
class Catalogue(ByValue):
    """The items and their titles: a polars frame with `item_id: str`, `title: str` and further columns.

    Titles with `UNSAFE` characters are cleaned (`clean_titles`). NaN becomes null, because it is how pandas writes an
    absent number, and because polars compares it as the largest one: `price > 10` would be true for it.
    """

    frame: pl.DataFrame

    def __post_init__(self) -> None:
        title = pl.col("title")
        safe = pl.when(title.str.contains(UNSAFE)).then(clean_titles(title)).otherwise(title)
        frame = self.frame.with_columns(safe.alias("title"), cs.float().fill_nan(None))
        object.__setattr__(self, "frame", frame)

    @cached_property
    def titles(self) -> dict[str, str]:
        """item_id → title, in the catalogue's order."""
        return dict(self.frame.select("item_id", "title").iter_rows())

    @cached_property
    def ids(self) -> list[str]:
        """Item ids in the catalogue's order."""
        return self.frame["item_id"].to_list()

    @cached_property
    def index(self) -> dict[str, int]:
        """Item id → place in the catalogue."""
        return {item: i for i, item in enumerate(self.ids)}

    def titles_of(self, item_ids: Iterable[str]) -> list[str]:
        """Return the titles of `item_ids`, in their order. Raise DataError if one is not in the catalogue."""
        try:
            return [self.titles[i] for i in item_ids]
        except KeyError as e:
            raise DataError(f"item {e.args[0]!r} is not in the catalogue of {len(self)} items") from None

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True, eq=False)
class PreparedData(ByValue):
    """A prepared data set, made by `prefrec prepare`.

    Attributes:
        catalogue: items and titles.
        train, validation, test: ranking examples with candidates, as a list or as `LazyExamples`.
        train_interactions: frame `user_id, item_id, timestamp[, rating][, impressions][, weight]` (str, str, Int64
            seconds, Float64, list of str, Float64), sorted by user and time. A recommender may learn from all of it;
            it contains no validation or test target. `impressions` are items that were shown but not clicked.
        protocol: source, split, candidates, seeds and counts, as plain JSON values.
        users: `user_id` and attributes such as age or gender, all text, one row per user, or None. They group users
            in studies and are not part of any prompt.
        held_out_interactions: all other interactions of the log, with the same columns, also of users without
            examples. Rankers learn the `validation_interactions` among them, and nothing the rest. None if there is
            no such log.
        unmeasured: `user_id, item_id, timestamp` of the targets of validation examples that the data leave out, by
            `max_validation_rows` or for want of candidates. They are learnt like the others. None: there are none.
        touched: `user_id, item_id, timestamp` of what users touched besides these logs, because filters dropped it.
            It is never answered to them, and full ranking leaves out what was touched before the target. A time that
            is not known is null. None: nothing was touched besides.

    `prefrec.data.seen` says what of these is known of a user.
    """

    catalogue: Catalogue
    train: Sequence[RankingExample]
    validation: Sequence[RankingExample]
    test: Sequence[RankingExample]
    train_interactions: pl.DataFrame
    protocol: dict[str, Any] = field(default_factory=dict)
    users: pl.DataFrame | None = None
    held_out_interactions: pl.DataFrame | None = None
    unmeasured: pl.DataFrame | None = None
    touched: pl.DataFrame | None = None

    @property
    def domain(self) -> str:
        """`movies`, `music`, `books` or `generic`: which prompt templates fit."""
        return str(self.protocol.get("domain", "generic"))

    @property
    def logs(self) -> list[pl.DataFrame]:
        """The training interactions, and the held-out ones if there are any."""
        return [log for log in (self.train_interactions, self.held_out_interactions) if log is not None]

    @property
    def history_length(self) -> int:
        """Largest number of items of an example's history."""
        return int(self.protocol.get("config", {}).get("history_length", 10))

    @property
    def keeps_repeats(self) -> bool:
        """Whether a user can have several interactions with one item (`repeats: keep`)."""
        return bool(self.protocol.get("config", {}).get("repeats") == "keep")

    @property
    def identity(self) -> dict[str, type[pl.DataType]]:
        """The columns of the log that identify an interaction, and their types."""
        return dict(_MOMENT if self.keeps_repeats else _PAIR)

    def targets(self, rows: Iterable[RankingExample]) -> pl.DataFrame:
        """Return the targets of validation or test examples as interactions: a frame of the `identity` columns."""
        keys = [(e.user_id, e.target, e.time)[: len(self.identity)] for e in rows]
        return pl.DataFrame(keys, self.identity, orient="row")

    @property
    def opinions(self) -> pl.DataFrame:
        """The training interactions, without ratings that are only play counts."""
        counts = self.protocol.get("rating_counts", False)
        return self.train_interactions.drop("rating") if counts else self.train_interactions

    @property
    def summary(self) -> list[str]:
        """Lines to print: examples, split, what was dropped, and the notes of the source."""
        counts, candidates = self.protocol["counts"], self.protocol["candidates"]
        parts = (
            f"{n:,} {part} examples of {counts['row_users'][part]:,} users" for part, n in counts["rows"].items()
        )
        lines = [
            ", ".join(parts),
            f"{counts['users']:,} users, {counts['items']:,} items, {counts['interactions']:,} interactions, "
            f"{counts['train_interactions']:,} of them to learn from",
            f"split {self.protocol['split']}, {candidates['size']} candidates ({candidates['kind']}), "
            f"seed {self.protocol['seed']}",
        ]
        facts, repeats = self.protocol["split_facts"], counts.get("repeats_dropped")
        short, full = (facts.get(f"users_{why}") for why in ("too_short", "without_room"))
        lines += [f"{short:,} users without examples: history too short; they are answered"] if short else []
        if few_targets := facts.get("users_with_few_targets"):
            lines.append(f"{few_targets:,} users without measured examples: too few targets; they are learnt")
        if early := facts.get("examples_too_short"):
            lines.append(f"{early:,} validation and test examples left out: too few items before their basket")
        few = f"fewer than {candidates['size'] - 1} unseen items (candidates.size)"
        lines += [f"{full:,} users without examples: {few}; they are answered"] if full else []
        if repeats:
            lines.append(f"{repeats:,} repeated interactions dropped; `repeats: keep` keeps them")
        if kept := counts.get("repeats_kept"):
            share = f"{kept / counts['interactions']:.0%} of interactions"
            lines.append(f"{kept:,} repeated interactions kept ({share})")
        if cut := counts.get("dropped_by_core"):
            who = " and ".join(f"{counts.get(f'{what}_dropped_by_core', 0):,} {what}" for what in ("users", "items"))
            lines.append(f"user_core and item_core dropped {who} with {cut:,} interactions")
        return [*lines, *self.protocol["notes"]]

    def split(self, name: str) -> Sequence[RankingExample]:
        """Return the examples of `train`, `validation` or `test`."""
        if name not in SPLITS:
            raise DataError(f"unknown split {name!r}: expected train, validation or test")
        return cast(Sequence[RankingExample], getattr(self, name))

    def examples(self, name: str, n: int | None) -> list[RankingExample]:
        """Return n examples of a split, spread over its users (`spread`).

        Examples keep the order of the split. Validation and test examples have a `time` if the data have dates, or
        keep repeats, and `history_times` with both (`has_history_times`).

        Args:
            name: `train`, `validation` or `test`.
            n: number of examples, or None for all of them.
        """
        rows = self.split(name)
        chosen = rows if n is None else take(rows, np.array(spread(rows, n), dtype=np.int64))
        return self._with_times(name, chosen)

    @cached_property
    def has_dates(self) -> bool:
        """Whether the times of the log are dates rather than counters."""
        return has_dates(self.train_interactions)

    @property
    def has_history_times(self) -> bool:
        """Whether histories have times: the data keep repeats, and their times are dates."""
        return self.keeps_repeats and self.has_dates

    def known_interactions(self, split: str) -> pl.DataFrame:
        """Return the interactions that are known before the examples of a split.

        These are the training interactions. For `test`, the `validation_interactions` are added.
        """
        if split != "test" or self.held_out_interactions is None:
            return self.train_interactions
        log = pl.concat([self.train_interactions, self.validation_interactions], how="diagonal")
        return log.sort("user_id", "timestamp", maintain_order=True)

    @cached_property
    def validation_interactions(self) -> pl.DataFrame:
        """What rankers may learn before test examples: held-out interactions up to a user's last validation target.

        Limits of measured rows do not shorten them: targets of examples that are left out count, too. Test examples
        of an earlier run, which an update holds out to measure forgetting, are not among them. With
        `learn_validation: false` there are none.
        """
        later = self.held_out_interactions
        if later is None or not self.protocol.get("config", {}).get("learn_validation", True):
            return self.train_interactions.clear()
        same = [*self.identity]
        targets = self.validation_targets.unique().with_columns(is_target=True)
        marked = later.join(targets, on=same, how="left", maintain_order="left")
        # Held-out interactions are in the order of users and time.
        still_to_come = pl.col("is_target").fill_null(False).reverse().cum_max().reverse().over("user_id")
        known = marked.filter(still_to_come).drop("is_target")
        tested = pl.DataFrame(self.protocol.get("split_facts", {}).get(TESTED, []), self.identity, orient="row")
        return known.join(tested, on=same, how="anti", maintain_order="left")

    @property
    def validation_targets(self) -> pl.DataFrame:
        """The targets of validation examples, also of those that are left out: a frame of the `identity` columns."""
        targets = self.targets(self.validation)
        return targets if self.unmeasured is None else pl.concat([targets, self.unmeasured.select(*self.identity)])

    def _with_times(self, name: str, rows: Sequence[RankingExample]) -> list[RankingExample]:
        if name == "train" or not self.has_dates or self.held_out_interactions is None:
            return list(rows)
        if self.keeps_repeats:  # then examples have their time already
            return [replace(e, history_times=self._times_before(e)) for e in rows]
        later = self.held_out_interactions.select(*LOG_SCHEMA)
        asked = self.targets(rows).unique()  # the log may be far longer
        known = {(user, item): time for user, item, time in later.join(asked, on=[*_PAIR], how="semi").iter_rows()}
        times = (known.get((e.user_id, e.target)) for e in rows)
        return [e if e.time == time else replace(e, time=time) for e, time in zip(rows, times, strict=True)]

    def _times_before(self, example: RankingExample) -> tuple[int, ...]:
        """Return the times of an example's history; empty if the log lacks some of it."""
        times, length = self._logged_times.get(example.user_id, []), len(example.history)
        end = 0 if example.time is None else bisect_left(times, example.time)
        return tuple(times[end - length : end]) if length <= end else ()

    @cached_property
    def _logged_times(self) -> dict[str, list[int]]:
        """User → times of all interactions, ascending."""
        log = pl.concat(log.select("user_id", "timestamp") for log in self.logs)
        return dict(log.group_by("user_id").agg(pl.col("timestamp").sort()).iter_rows())


def has_dates(log: pl.DataFrame) -> bool:
    """Return True if the times of a log are dates rather than counters."""
    return len(log) > 0 and cast(int, log["timestamp"].min()) >= COUNTED


def examples_to_frame(examples: Sequence[RankingExample], *, times: bool = False) -> pl.DataFrame:
    """Return a frame with one row per example (columns user_id, history, candidates, target, and perhaps time)."""
    rows = [(e.user_id, list(e.history), list(e.candidates), e.target) for e in examples]
    frame = pl.DataFrame(rows, schema=EXAMPLE_SCHEMA, orient="row")
    return frame.with_columns(pl.Series("time", [e.time for e in examples], pl.Int64)) if times else frame


def frame_to_examples(frame: pl.DataFrame) -> list[RankingExample]:
    """Return the examples of a frame made by `examples_to_frame`."""
    columns = (frame[c].to_list() for c in EXAMPLE_SCHEMA)
    return [RankingExample(u, tuple(h), tuple(c), t) for u, h, c, t in zip(*columns, strict=True)]

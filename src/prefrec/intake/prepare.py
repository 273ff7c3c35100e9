"""Prepare ranking examples from a configuration: source → filters → split → candidates → protocol."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl

from prefrec.console import warn
from prefrec.data import splits
from prefrec.data.candidates import SampledCandidates
from prefrec.data.rows import LazyExamples, RankingExample
from prefrec.data.times import LONE_GAP, SUBSECOND, log_end, most_lone, time_columns
from prefrec.data.types import COUNTED, FORMAT_VERSION, LOG_SCHEMA, SPLITS, Catalogue, PreparedData, has_dates
from prefrec.errors import ConfigError, DataError, without_secrets
from prefrec.intake.config import PrepareConfig
from prefrec.intake.cuts import Change, Cut, GivenCut, OwnCut, Parts, log_keys
from prefrec.intake.filters import filter_log, touched_besides
from prefrec.intake.ids import warn_of_ids
from prefrec.intake.readers import FILE_ORDER
from prefrec.intake.sources.base import Source

# Fraction of tied interactions below which no note is made.
_FEW_TIES = 0.05
_CHOSEN = (
    "{items} are more than twice as common among targets as in the catalogue, so negatives are the targets of other "
    "examples (candidates.kind targets); with uniform negatives, {fact} would reveal the target"
)
_OF_DATES = {"items": "never-sold items", "fact": "an item's age"}
_OF_ORDER = {"items": "items without training interactions", "fact": "an item's number of interactions"}


def prepare(config: PrepareConfig, change: Change | None = None, *, as_codes: bool = False) -> PreparedData:
    """Read a source and make its examples. The same configuration always gives the same data.

    Args:
        config: the source, and how examples are made.
        change: replaces the split. Not called if the source has its own split.
        as_codes: leave the ids of interactions as codes, which halves the memory and is enough to write them.

    Raises:
        DataError: the files cannot be used, or no interaction is left.
        ConfigError: the source lacks something that the configuration needs.
    """
    preparation = Preparation(config)
    if (ready := preparation.read()) is not None:
        return ready
    preparation.filter()
    preparation.sort()
    return preparation.data(preparation.cut(change), as_codes)


class Preparation:
    """A data set while it is prepared. Each step drops the tables that later steps do not need.

    Attributes:
        config: the source, and how examples are made.
        source: the source as read (`read`). After `filter`, its log is empty; after `sort`, `touched` is too.
        counts: counts for the protocol.
        notes: notes for the protocol.
        catalogue: the items that are used (`filter`).
        log: the interactions that are used (`filter`); empty after `sort`.
        served: interactions of users whom `user_core` drops, which are only histories for clients (`filter`).
        dropped: interactions that filters drop (`filter`); empty after `sort`.
        touched: the items in them (`touched_besides`), or None (`sort`).
        sequences: the log, sorted (`sort`).
        sampler: samples candidates that their users have not touched (`sort`).
        users: attributes of users, or None (`sort`).
        has_dates: whether times are dates rather than counters (`filter`).
    """

    source: Source
    catalogue: Catalogue
    log: pl.DataFrame
    served: pl.DataFrame
    dropped: list[pl.DataFrame]
    touched: pl.DataFrame | None
    sequences: splits.Sequences
    sampler: SampledCandidates
    users: pl.DataFrame | None
    has_dates: bool

    def __init__(self, config: PrepareConfig) -> None:
        self.config = config
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []

    def read(self) -> PreparedData | None:
        """Read the source. Return its data if their examples are ready-made, otherwise None."""
        source = self.config.kind.read(self.config)
        if isinstance(source, PreparedData):
            return source
        self.source = _with_codes(source, self.config)
        self.notes += source.notes
        return None

    def filter(self) -> None:
        """Choose the interactions and items to use. Raise DataError if no interaction is left."""
        source, config = self.source, self.config
        warn_of_ids(source.interactions, source.catalogue.frame["item_id"])
        if config.split_name == "time":
            _check_dates(config, source.interactions)
        self.has_dates = has_dates(source.interactions)
        found = filter_log(source, config)
        self.log, self.served, self.dropped, self.counts = found.log, found.served, found.dropped, found.counts
        self.catalogue = _used_items(source, self.log, config)
        self.notes += _time_note(config, source) + _doubt_notes(config, self.log)
        touched = [source.interactions] if source.touched is None else [source.touched]
        touched += [] if source.besides is None else [source.besides]
        pairs = pl.concat(log.select("user_id", "item_id") for log in touched)
        self.source = replace(source, interactions=self.log.clear(), touched=pairs, besides=None)

    def sort(self) -> None:
        """Sort the interactions. Raise DataError if the catalogue is too small for the candidate sets."""
        config, source, ids = self.config, self.source, self.catalogue.ids
        # Sequences have whole seconds only, so ties of a log with finer times are counted before.
        fine = _tied_share(self.log) if SUBSECOND in self.log.columns else None
        self.sequences, self.served = self._ordered(self.log), self._ordered(self.served).frame
        self.log = self.log.clear()
        known = [*self.sequences.users, *self.served["user_id"].unique().cast(pl.String)]
        self.touched, self.dropped = touched_besides(self.dropped, ids, known), []
        self.notes += _tie_note(config, source, self.sequences, fine)
        self.users = _known_users(config, source, self.sequences.users)
        self.counts |= {
            "users": len(self.sequences.users),
            "items": len(ids),
            "interactions": len(self.sequences.frame),
        }
        size = config.candidates.size
        if size > len(ids):
            raise DataError(
                f"{size} candidates cannot be sampled from {len(ids)} items: lower --candidates.size "
                "(`candidates.size` in a recipe) or relax the filters"
            )
        assert source.touched is not None
        touched = source.touched
        if config.repeats == "keep":  # then a candidate may be an item that the user has
            touched = touched.clear()
        keys = log_keys(touched, self.sequences.users, ids)
        weights = np.ones(len(ids))
        if config.unseen_items:  # an item that nobody has had cannot be a target, so it would give itself away
            weights = np.isin(ids, self.sequences.items.unique().to_list()).astype(np.float64)
        self.sampler = SampledCandidates(self.sequences.users, weights, keys, "", config.seed, size)
        self.source = replace(source, touched=None)

    def _ordered(self, log: pl.DataFrame) -> splits.Sequences:
        """Return the log by user and time; what `latest_per_user` takes away is added to `dropped`."""
        ordered = splits.order(log, self.config.seed, self.config.latest_per_user)
        if len(ordered.frame) < len(log):
            moment = [*LOG_SCHEMA]
            self.dropped.append(log.select(moment).join(ordered.frame, on=moment, how="anti"))
        return ordered

    def cut(self, change: Change | None) -> Cut:
        """Return the log cut into parts: by the source's own split, or by that of the configuration and `change`."""
        given, ids = self.source.given, self.catalogue.ids
        if given is not None:
            return GivenCut(self.config, self.sampler, self.sequences, ids, given)
        return OwnCut(self.config, self.sampler, self.sequences, ids, change)

    def data(self, cut: Cut, as_codes: bool) -> PreparedData:
        """Return the data with the candidates of all examples."""
        kind, parts = cut.examples()
        held_out, touched = cut.held_out, cut.undated
        if len(self.served):
            held_out = pl.concat([held_out, self.served]).sort("user_id", maintain_order=True)
        if self.touched is not None:
            touched = pl.concat([self.touched, touched])
        logs = [cut.interactions, held_out, cut.unmeasured, touched]
        if not as_codes:
            logs = [log.with_columns(pl.col("user_id", "item_id").cast(pl.String)) for log in logs]
        protocol = self._protocol(kind, count_rows(cut.interactions, self.catalogue, parts), cut.facts)
        train, validation, test = (parts[part] for part in SPLITS)
        learnt, held_out, *optional = logs
        more = [log if len(log) else None for log in optional]
        return PreparedData(self.catalogue, train, validation, test, learnt, protocol, self.users, held_out, *more)

    def _protocol(self, kind: str, counts: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Return the protocol of data whose candidates are of this kind."""
        config, source, notes = self.config, self.source, [*self.notes]
        if unused := len(source.catalogue) - len(self.catalogue):
            notes.append(
                f"{unused} catalogue items without interactions were dropped; `unseen_items` keeps new items"
            )
        if (config.candidates.kind, kind) == ("auto", "targets"):
            notes.append(_CHOSEN.format(**(_OF_DATES if self.has_dates else _OF_ORDER)))
        return {
            "format_version": FORMAT_VERSION,
            "prefrec": version("prefrec"),
            "source": source.name,
            "domain": config.domain or source.domain,
            "split": config.split_name,
            "candidates": {"kind": kind, "size": config.candidates.size},
            "seed": config.seed,
            "rating_counts": source.counts,
            "config": without_secrets(config.model_dump(mode="json")),
            "counts": counts | self.counts,
            "split_facts": facts,
            "notes": notes,
        }


def _with_codes(source: Source, config: PrepareConfig) -> Source:
    """Return the source with its logs' ids as polars `Enum`, which takes 4 bytes per id and sorts like text."""
    log = source.interactions
    if log.is_empty():
        raise DataError(
            f"{config.path or config.interactions or config.source}: no interaction has both an item and a time; "
            "check that the files belong together"
        )
    users = log["user_id"].unique()
    if source.besides is not None:
        users = pl.concat([users, source.besides["user_id"].unique()])
    ids = {
        "user_id": pl.Enum(users.cast(pl.String).unique().sort()),
        "item_id": pl.Enum(source.catalogue.frame["item_id"].sort()),
    }
    given, touched, besides = source.given, source.touched, source.besides

    def coded(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col(column).cast(kind, strict=False) for column, kind in ids.items())

    return replace(
        source,
        interactions=coded(log),
        # Other users and items than those of the log have no examples.
        touched=None if touched is None else coded(touched.select(*ids)).drop_nulls(),
        besides=None if besides is None else coded(besides).drop_nulls("item_id"),
        given=given and replace(given, learn=coded(given.learn)),
    )


def _known_users(config: PrepareConfig, source: Source, users: pl.Series) -> pl.DataFrame | None:
    """Return the attributes of the log's users, or None if the source has no attributes."""
    if source.users is None:
        return None
    known = source.users.filter(pl.col("user_id").is_in(users.to_list()))
    if config.users is not None:
        if known.is_empty():
            ids = source.users["user_id"].to_list()
            raise DataError(
                f"{config.users}: none of its {len(ids):,} users (such as {ids[0]!r}) is among the "
                f"{len(users):,} users of the log (such as {users[0]!r}); write ids as in the log"
            )
        if len(known) < len(users):
            warn(f"{config.users} has attributes for only {len(known):,} of the log's {len(users):,} users")
    return None if known.is_empty() else known


def _used_items(source: Source, log: pl.DataFrame, config: PrepareConfig) -> Catalogue:
    if source.given:
        return source.catalogue
    used = log["item_id"].unique().to_list()
    if "impressions" in log.columns:
        used += log["impressions"].explode().drop_nulls().unique().to_list()
    kept = pl.col("item_id").is_in(used)
    if config.unseen_items:  # but not items whose interactions a filter has dropped
        kept |= ~pl.col("item_id").is_in(source.interactions["item_id"].unique().to_list())
    return Catalogue(source.catalogue.frame.filter(kept))


def count_rows(learn: pl.DataFrame, catalogue: Catalogue, examples: Parts) -> dict[str, Any]:
    """Return the counts in the protocol of prepared data, if `learn` are all interactions."""
    return {
        "users": learn["user_id"].n_unique(),
        "items": len(catalogue),
        "interactions": len(learn),
        "train_interactions": len(learn),
        "rows": {part: len(rows) for part, rows in examples.items()},
        "row_users": {part: _count_users(rows) for part, rows in examples.items()},
    }


def _count_users(rows: Sequence[RankingExample]) -> int:
    if not isinstance(rows, LazyExamples):
        return len({e.user_id for e in rows})
    # Examples are sorted by user here, so boundaries are enough. If the offsets had another type,
    # `searchsorted` would copy all positions.
    starts = np.searchsorted(rows.target_positions, rows.offsets.astype(rows.target_positions.dtype))
    return int(np.count_nonzero(np.diff(starts)))


def _tied_share(log: pl.DataFrame) -> float:
    """Return the fraction of interactions that have the very time of another interaction of their user."""
    counts = log.group_by("user_id", *time_columns(log)).len()["len"]
    return int(counts.filter(counts > 1).sum()) / len(log)


def _tie_note(config: PrepareConfig, source: Source, sequences: splits.Sequences, fine: float | None) -> list[str]:
    """Return a note with the fraction of interactions whose order is ambiguous, if it is 5% or more.

    If hardly any order is left, users with several times have baskets, and otherwise the times are of another kind
    than of interactions, of which this function warns. `fine` is the fraction if times are finer than the seconds of
    `sequences`.
    """
    if source.given or (share := sequences.tied.mean() if fine is None else fine) < _FEW_TIES:
        return []
    is_days = fine is None and not (sequences.timestamps % 86_400).any()
    days = " (all times are whole days)" if is_days else ""
    note = f"{share:.0%} of interactions are at the same time as another of their user{days}: their order is random"
    if share <= 1 - _FEW_TIES:
        return [note]
    baskets = len(np.unique(sequences.moments))
    if baskets >= 2 * len(sequences.users):
        size = len(sequences.items) / baskets
        note += f". They count as baskets ({size:.1f} items on average): "
        if config.repeats == "keep":
            note += "histories of validation and test examples end before their target's"
        else:
            note += "a history may have items of its target's own"
    else:
        name = "--columns.timestamp (`columns.timestamp` in a recipe)"
        warn(f"{note}; set another time column with {name}, or {FILE_ORDER} if the lines are in temporal order")
    return [note]


def _time_note(config: PrepareConfig, source: Source) -> list[str]:
    """Return a note with the first and the last date, which reveals a wrong unit of time."""
    if source.given:
        return []
    if config.columns.timestamp == FILE_ORDER:
        return ["no times: interactions are in the order of the log's lines"]
    times = source.interactions["timestamp"].to_numpy()
    counted = ": too small for dates; they only give an order" if times.max() < COUNTED else ""
    return [f"times from {_day(times.min())} to {_day(times.max())}{counted}"]


def _check_dates(config: PrepareConfig, log: pl.DataFrame) -> None:
    """Raise ConfigError if a log to be split by time has no dates.

    Numbers of lines and positions order the interactions of one user, but not those of different users: a split by
    them would test the users at the end of the file, or those with the longest histories.
    """
    if has_dates(log):
        return
    is_order = config.columns.timestamp == FILE_ORDER
    times = "the order of the lines" if is_order else "numbers that are too small for dates, such as positions"
    raise ConfigError(
        f"split time needs dates, but the times of this log are {times}: name a column of dates with "
        "--columns.timestamp (`columns.timestamp` in a recipe), or choose --split leave-last-out, time-share or user "
        "(`split` in a recipe)"
    )


def _doubt_notes(config: PrepareConfig, log: pl.DataFrame) -> list[str]:
    """Return notes on times that would change what is recent, and warn of them and of times after the present.

    These are times that look like counters among dates, and lone times (`log_end`).
    """
    times, notes = log["timestamp"], []
    latest = times.top_k(1 + most_lone(len(times))).sort().to_numpy()
    if latest[-1] < COUNTED or config.columns.timestamp == FILE_ORDER:
        return []
    if small := int((times < COUNTED).sum()):
        notes.append(f"{small:,} of {len(times):,} times are before {_day(COUNTED)}, so none counts as a date")
    if latest[-1] - latest[0] > LONE_GAP:  # only then sort all times
        end = log_end(times.sort().to_numpy())
        if lone := int((times > end).sum()):
            notes.append(
                f"{lone:,} of {len(times):,} times are long after all others, which end on {_day(end)}: "
                "for a question without a time, such as a server's, the log ends on that day"
            )
    # Not a note of the data, which must be the same tomorrow. Local times that are read as UTC may be hours ahead.
    future = int((times > time.time() + 86_400).sum())
    more = [f"{future:,} of {len(times):,} times are after the present moment"] if future else []
    for note in notes + more:
        warn(f"{note}; correct these times, or drop the lines, if they are wrong")
    return notes


def _day(moment: int) -> str:
    return str(np.datetime64(int(moment), "s").astype("datetime64[D]"))

"""Prepare ranking examples from a configuration: source → filters → split → candidates → protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import track, warn
from prefrec.data import seen, splits
from prefrec.data.candidates import (
    SampledCandidates,
    item_weights,
    keys_without,
    pair_keys,
    published_candidates,
    window_codes,
    with_candidates,
)
from prefrec.data.config import PrepareConfig
from prefrec.data.ids import warn_of_ids
from prefrec.data.readers import FILE_ORDER
from prefrec.data.rows import CandidateSets, LazyExamples, RankingExample
from prefrec.data.sources.base import GivenSplit, Source
from prefrec.data.target_candidates import auto_kind, target_candidates
from prefrec.data.times import LONE_GAP, SUBSECOND, log_end, most_lone
from prefrec.data.types import COUNTED, FORMAT_VERSION, PARTS, Catalogue, PreparedData
from prefrec.errors import ConfigError, DataError, without_secrets

# Fraction of tied interactions below which no note is made.
_FEW_TIES = 0.05

Change = Callable[[splits.Sequences, splits.Split], splits.Split]
Parts = Mapping[str, Sequence[RankingExample]]
"""The examples of training, validation and test."""

_CHOSEN = (
    "never-sold items are more than twice as common among targets as in the catalogue, so negatives are the targets "
    "of other examples (candidates.kind targets); with uniform negatives, an item's age would reveal the target"
)


Made = tuple[Parts, pl.DataFrame, pl.DataFrame, str, dict[str, Any]]
"""Examples, training interactions, held-out interactions, kind of the candidate sets, and facts for the protocol."""


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
    read = config.kind.read(config)
    if isinstance(read, PreparedData):
        return read
    source = _with_codes(read, config)
    warn_of_ids(source.interactions, source.catalogue.frame["item_id"])
    del read  # its ids may be text, which takes ten times the memory
    log, counts = _filter_log(source.interactions, config)
    log = splits.before_tests(log, config.fold)
    catalogue = _used_items(source, log, config)
    notes = source.notes + _time_note(config, source) + _doubt_notes(config, log)
    touched = (source.interactions if source.touched is None else source.touched).select("user_id", "item_id")
    source = replace(source, interactions=log.clear())
    sequences = splits.order(log, config.seed, config.latest_per_user)
    del log
    notes += _tie_note(source, sequences)
    users = _known_users(config, source, sequences.users)
    counts |= {"users": len(sequences.users), "items": len(catalogue), "interactions": len(sequences.frame)}
    given, size = config.candidates.kind, config.candidates.size
    if size > len(catalogue):
        raise DataError(
            f"{size} candidates cannot be sampled from {len(catalogue)} items: lower --candidates.size "
            "(`candidates.size` in a recipe) or relax the filters"
        )
    keys = _pair_keys(touched, sequences.users, catalogue.ids)
    del touched
    sampler = SampledCandidates(sequences.users, np.ones(len(catalogue)), keys, "", config.seed, size)
    parts, learn, held_out, kind, facts = (
        _given_parts(config, source.given, sampler, sequences, catalogue.ids)
        if source.given
        else _parts(config, sampler, sequences, catalogue.ids, change)
    )
    unused = len(source.catalogue) - len(catalogue)
    dropped = f"{unused} catalogue items without interactions were dropped; `unseen_items` keeps new items"
    protocol = {
        "format_version": FORMAT_VERSION,
        "prefrec": version("prefrec"),
        "source": source.name,
        "domain": config.domain or source.domain,
        "split": config.split_name,
        "candidates": {"kind": kind, "size": size},
        "seed": config.seed,
        "rating_counts": source.counts,
        "config": without_secrets(config.model_dump(mode="json")),
        "counts": count_rows(learn, catalogue, parts) | counts,
        "split_facts": facts,
        "notes": notes + ([dropped] if unused else []) + ([_CHOSEN] if (given, kind) == ("auto", "targets") else []),
    }
    if not as_codes:
        learn, held_out = (f.with_columns(pl.col("user_id", "item_id").cast(pl.String)) for f in (learn, held_out))
    train, validation, test = (parts[part] for part in PARTS)
    return PreparedData(catalogue, train, validation, test, learn, protocol, users, held_out)


def _with_codes(source: Source, config: PrepareConfig) -> Source:
    """Return the source with its logs' ids as polars `Enum`, which takes 4 bytes per id and sorts like text."""
    log = source.interactions
    if log.is_empty():
        raise DataError(
            f"{config.path or config.interactions or config.source}: no interaction has both an item and a time; "
            "check that the files belong together"
        )
    ids = {
        "user_id": pl.Enum(log["user_id"].unique().cast(pl.String).sort()),
        "item_id": pl.Enum(source.catalogue.frame["item_id"].sort()),
    }
    given, touched = source.given, source.touched

    def coded(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.with_columns(pl.col(column).cast(kind, strict=False) for column, kind in ids.items())

    return replace(
        source,
        interactions=coded(log),
        # Other users and items than those of the log have no examples.
        touched=None if touched is None else coded(touched.select(*ids)).drop_nulls(),
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


def _filter_log(log: pl.DataFrame, config: PrepareConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the interactions that pass all filters, and the counts of each filter."""
    counts = {"interactions_read": len(log)}
    if config.min_rating is not None:
        if "rating" not in log.columns:
            raise ConfigError(
                "min_rating is set, but the log has no ratings: name the column with --columns.rating "
                "(`columns.rating` in a recipe)"
            )
        log = log.filter(pl.col("rating") >= config.min_rating)  # unrated ones are dropped
        counts["interactions_with_min_rating"] = len(log)
    first = splits.first_only(log)
    kept = splits.core(first, config.user_core, config.item_core)
    counts |= {"repeats_dropped": len(log) - len(first), "dropped_by_core": len(first) - len(kept)}
    if len(kept) < len(first):
        for ids in ("user_id", "item_id"):
            counts[f"{ids[:4]}s_dropped_by_core"] = first[ids].n_unique() - kept[ids].n_unique()
    if kept.is_empty():
        raise DataError(
            f"the filters drop all {counts['interactions_read']} interactions: lower min_rating "
            f"({config.min_rating}), user_core ({config.user_core}) or item_core ({config.item_core})"
        )
    return kept, counts


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


def _parts(
    config: PrepareConfig,
    sampler: SampledCandidates,
    sequences: splits.Sequences,
    ids: Sequence[str],
    change: Change | None,
) -> Made:
    """Split the sequences. To save memory, `sequences.frame` loses its columns."""
    split = _split(config, sequences)
    split = change(sequences, split) if change else split
    targets, facts = _kept_rows(config, split.rows, sampler)
    split.rows.clear()
    held_out = seen.held_out(sequences, [targets[part] for part in PARTS[1:]], split.learn)
    items = _indices(sequences.items, ids)
    # On disk, a training example is only the position of its target in the training interactions.
    offsets = dict.fromkeys(PARTS, sequences.offsets)
    offsets["train"] = _offsets_in(sequences, split.learn, targets["train"])
    positions = {p: offsets[p].astype(np.uint32)[r[:, 0]] + r[:, 1].astype(np.uint32) for p, r in targets.items()}
    asked = {part: (targets[part][:, 0], items[positions[part]]) for part in PARTS[1:]}
    del targets
    learn, learnt = split.take_interactions(), items[split.learn]

    def build(part: str, sets: CandidateSets) -> LazyExamples:
        flat = items if offsets[part] is sequences.offsets else learnt
        return LazyExamples(ids, sequences.users, flat, offsets[part], positions[part], config.history_length, sets)

    known = _known_keys(sampler.touched, sequences, split.learn, items, len(ids))
    kind, parts = _with_candidates(config, sampler, known, learnt, ids, asked, build)
    return parts, learn, held_out, kind, split.facts | facts


def _given_parts(
    config: PrepareConfig,
    given: GivenSplit,
    sampler: SampledCandidates,
    sequences: splits.Sequences,
    ids: Sequence[str],
) -> Made:
    """Use the source's own split."""
    owners = [w.user_id for some in given.windows.values() for w in some]
    sampler = replace(sampler, users=pl.Series([*dict.fromkeys([*sequences.users, *owners])], dtype=pl.String))
    # The fourth column is the number of the window.
    coded = {
        part: np.column_stack([window_codes(some, sampler.users, ids), np.arange(len(some))])
        for part, some in given.windows.items()
    }
    coded, facts = _kept_rows(config, coded, sampler)
    items = _indices(sequences.items, ids)
    pairs = np.repeat(np.arange(len(sequences.users)), sequences.lengths) * len(ids) + items
    learn = np.isin(pairs, _pair_keys(given.learn, sequences.users, ids))
    learnt = sequences.frame.filter(pl.Series(learn))
    held_out = learnt.clear()  # without an order, it is unknown what came before an example
    if given.ordered:
        users, _, targets, _ = np.concatenate([coded[part] for part in PARTS[1:]]).T
        later = np.isin(pairs, users * len(ids) + targets)
        rows = np.column_stack([pairs[later] // len(ids), sequences.positions[later]])
        held_out = seen.held_out(sequences, [rows], learn)

    def build(part: str, sets: CandidateSets) -> list[RankingExample]:
        windows = [given.windows[part][n] for n in coded[part][:, 3].tolist()]
        progress = partial(track, description=f"{part} candidates")
        return with_candidates(windows, coded[part][:, :3], ids, sets, sampler.size, progress)

    asked = {part: (coded[part][:, 0], coded[part][:, 2]) for part in PARTS[1:]}
    known = _known_keys(sampler.touched, sequences, learn, items, len(ids))
    kind, parts = _with_candidates(config, sampler, known, items[learn], ids, asked, build)
    return parts, learnt, held_out, kind, facts


def _kept_rows(
    config: PrepareConfig, rows: Mapping[str, NDArray[Any]], sampler: SampledCandidates
) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
    """Return the examples of users with enough unseen items, at most `max_…_rows` of a part, and facts.

    The first column of `rows` is the user. Raise DataError if a part loses all its examples.
    """
    users = np.unique(np.concatenate([some[:, 0] for some in rows.values()]))
    # `published_candidates` makes this check itself.
    short = users[:0] if config.candidates.kind == "published" else sampler.short(users)[0]
    kept = {}
    for part, some in rows.items():
        roomy = some[~np.isin(some[:, 0], short)] if len(short) else some
        if len(some) and not len(roomy):
            sampler.check(short)
        kept[part] = roomy[sample_rows(config, part, roomy[:, 0])]
    return kept, {"users_without_room": len(short)} if len(short) else {}


def _only_target(_: Any, owners: Any, positions: Any, targets: NDArray[np.int32]) -> list[list[int]]:
    return targets[:, None].tolist()


def _with_candidates(
    config: PrepareConfig,
    sampler: SampledCandidates,
    known: NDArray[np.int64],
    learnt: NDArray[np.int32],
    ids: Sequence[str],
    asked: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    build: Callable[[str, CandidateSets], Sequence[RankingExample]],
) -> tuple[str, Parts]:
    """Return the kind of candidates and the examples; if `auto` chose targets and an example has too few, uniform.

    `known` are the keys of pairs that are not training negatives; `learnt` are the items of training interactions;
    `asked` has the users and targets of validation and test; `build` returns the examples of a part.
    """
    kind, sold = config.candidates.kind, np.bincount(learnt, minlength=len(ids)) > 0
    chosen = auto_kind(np.concatenate([targets for _, targets in asked.values()]), sold) if kind == "auto" else kind
    sampler = replace(sampler, weights=item_weights(kind, learnt, len(ids)))

    def make(kind: str) -> Parts:
        if kind == "published":
            return {part: published_candidates(build(part, _only_target), ids, sampler.size) for part in PARTS}
        sets: dict[str, CandidateSets] = {"train": replace(sampler, split="train", touched=known)}
        for part in PARTS[1:]:
            of_part = replace(sampler, split=part)
            sets[part] = target_candidates(of_part, *asked[part], sold) if kind == "targets" else of_part
        return {part: build(part, sets[part]) for part in PARTS}

    try:
        return chosen, make(chosen)
    except DataError:
        if (kind, chosen) != ("auto", "targets"):
            raise
        return "uniform", make("uniform")


def _indices(names: pl.Series, ids: Sequence[str] | pl.Series) -> NDArray[np.int32]:
    """Return the index in `ids` of each of these items or users, a series of `Enum`; -1 for those not in `ids`."""
    indices = np.full(len(names.dtype.categories), -1, dtype=np.int32)  # type: ignore[attr-defined]
    indices[pl.Series(ids, dtype=pl.String).cast(names.dtype).to_physical().to_numpy()] = np.arange(len(ids))
    return indices[names.to_physical().to_numpy()]


def _pair_keys(log: pl.DataFrame, users: pl.Series, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the keys (`pair_keys`) of the interactions with these users and items."""
    owners, items = _indices(log["user_id"], users), _indices(log["item_id"], ids)
    known = (owners >= 0) & (items >= 0)
    return pair_keys((owners, items) if known.all() else (owners[known], items[known]), len(ids))


def _known_keys(
    touched: NDArray[np.int64],
    sequences: splits.Sequences,
    learn: NDArray[np.bool_],
    items: NDArray[np.int32],
    n_items: int,
) -> NDArray[np.int64]:
    """Return the keys of what users touched (`pair_keys`) without held-out interactions, for training examples."""
    # Held-out items may be training negatives of their user. Otherwise their absence would reveal them to a model.
    owners = np.searchsorted(sequences.offsets, np.flatnonzero(~learn), side="right") - 1
    return keys_without(touched, pair_keys((owners, items[~learn]), n_items))


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
    rng = np.random.default_rng([config.seed, 2, PARTS.index(part)])
    if limit is None or len(users) <= limit:
        return np.arange(len(users))
    if part == "train":
        return np.sort(rng.choice(len(users), size=limit, replace=False))
    return splits.sample_users(users, limit, rng)


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


def _tie_note(source: Source, sequences: splits.Sequences) -> list[str]:
    """Return a note with the fraction of interactions whose order is ambiguous, if it is 5% or more."""
    if source.given or SUBSECOND in source.interactions.columns or (share := sequences.tied.mean()) < _FEW_TIES:
        return []
    days = " (all times are whole days)" if not (sequences.timestamps % 86_400).any() else ""
    note = f"{share:.0%} of interactions are at the same time as another of their user{days}: their order is random"
    if share > 1 - _FEW_TIES:
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

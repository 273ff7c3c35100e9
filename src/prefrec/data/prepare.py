"""Prepare ranking examples from a configuration: source → filters → split → candidates → protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import track, warn
from prefrec.data import seen, splits
from prefrec.data.candidates import (
    SampledCandidates,
    draw_candidates,
    item_weights,
    keys_without,
    pair_keys,
    popularity_weights,
    published_candidates,
)
from prefrec.data.config import PrepareConfig
from prefrec.data.readers import FILE_ORDER
from prefrec.data.rows import LazyExamples, RankingExample
from prefrec.data.sources.base import GivenSplit, Source
from prefrec.data.target_candidates import auto_kind, target_candidates
from prefrec.data.times import SUBSECOND
from prefrec.data.types import COUNTED, FORMAT_VERSION, PARTS, Catalogue, PreparedData, Window
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


class Made(NamedTuple):
    """The result of a split.

    Attributes:
        parts: the examples of each part.
        learn: training interactions.
        held_out: held-out interactions.
        kind: kind of the candidate sets.
        facts: counts for the protocol.
    """

    parts: Parts
    learn: pl.DataFrame
    held_out: pl.DataFrame
    kind: str
    facts: dict[str, Any]


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
    del read  # its ids may be text, which takes ten times the memory
    log, counts = _filter_log(source.interactions, config)
    log = splits.before_tests(log, config.fold)
    catalogue = _used_items(source, log, config)
    notes = source.notes + _time_note(config, source)
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
    if source.given:
        parts, learn, held_out, kind, facts = _given_parts(config, source.given, touched, sequences, catalogue)
    else:
        keys = _touched_keys(touched, sequences.users, catalogue.ids)
        del touched
        parts, learn, held_out, kind, facts = _parts(config, keys, sequences, catalogue.ids, change)
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
    touched: NDArray[np.int64],
    sequences: splits.Sequences,
    ids: Sequence[str],
    change: Change | None,
) -> Made:
    """Split the sequences and return examples and interactions.

    `touched` are keys of user-item pairs (`pair_keys`). To save memory, `sequences.frame` loses its columns.
    """
    split = _split(config, sequences)
    split = change(sequences, split) if change else split
    facts = split.facts | _drop_short(split.rows, touched, sequences.users, len(ids), config)
    targets = {part: rows[sample_rows(config, part, rows[:, 0])] for part, rows in split.rows.items()}
    split.rows.clear()
    held_out = seen.held_out(sequences, [targets[part] for part in PARTS[1:]], split.learn)
    items = _indices(sequences.items, ids)
    # On disk, a training example is only the position of its target in the training interactions.
    offsets = dict.fromkeys(PARTS, sequences.offsets)
    offsets["train"] = _offsets_in(sequences, split.learn, targets["train"])
    positions = {p: offsets[p].astype(np.uint32)[r[:, 0]] + r[:, 1].astype(np.uint32) for p, r in targets.items()}
    del targets
    learn = split.take_interactions()
    learnt, size = items[split.learn], config.candidates.size
    sold = np.bincount(learnt, minlength=len(ids)) > 0
    kind = _kind(config, np.concatenate([items[positions[part]] for part in PARTS[1:]]), sold)
    weights = item_weights(kind, learnt, len(ids))
    sampler = SampledCandidates(sequences.users, weights, touched, "", config.seed, size)
    # Held-out items may be training negatives of their user. Otherwise their absence would reveal them to a model.
    known = _without(touched, sequences, ~split.learn, items, len(ids))

    def make(kind: str) -> Parts:
        parts: dict[str, Sequence[RankingExample]] = {}
        for part, at in positions.items():
            of_part = replace(sampler, split=part, touched=known if part == "train" else touched)
            flat = items if offsets[part] is sequences.offsets else learnt
            made = LazyExamples(ids, sequences.users, flat, offsets[part], at, config.history_length, of_part)
            if kind == "targets" and part != "train":
                made = replace(made, candidate_sets=target_candidates(of_part, made.owners(), flat[at], sold))
            parts[part] = _published(made, size) if kind == "published" else made
        return parts

    kind, parts = _made(config, kind, make)
    return Made(parts, learn, held_out, kind, facts)


def _drop_short(
    rows: dict[str, splits.Targets], touched: NDArray[np.int64], users: pl.Series, n_items: int, config: PrepareConfig
) -> dict[str, int]:
    """Drop, in place, the examples of users with too few unseen items; return the number of these users as a fact.

    Raise DataError if that leaves a part without examples.
    """
    if config.candidates.kind == "published":  # `published_candidates` makes this check itself
        return {}
    sampler = SampledCandidates(users, np.ones(n_items), touched, "", config.seed, config.candidates.size)
    short, _ = sampler.short(np.unique(np.concatenate([some[:, 0] for some in rows.values()])))
    for part, some in rows.items() if len(short) else ():
        rows[part] = some[~np.isin(some[:, 0], short)]
        if len(some) and not len(rows[part]):
            sampler.check(short)
    return {"users_without_room": len(short)} if len(short) else {}


def _kind(config: PrepareConfig, targets: NDArray[np.int32], sold: NDArray[np.bool_]) -> str:
    """Return the kind of candidates, given validation and test targets [n] and the items sold in training [I]."""
    kind = config.candidates.kind
    return auto_kind(targets, sold) if kind == "auto" else kind


def _made(config: PrepareConfig, kind: str, make: Callable[[str], Parts]) -> tuple[str, Parts]:
    """Return the kind of candidates and the examples; if `auto` chose targets and an example has too few, uniform."""
    try:
        return kind, make(kind)
    except DataError:
        if config.candidates.kind != "auto" or kind != "targets":
            raise
        return "uniform", make("uniform")


def _given_parts(
    config: PrepareConfig, given: GivenSplit, touched: pl.DataFrame, sequences: splits.Sequences, catalogue: Catalogue
) -> Made:
    """Return the examples and interactions of the source's own split."""
    size, ids = config.candidates.size, catalogue.ids
    kept, facts = _kept_windows(config, given.windows, touched, len(ids))
    users = {part: [w.user_id for w in windows] for part, windows in kept.items()}
    windows = {p: [kept[p][i] for i in sample_rows(config, p, users[p]).tolist()] for p in PARTS}
    frame = sequences.frame.with_row_index("row")
    pair = {column: frame.schema[column] for column in ("user_id", "item_id")}

    def mask(pairs: pl.DataFrame) -> NDArray[np.bool_]:
        marked = np.zeros(len(frame), dtype=bool)
        pairs = pairs.select(pl.col(column).cast(kind) for column, kind in pair.items())
        marked[frame.join(pairs, on=[*pair], how="semi")["row"].to_numpy()] = True
        return marked

    learn = mask(given.learn.select(*pair))
    learnt = sequences.frame.filter(pl.Series(learn))
    if given.ordered:
        later = [(w.user_id, w.target) for part in PARTS[1:] for w in windows[part]]
        rows = np.flatnonzero(mask(pl.DataFrame(later, dict.fromkeys(pair, pl.String), orient="row")))
        owners = np.searchsorted(sequences.offsets, rows, side="right") - 1
        held_out = seen.held_out(sequences, [np.column_stack([owners, rows - sequences.offsets[owners]])], learn)
    else:
        held_out = learnt.clear()  # without an order, it is unknown what came before an example
    sold = catalogue.frame["item_id"].is_in(learnt["item_id"].unique().cast(pl.String).to_list()).to_numpy()
    code = {item: index for index, item in enumerate(ids)}
    kind = _kind(config, np.array([code[w.target] for p in PARTS[1:] for w in windows[p]], dtype=np.int32), sold)
    if kind == "published":
        return Made(
            {p: published_candidates(w, ids, size) for p, w in windows.items()}, learnt, held_out, kind, facts
        )
    weights = popularity_weights(learnt, ids) if kind == "popularity" else None
    draw = partial(draw_candidates, pool=ids, seed=config.seed, size=size, weights=weights)
    progress = {part: partial(track, description=f"{part} candidates") for part in PARTS}
    known = touched.join(sequences.frame.filter(~pl.Series(learn)).select(*pair), on=[*pair], how="anti")
    seen_by = {part: known if part == "train" else touched for part in PARTS}

    def make(kind: str) -> Parts:
        change = {} if kind != "targets" else dict.fromkeys(PARTS[1:], partial(target_candidates, known=sold))
        return {
            p: draw(w, touched=seen_by[p], split=p, progress=progress[p], change=change.get(p))
            for p, w in windows.items()
        }

    kind, made = _made(config, kind, make)
    return Made(made, learnt, held_out, kind, facts)


def _kept_windows(
    config: PrepareConfig, windows: Mapping[str, list[Window]], touched: pl.DataFrame, n_items: int
) -> tuple[Mapping[str, list[Window]], dict[str, int]]:
    """Return the windows of users with enough unseen items, and the number of other users as a fact.

    If that would leave a part without windows, return all of them: sampling their candidates then raises DataError.
    """
    counts = touched.group_by("user_id").agg(pl.col("item_id").n_unique())
    full = counts.filter(pl.col("item_id") > n_items - config.candidates.size + 1)["user_id"].cast(pl.String)
    short = {w.user_id for some in windows.values() for w in some} & {*full}
    kept = {part: [w for w in some if w.user_id not in short] for part, some in windows.items()}
    if config.candidates.kind == "published" or not short or any(windows[p] and not kept[p] for p in windows):
        return windows, {}
    return kept, {"users_without_room": len(short)}


def _indices(names: pl.Series, ids: Sequence[str] | pl.Series) -> NDArray[np.int32]:
    """Return the index in `ids` of each of these items or users, a series of `Enum`; -1 for those not in `ids`."""
    indices = np.full(len(names.dtype.categories), -1, dtype=np.int32)  # type: ignore[attr-defined]
    indices[pl.Series(ids, dtype=pl.String).cast(names.dtype).to_physical().to_numpy()] = np.arange(len(ids))
    return np.asarray(indices[names.to_physical().to_numpy()])


def _touched_keys(touched: pl.DataFrame, users: pl.Series, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return the keys (`pair_keys`) of what these users touched."""
    owners, items = _indices(touched["user_id"], users), _indices(touched["item_id"], ids)
    known = (owners >= 0) & (items >= 0)
    return pair_keys((owners, items) if known.all() else (owners[known], items[known]), len(ids))


def _without(
    touched: NDArray[np.int64],
    sequences: splits.Sequences,
    chosen: NDArray[np.bool_],
    items: NDArray[np.int32],
    n_items: int,
) -> NDArray[np.int64]:
    """Return the keys of what users touched (`pair_keys`) without those of the `chosen` interactions."""
    owners = np.searchsorted(sequences.offsets, np.flatnonzero(chosen), side="right") - 1
    return keys_without(touched, pair_keys((owners, items[chosen]), n_items))


def _published(rows: LazyExamples, size: int) -> list[RankingExample]:
    bare = replace(rows, candidate_sets=lambda rows, owners, positions, targets: targets[:, None].tolist())
    return published_candidates([Window(e.user_id, 0, e.history, e.target) for e in bare], rows.ids, size)


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
    first, last = (np.datetime64(int(t), "s").astype("datetime64[D]") for t in (times.min(), times.max()))
    counted = ": too small for dates; they only give an order" if times.max() < COUNTED else ""
    return [f"times from {first} to {last}{counted}"]

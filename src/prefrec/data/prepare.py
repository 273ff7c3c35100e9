"""Prepare ranking examples from a configuration: source → filters → split → candidates → protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import polars as pl

from prefrec.console import track, warn
from prefrec.data import splits
from prefrec.data.candidates import draw_candidates, popularity_weights, published_candidates
from prefrec.data.config import PrepareConfig
from prefrec.data.readers import FILE_ORDER
from prefrec.data.seen import held_out_interactions
from prefrec.data.sources.base import Source
from prefrec.data.types import FORMAT_VERSION, PARTS, Catalogue, PreparedData, RankingExample, Window
from prefrec.errors import ConfigError, DataError

# Seconds since 1970 (a day in 1973). Times that are all smaller are counters, not dates.
_COUNTED = 100_000_000


Change = Callable[[splits.Sequences, splits.Split], splits.Split]


def prepare(config: PrepareConfig, change: Change | None = None) -> PreparedData:
    """Read the source of `config` and make its rows. The same configuration always gives the same data.

    `change` replaces the split that was made; it is not called if the source has a split of its own.

    Raise DataError if the files cannot be used, or no interaction is left, and ConfigError if the source lacks
    something that the configuration asks for.
    """
    source = config.kind.read(config)
    if isinstance(source, PreparedData):
        return source
    log, counts = _filter_log(source.interactions, config)
    catalogue = _used_items(source, log)
    sequences = splits.order(log, config.seed)
    touched = source.interactions if source.touched is None else source.touched
    windows, learn, facts = _windows(config, source, sequences, change)
    examples = _examples(config, windows, catalogue, touched, learn)
    unused = len(source.catalogue) - len(catalogue)
    cold = [f"{unused} catalogue items without interactions are left out"] if unused else []
    protocol = {
        "format_version": FORMAT_VERSION,
        "prefrec": version("prefrec"),
        "source": source.name,
        "domain": config.domain or source.domain,
        "split": config.split_name,
        "candidates": config.candidates.model_dump(mode="json"),
        "seed": config.seed,
        "rating_counts": source.counts,
        "config": config.model_dump(mode="json"),
        "counts": counts | count_rows(log, catalogue, learn, examples),
        "split_facts": facts,
        "notes": source.notes + _time_note(config, source) + cold,
    }
    train, validation, test = (examples[part] for part in PARTS)
    users = _known_users(config, source, log)
    if source.given and not source.given.ordered:
        held_out = learn.clear()  # without an order, nobody knows what came before a row
    else:
        held_out = held_out_interactions(sequences.frame, [*windows["validation"], *windows["test"]], learn)
    return PreparedData(catalogue, train, validation, test, learn, protocol, users, held_out)


def _known_users(config: PrepareConfig, source: Source, log: pl.DataFrame) -> pl.DataFrame | None:
    """Return the attributes of the log's users, or None if the source has no attributes."""
    if source.users is None:
        return None
    users = log["user_id"].unique(maintain_order=True).to_list()
    known = source.users.filter(pl.col("user_id").is_in(users))
    if config.users is not None:
        if known.is_empty():
            listed = source.users["user_id"].to_list()
            raise DataError(
                f"{config.users}: none of its {len(listed):,} users (such as {listed[0]!r}) is among the "
                f"{len(users):,} of the log (such as {users[0]!r}); write their ids as in the log"
            )
        if len(known) < len(users):
            warn(f"{config.users} has attributes of {len(known):,} of the log's {len(users):,} users")
    return None if known.is_empty() else known


def _filter_log(log: pl.DataFrame, config: PrepareConfig) -> tuple[pl.DataFrame, dict[str, int]]:
    """Return the interactions that pass all filters, and the counts of each filter."""
    if log.is_empty():
        raise DataError(
            f"{config.path or config.interactions or config.source}: no interaction has both an item and a time; "
            "check that the files belong together"
        )
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
    if kept.is_empty():
        raise DataError(
            f"no interaction is left of {counts['interactions_read']}: lower min_rating "
            f"({config.min_rating}), user_core ({config.user_core}) or item_core ({config.item_core})"
        )
    return kept, counts


def _used_items(source: Source, log: pl.DataFrame) -> Catalogue:
    if source.given:
        return source.catalogue
    used = log["item_id"].unique().to_list()
    if "impressions" in log.columns:
        used += log["impressions"].explode().drop_nulls().unique().to_list()
    return Catalogue(source.catalogue.frame.filter(pl.col("item_id").is_in(used)))


def _windows(
    config: PrepareConfig, source: Source, sequences: splits.Sequences, change: Change | None
) -> tuple[dict[str, list[Window]], pl.DataFrame, dict[str, Any]]:
    """Return the sampled windows of each part, the training interactions, and facts about the split."""
    if source.given:
        given = source.given.windows
        learn = sequences.frame.join(source.given.learn, on=["user_id", "item_id"], how="semi", maintain_order="left")
        kept = {part: sample_rows(config, part, [w.user_id for w in given[part]]) for part in PARTS}
        return {part: [given[part][i] for i in rows] for part, rows in kept.items()}, learn, {}
    split = _split(config, sequences)
    split = change(sequences, split) if change else split
    windows = {}
    for part, rows in split.rows.items():
        chosen = sample_rows(config, part, [sequences.users[u] for u in rows[:, 0].tolist()])
        windows[part] = splits.materialise(sequences, rows[chosen], config.history_length)
    return windows, split.train_interactions, split.facts


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


def sample_rows(config: PrepareConfig, part: str, users: list[str]) -> list[int]:
    """Return the indices of the rows of a part to keep, given the user of each row."""
    limit: int | None = getattr(config, f"max_{part}_rows")
    # Each part has its own generator, so that the limit of one does not change the rows of another.
    rng = np.random.default_rng([config.seed, 2, PARTS.index(part)])
    if limit is None or len(users) <= limit:
        return list(range(len(users)))
    if part == "train":
        return sorted(rng.choice(len(users), size=limit, replace=False).tolist())
    return splits.sample_users(users, limit, rng).tolist()


def _examples(
    config: PrepareConfig,
    windows: Mapping[str, list[Window]],
    catalogue: Catalogue,
    touched: pl.DataFrame,
    learn: pl.DataFrame,
) -> dict[str, list[RankingExample]]:
    kind, size = config.candidates.kind, config.candidates.size
    if size > len(catalogue):
        raise DataError(
            f"{size} candidates cannot be drawn from {len(catalogue)} items: lower --candidates.size "
            "(`candidates.size` in a recipe) or the filters"
        )
    if kind == "published":
        return {part: published_candidates(w, catalogue.ids, size) for part, w in windows.items()}
    weights = popularity_weights(learn, catalogue.ids) if kind == "popularity" else None
    draw = partial(draw_candidates, pool=catalogue.ids, touched=touched, seed=config.seed, size=size, weights=weights)
    progress = {part: partial(track, description=f"{part} candidates") for part in windows}
    return {part: draw(w, split=part, progress=progress[part]) for part, w in windows.items()}


def count_rows(
    log: pl.DataFrame, catalogue: Catalogue, learn: pl.DataFrame, examples: Mapping[str, list[RankingExample]]
) -> dict[str, Any]:
    """Return the counts of prepared data that its protocol shows."""
    return {
        "users": log["user_id"].n_unique(),
        "items": len(catalogue),
        "interactions": len(log),
        "train_interactions": len(learn),
        "rows": {part: len(rows) for part, rows in examples.items()},
        "row_users": {part: len({e.user_id for e in rows}) for part, rows in examples.items()},
    }


def _time_note(config: PrepareConfig, source: Source) -> list[str]:
    """Return a note with the first and the last date, which reveals a wrong time unit."""
    if source.given:
        return []
    if config.columns.timestamp == FILE_ORDER:
        return ["no times: interactions are in the order of the lines of the log"]
    times = source.interactions["timestamp"].to_numpy()
    first, last = (np.datetime64(int(t), "s").astype("datetime64[D]") for t in (times.min(), times.max()))
    counted = ": such small numbers give an order but no dates" if times.max() < _COUNTED else ""
    return [f"times from {first} to {last}{counted}"]

"""Training examples of an alignment with their negatives: sampled and kept, or taken from the log."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl
from rich.markup import escape

from prefrec import processes
from prefrec.console import say, warn
from prefrec.data import PreparedData, RankingExample, examples_to_frame, frame_to_examples
from prefrec.data.candidates import popularity_weights
from prefrec.data.feedback import rejected_rows, with_opinions
from prefrec.data.parquet import UNREADABLE, read_parquet
from prefrec.errors import ConfigError, DataError
from prefrec.files import write_whole
from prefrec.losses import find_loss, takes, trait
from prefrec.rankers.config import BATCH_SIZE
from prefrec.sections import AlignSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import lm_ranker
from prefrec.training.negatives import Sampler, false_negatives, resample_negatives, with_room

if TYPE_CHECKING:
    from prefrec.rankers.catalogue import CatalogueRanker

NEGATIVES_FILE = "negatives.parquet"
"""Training examples of an alignment with sampled negatives, in the folder of its stage."""


def negative_rows(
    inputs: RunInputs,
    section: AlignSection,
    rows: Sequence[RankingExample],
    start: Path | None,
    miner: RankerStage | None,
    out: Path,
) -> list[RankingExample]:
    """Return examples with negatives by `section.negatives_from`; an interrupted stage reads those in `out`.

    With `reference`, a candidate set has 1 + `num_negatives` items; with other sources at least as many as the
    largest set of `rows`.

    Args:
        inputs: shared inputs of the run.
        section: settings of the alignment.
        rows: examples to sample negatives for.
        start: folder of the weights of the starting model, which samples `reference` negatives. Default: the base.
        miner: ranker of `hard` negatives. Default: the starting model.
        out: folder of the stage, which keeps the examples.
    """
    if section.drawn_from is None:
        return list(rows)
    rows = rows_with_room(rows, inputs.data, section)
    path = out / NEGATIVES_FILE
    kept = processes.from_first(_kept(path) if processes.is_first() else None)
    if kept is not None:
        return kept
    say(f"{section.name}: negatives from {section.negatives_from}")
    size = 1 + section.num_negatives
    chooser = None
    sampler: Sampler | None = None
    if miner is not None:
        chooser = miner.load(BATCH_SIZE).score
    elif section.drawn_from in ("reference", "hard"):
        from prefrec.rankers.catalogue import CatalogueRanker  # here, because it needs torch

        lm = CatalogueRanker(lm_ranker("negatives", start, inputs.data, inputs.model))
        chooser = lm.score
        sampler = partial(_sampled_after, lm)
    # A model samples exactly the items that it needs. The other sources keep the size of the data's candidate sets.
    if section.drawn_from != "reference":
        size = max([size, *(len(e.candidates) for e in rows)])
    settings: Any = {"seed": inputs.seed, "size": size, "pool": section.negatives_pool}
    if section.drawn_from == "reference" and not section.exclude_later:
        settings["excluded"] = inputs.data.train_interactions.clear()
    drawn = resample_negatives(rows, inputs.data, section.drawn_from, miner=chooser, sampler=sampler, **settings)
    share = false_negatives(drawn, inputs.data)
    say(f"{section.name}: {share:.1%} of these negatives are items that the user interacts with later")
    if processes.is_first():
        out.mkdir(parents=True, exist_ok=True)
        write_whole(path, examples_to_frame(drawn).write_parquet)
    processes.wait()
    return frame_to_examples(read_parquet(path))


def _sampled_after(lm: CatalogueRanker, rows: Sequence[RankingExample], *more: Any) -> Iterator[list[str]]:
    return lm.sample([e.history for e in rows], *more)


def check_room(section: AlignSection, data: PreparedData) -> None:
    """Raise ConfigError if no user has enough unseen items to sample negatives from."""
    counts = data.train_interactions.group_by("user_id").agg(pl.col("item_id").n_unique())["item_id"]
    if section.drawn_from in (None, "in-batch") or counts.is_empty():
        return
    number = section.num_negatives
    # Without `exclude_later`, only the target and the history in the prompt are excluded.
    seen = int(cast(Any, counts.min()))
    if data.keeps_repeats:
        seen = 1
    elif section.drawn_from == "reference" and not section.exclude_later:
        seen = 1 + min(int(cast(Any, counts.max())) - 1, data.history_length)
    left = len(data.catalogue) - seen
    if left < number:
        raise ConfigError(
            f"align.{section.name}.num_negatives: {number} negatives, but only {left} of the {len(data.catalogue)} "
            f"items are left beside the {seen} that a user has seen; lower it to {max(left, 1)} or less"
        )


def rows_with_room(
    rows: Sequence[RankingExample], data: PreparedData, section: AlignSection
) -> Sequence[RankingExample]:
    """Return the rows whose users have enough unseen items to sample negatives from; print how many do not."""
    needs_unseen = section.drawn_from in ("uniform", "popularity", "hard")
    if not (needs_unseen or (section.drawn_from == "reference" and section.exclude_later)):
        return rows
    number = max([section.num_negatives, *(len(e.candidates) - 1 for e in rows[:1])])
    kept = with_room(rows, data, number)
    if len(kept) < len(rows):
        few = f"their users have fewer than {number} unseen items to sample negatives from"
        say(f"{section.name}: {len(rows) - len(kept)} of {len(rows)} examples are skipped: {few}")
    return kept


def answer_scores(
    rows: Sequence[RankingExample], data: PreparedData, section: AlignSection, *, held_out: bool = False
) -> list[list[float]] | None:
    """Return the `scores` of a loss that takes them, a number per answer with the target's first; None for others.

    For losses with the trait `needs_logq` they are log sampling probabilities, up to a constant; negatives of
    `held_out` rows are sampled uniformly. For other losses they are ratings of the user in the training log, for
    `held_out` rows also in the held-out log; an item without a rating gets the lowest one. Raise DataError if there
    are no ratings.
    """
    loss = find_loss(section.loss)
    if not takes(loss, "scores"):
        return None
    answers = [e.target_first for e in rows]
    if trait(loss, "needs_logq"):
        weights: dict[str, float] = dict.fromkeys(data.catalogue.ids, 1.0)
        if section.drawn_from == "popularity" and not held_out:
            weights = popularity_weights(data.train_interactions, data.catalogue.ids)
        elif section.drawn_from == "in-batch" and not held_out:
            weights |= Counter(e.target for e in rows)
        return [[math.log(weights[i]) for i in listed] for listed in answers]
    rated: list[pl.DataFrame] = []
    for log in (data.opinions, data.held_out_interactions if held_out else None):
        if log is not None and "rating" in log.columns:
            rated.append(log.drop_nulls("rating"))
    lowest = min((float(cast(Any, log["rating"].min())) for log in rated if len(log)), default=0.0)
    if lowest <= 0:
        raise DataError(
            f"align.{section.name}.loss: {section.loss} needs ratings above 0, but the log has none, or some that "
            "are not; name their column with --columns.rating (`columns.rating` in a recipe) and prepare the data "
            "again"
        )
    logs_of_users = [log.filter(pl.col("user_id").is_in({e.user_id for e in rows})) for log in rated]
    ratings = {
        (u, i): r for log in logs_of_users for u, i, r in log.select("user_id", "item_id", "rating").iter_rows()
    }
    return [[ratings.get((e.user_id, i), lowest) for i in a] for e, a in zip(rows, answers, strict=True)]


def _kept(path: Path) -> list[RankingExample] | None:
    """Return the examples in a file; None if it is missing, or (with a warning) if it is damaged."""
    if not path.is_file():
        return None
    try:
        return frame_to_examples(read_parquet(path))
    except UNREADABLE as e:
        warn(f"{escape(str(path))} cannot be read ({escape(str(e))}); negatives are sampled again")
        return None


def log_rows(
    data: PreparedData,
    section: AlignSection,
    seed: int,
    log: pl.DataFrame | None = None,
    earlier: pl.DataFrame | None = None,
) -> list[RankingExample]:
    """Return all examples of `negatives_from: rated` or `impressions` in a log; raise DataError if it has none.

    Args:
        data: prepared data.
        section: settings of the alignment.
        seed: of the choice of negatives.
        log: interactions to make examples from. Default: those of training.
        earlier: interactions before the log, which also count as history.
    """
    log = data.train_interactions if log is None else log
    if section.negatives_from == "rated":
        log = with_opinions(log, data.train_interactions, section.thresholds)
    rows = rejected_rows(
        log,
        cast(Any, section.negatives_from),
        section.num_negatives - section.sampled_negatives,
        earlier=earlier,
        history_length=data.history_length,
        min_history=int(data.protocol.get("config", {}).get("min_history", 1)),
        seed=seed,
        with_liked=bool(trait(find_loss(section.loss), "needs_liked")),
    )
    return _with_sampled(rows, data, section.sampled_negatives, log, seed) if section.sampled_negatives else rows


def log_validation_rows(data: PreparedData, section: AlignSection, seed: int) -> list[RankingExample]:
    """Return `eval_rows` random `log_rows` of validation users after the training part.

    Raise DataError if there are none.
    """
    users = {e.user_id for e in data.validation}
    held_out = data.held_out_interactions
    log = None if held_out is None else held_out.filter(pl.col("user_id").is_in(list(users)))
    rows = [] if log is None else log_rows(data, section, seed, log, data.train_interactions)
    if not rows:
        raise DataError(
            f"align.{section.name}.eval_rows: no validation user has an item to choose and enough items to reject "
            "after the training part; set it to 0, or hold out more with data.split: time-share"
        )
    order = np.random.default_rng((seed, 1)).permutation(len(rows))
    return [rows[i] for i in order[: section.eval_rows]]


def _with_sampled(
    rows: Sequence[RankingExample], data: PreparedData, number: int, log: pl.DataFrame, seed: int
) -> list[RankingExample]:
    """Return the rows with `number` more candidates each, sampled uniformly from items that are unseen in `log`."""
    pair = ["user_id", "item_id"]
    excluded = [data.train_interactions.select(pair), log.select(pair)]
    if data.keeps_repeats:  # then only what is a candidate already
        candidates = [(e.user_id, i) for e in rows for i in e.candidates]
        excluded = [pl.DataFrame(candidates, dict.fromkeys(pair, pl.String), orient="row")]
    if "impressions" in log.columns:
        excluded.append(log.select("user_id", item_id="impressions").explode("item_id").drop_nulls())
    drawn = resample_negatives(rows, data, "uniform", seed=seed, size=1 + number, excluded=pl.concat(excluded))
    rng = np.random.default_rng((seed, 5))
    mixed = []
    for row, more in zip(rows, drawn, strict=True):
        listed = [*row.candidates, *(i for i in more.candidates if i != row.target)]
        mixed.append(replace(row, candidates=tuple(listed[i] for i in rng.permutation(len(listed)).tolist())))
    return mixed

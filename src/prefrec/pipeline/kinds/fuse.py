"""Fuse in a recipe: weights of other rankers' standardised scores, chosen on validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.errors import ConfigError
from prefrec.evaluation import metrics_for, target_ranks, whole_catalogue
from prefrec.files import read_json, write_json
from prefrec.pipeline.entry import Entry, Ingredients, full_entries, lm_entry, lm_ranker, model_key
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.pipeline.score import ask_models
from prefrec.processes import is_first
from prefrec.rankers import CatalogueRanker, Ranker, fuse
from prefrec.rankers.fuse import FUSE_FILE, FuseConfig, FuseRanker, TitlePriorRanker, Weights
from prefrec.rankers.rows import pad_scores
from prefrec.runs.stage import stage_key

TITLE_PRIOR = "title prior"
"""Name of the part that knows titles alone."""


def fuse_entry(made_of: Ingredients, config: FuseConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return the sum of rankers of `before`, with weights in `FUSE_FILE` that are chosen when it is made.

    Raise ConfigError if a part cannot be asked about the whole catalogue as the weights need it.
    """
    parts = [before[name] for name in config.parts]
    parts += [_title_prior_entry(made_of)] if config.title_prior else []
    full = full_entries(parts)
    rows = made_of.data.some("validation", config.rows)
    if config.candidates == "catalogue":
        if left_out := sorted({part.name for part in parts} - {part.name for part in full}):
            raise ConfigError(
                f"{config.name}.candidates: {', '.join(left_out)} cannot be asked about the whole catalogue; "
                "set candidates: list, or leave them out of parts"
            )
        rows = whole_catalogue(rows, made_of.data.catalogue, seen_items(made_of.data, rows))
    key = stage_key(
        fuse=config.model_dump(exclude={"name", "rows"} | ({"weights"} if config.weights is None else set())),
        parts=[part.key for part in parts],
        model=model_key(made_of.model, made_of.data.domain),
        rows=[(e.user_id, e.history, e.candidates, e.target) for e in rows],
        seed=made_of.seed,
    )
    asked = full if config.candidates == "catalogue" else parts
    load_full = partial(_load, config.name, folder, full) if len(full) == len(parts) else None
    make, is_slow = partial(_choose, made_of, config, folder, asked, rows), any(part.is_slow for part in parts)
    load = partial(_load, config.name, folder, parts)
    return Entry(config.name, key, load, load_full, make=make, is_slow=is_slow)


def _title_prior_entry(made_of: Ingredients) -> Entry:
    lm = lm_entry(TITLE_PRIOR, None, made_of.data, made_of.model)

    def load(batch_size: int) -> Ranker:
        return TitlePriorRanker(
            TITLE_PRIOR, CatalogueRanker(lm_ranker(TITLE_PRIOR, None, made_of.data, made_of.model))
        )

    return Entry(TITLE_PRIOR, stage_key(title_prior=lm.key, model=lm.model), load, load)


def _choose(
    made_of: Ingredients, config: FuseConfig, folder: Path, parts: Sequence[Entry], rows: Sequence[RankingExample]
) -> None:
    """Write the weights with the highest NDCG@10 on these rows, and the NDCG@10 of each part, to `FUSE_FILE`."""
    section = EvaluateSection(split="validation", batch_size=made_of.batch_size)
    frames = ask_models(made_of.data, section, parts, rows, folder / "predictions", seed=made_of.seed)
    scores = [fuse.standardise(pad_scores(frame["scores"].to_list())) for frame in frames]
    targets, ndcg = np.array([e.target_index for e in rows]), metrics_for([10])["ndcg@10"]

    def quality(weights: Weights) -> float:
        return float(ndcg(*target_ranks(fuse.weighted_sum(scores, weights), targets)).mean())

    names = [part.name for part in parts]
    if config.weights is not None:
        weights: Weights = tuple(config.weights)
    else:
        # Titles that are likely without any history may have to count less, so the title prior can be subtracted.
        weights = fuse.choose_weights([fuse.SIGNED_GRID if n == TITLE_PRIOR else fuse.GRID for n in names], quality)
    reached = {name: quality(tuple(float(name == other) for other in names)) for name in names}
    chosen = {
        "candidates": config.candidates,
        "given": config.weights is not None,
        "n": len(rows),
        "weights": dict(zip(names, weights, strict=True)),
        "ndcg@10": reached | {config.name: quality(weights)},
    }
    if is_first():
        write_json(folder / FUSE_FILE, chosen)
    say(fuse.fusion_sentence(config.name, chosen))


def _load(name: str, folder: Path, parts: Sequence[Entry], batch_size: int) -> FuseRanker:
    weights = read_json(folder / FUSE_FILE)["weights"]
    return FuseRanker(name, [LateRanker(part, batch_size) for part in parts], [weights[part.name] for part in parts])


class LateRanker:
    """The ranker of an entry, which is loaded only for rows without known answers."""

    def __init__(self, entry: Entry, batch_size: int) -> None:
        self.name = entry.name
        self.entry = entry
        self.batch_size = batch_size
        self.known: pl.DataFrame | None = None

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep the entry's predictions; the next rows may be others."""
        self.known = answers.get(self.entry.key)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty places."""
        lists = [list(e.candidates) for e in examples]
        if self.known is not None and self.known["candidates"].to_list() == lists:
            return pad_scores(self.known["scores"].to_list())
        return self._ranker.score(examples)

    @cached_property
    def _ranker(self) -> Ranker:
        return self.entry.load(self.batch_size)


def _check_data(config: FuseConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: its weights are chosen on validation rows, and the data has none; leave this "
            "entry out, or prepare data with validation rows"
        )


def _needs(config: FuseConfig) -> dict[str, list[str]]:
    return {"parts": list(config.parts)}


KIND = RankerKind(FuseConfig, fuse_entry, _needs, asks=True, served=True, check_data=_check_data)

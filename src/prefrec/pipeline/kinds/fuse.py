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
from prefrec.evaluation import target_ranks, whole_catalogue
from prefrec.evaluation.metrics import ndcg
from prefrec.files import read_json, write_json
from prefrec.pipeline.entry import (
    Entry,
    adapter_key,
    full_entries,
    known_entry,
    lm_ranker,
    model_key,
    reference_entry,
)
from prefrec.pipeline.ingredients import Ingredients, due
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import REFERENCE_RANKERS, EvaluateSection, Recipe, check_known
from prefrec.pipeline.score import ask_models
from prefrec.processes import is_first
from prefrec.rankers import CatalogueRanker, Ranker
from prefrec.rankers.fuse import (
    FUSE_FILE,
    GRID,
    SIGNED_GRID,
    FuseConfig,
    FuseRanker,
    TitlePriorRanker,
    Weights,
    choose_weights,
    fusion_sentence,
    standardise,
    weighted_sum,
)
from prefrec.rankers.rows import pad_scores
from prefrec.runs.stage import stage, stage_key

TITLE_PRIOR = "title prior"
"""Name of the part that knows titles alone."""


def fuse_stage(made_of: Ingredients, config: FuseConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Choose the weights, and write them to `FUSE_FILE`, or find them there.

    Raises:
        ConfigError: there is no such part, or one cannot be asked as the weights are to be chosen.
    """
    listed = _part_entries(made_of, config, before)
    full = full_entries(listed)
    if config.candidates == "catalogue":
        _refuse_those_without(config, listed, full)
    rows = _validation_rows(made_of, config)
    key = stage_key(
        fuse=config.model_dump(exclude={"name", "rows"}),
        parts=[part.key for part in listed],
        model=model_key(made_of.model),
        rows=[(e.user_id, e.history, e.candidates, e.target) for e in rows],
        seed=made_of.seed,
    )
    if due(folder, key, config.name, [FUSE_FILE]):
        with stage(folder, key, config.kind, config.model_dump()):
            _choose(made_of, config, folder, full if config.candidates == "catalogue" else listed, rows)
    load = partial(_load, config.name, folder, listed)
    load_full = partial(_load, config.name, folder, full) if len(full) == len(listed) else None
    return Entry(config.name, key, load, load_full)


def _part_entries(made_of: Ingredients, config: FuseConfig, before: Mapping[str, Entry]) -> list[Entry]:
    found: list[Entry] = []
    for name in config.parts:
        if name in REFERENCE_RANKERS:
            found.append(reference_entry(name, made_of.data, made_of.data_key, made_of.seed))
        else:
            found.append(known_entry(name, config.name, before, "parts", REFERENCE_RANKERS))
    return [*found, *([_title_prior_entry(made_of)] if config.title_prior else [])]


def _title_prior_entry(made_of: Ingredients) -> Entry:
    def load(batch_size: int) -> Ranker:
        return TitlePriorRanker(TITLE_PRIOR, CatalogueRanker(lm_ranker(TITLE_PRIOR, None, data, model)))

    data, model = made_of.data, made_of.model
    key = stage_key(title_prior=adapter_key(None, data), model=model_key(model))
    return Entry(TITLE_PRIOR, key, load, load)


def _refuse_those_without(config: FuseConfig, parts: Sequence[Entry], full: Sequence[Entry]) -> None:
    """Raise ConfigError if a part cannot be asked about the whole catalogue."""
    if left_out := {part.name for part in parts} - {part.name for part in full}:
        raise ConfigError(
            f"{config.name}.candidates: {', '.join(sorted(left_out))} cannot be asked about the whole catalogue; "
            "set candidates: list, or leave them out of parts"
        )


def _validation_rows(made_of: Ingredients, config: FuseConfig) -> list[RankingExample]:
    rows = made_of.data.some("validation", config.rows)
    if config.candidates == "list":
        return rows
    return whole_catalogue(rows, made_of.data.catalogue, seen_items(made_of.data, rows))


def _choose(
    made_of: Ingredients,
    config: FuseConfig,
    folder: Path,
    parts: Sequence[Entry],
    rows: Sequence[RankingExample],
) -> None:
    section = EvaluateSection(split="validation", batch_size=made_of.batch_size)
    frames = ask_models(made_of.data, section, parts, rows, folder / "predictions", seed=made_of.seed)
    scores = [standardise(pad_scores(frame["scores"].to_list())) for frame in frames]
    targets = np.array([e.target_index for e in rows])

    def quality(weights: Weights) -> float:
        return float(ndcg(target_ranks(weighted_sum(scores, weights), targets, made_of.seed), 10).mean())

    names = [part.name for part in parts]
    weights = choose_weights([SIGNED_GRID if name == TITLE_PRIOR else GRID for name in names], quality)
    alone = [tuple(float(name == other) for other in names) for name in names]
    found = {
        "candidates": config.candidates,
        "n": len(rows),
        "weights": dict(zip(names, weights, strict=True)),
        "ndcg@10": {name: quality(w) for name, w in zip(names, alone, strict=True)} | {config.name: quality(weights)},
    }
    if is_first():
        write_json(folder / FUSE_FILE, found)
    say(fusion_sentence(config.name, found))


def _load(name: str, folder: Path, parts: Sequence[Entry], batch_size: int) -> FuseRanker:
    """Return the ranker of these parts, with the weights in the folder of the stage."""
    weights = read_json(folder / FUSE_FILE)["weights"]
    late = [LateRanker(part, batch_size) for part in parts]
    return FuseRanker(name, late, [weights[part.name] for part in parts])


class LateRanker:
    """The ranker of an entry, loaded when it is asked about rows to which its answers are not known."""

    def __init__(self, entry: Entry, batch_size: int) -> None:
        self.name = entry.name
        self.entry = entry
        self.batch_size = batch_size
        self.known: pl.DataFrame | None = None

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Take note of the entry's predictions, perhaps of the rows that are asked next."""
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


def _check_recipe(config: FuseConfig, recipe: Recipe, before: Sequence[str]) -> None:
    for part in config.parts:
        check_known(f"rankers.{config.name}.parts", part, [*REFERENCE_RANKERS, *before])


def _check_data(config: FuseConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: its weights are chosen on validation rows, and the data has none; leave this "
            "entry out, or prepare data with validation rows"
        )


KIND = RankerKind(FuseConfig, fuse_stage, _check_recipe, _check_data)

"""Blends in a recipe: weights of rankers and of item features, learnt on validation examples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample, has_dates, seen_items
from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json
from prefrec.pipeline.encoders import shows_candidates
from prefrec.pipeline.entry import Entry, RunInputs
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import BASELINES
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.baselines import baseline_rankers
from prefrec.rankers.blend import (
    BLEND_FILE,
    TIME,
    BlendConfig,
    BlendRanker,
    RerankedBlend,
    Weights,
    learn_rerank,
    learn_weights,
    weights_sentence,
)
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features
from prefrec.rankers.matrices import pad_codes, pad_scores
from prefrec.runs.stage import stage_key

MOST_CANDIDATES = 2000
"""Negatives per example to learn weights from. A sample keeps the weights consistent (McFadden 1978)."""
MOST_KEPT = 200_000_000
"""Scores of a part to keep in memory, for the blends that each leave out another part."""
RERANK_ROWS = 300
"""Validation examples that title models score."""


def blend_entry(inputs: RunInputs, config: BlendConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return the blend of rankers of `before`. Making it learns the weights and writes them to `BLEND_FILE`.

    Raise ConfigError if a part does not support full ranking.
    """
    data, parts = inputs.data, [_part(inputs, name, before) for name in config.parts]
    if unable := [part.name for part in parts if part.full is None]:
        raise ConfigError(
            f"rankers.{config.name}.parts: a blend needs full ranking, which {', '.join(unable)} cannot do: remove "
            "them from parts"
        )
    key = stage_key(
        blend=sorted(config.parts),
        rows=config.rows,
        parts=[part.key for part in parts],
        data=inputs.data_key,
        validation=[(e.user_id, e.target) for e in data.validation],
        seed=inputs.seed,
    )
    # Blends without a part query the same rankers, and use the same features.
    load_parts, times = cache(partial(_load_parts, inputs, parts)), cache(partial(RecountedFeatures, data))
    learn = partial(_learnt, inputs, config, load_parts, times)

    def entry(excluded: str = "") -> Entry:
        name = f"{config.name} without {excluded}" if excluded else config.name
        load = partial(_load, name, folder, load_parts, times, excluded=excluded)
        return Entry(name, stage_key(blend=key, without=excluded) if excluded else key, load, load)

    without = {part: entry(part) for part in (*config.parts, TIME)}
    crossed = partial(_load_crossed, config.name, folder, load_parts, times)
    return replace(entry(), make=partial(_learn, config.name, folder, learn), without=without, crossed=crossed)


LoadParts = Callable[[int], tuple[list[Ranker], list[Ranker]]]
"""Examples per pass → the parts that score all items, and the slow ones."""


def _load(
    name: str,
    folder: Path,
    load_parts: LoadParts,
    times: Callable[[], RecountedFeatures],
    batch_size: int,
    *,
    excluded: str,
) -> Ranker:
    """Return the blend with its learnt weights, without the `excluded` part or `TIME` if given."""
    return _blend(name, _read_weights(folder), load_parts(batch_size), times(), excluded)


def _load_crossed(
    name: str, folder: Path, load_parts: LoadParts, times: Callable[[], RecountedFeatures], batch_size: int
) -> Ranker:
    """Return the blend for validation examples: each is scored with weights learnt from other users."""
    return _blend(name, _read_weights(folder), load_parts(batch_size), times(), crossed=True)


def _read_weights(folder: Path) -> Weights:
    return Weights.from_json(read_json(folder / BLEND_FILE))


def _blend(
    name: str,
    weights: Weights,
    parts: tuple[list[Ranker], list[Ranker]],
    times: RecountedFeatures,
    excluded: str = "",
    crossed: bool = False,
) -> Ranker:
    fast, slow = parts
    blend = BlendRanker(name, fast, times, weights, excluded, crossed)
    kept = [model for model in slow if model.name != excluded]
    if not (kept and weights.reranked):
        return blend
    return RerankedBlend(blend, kept, weights.reranked_folds if crossed else (weights.reranked,))


def _learn(name: str, folder: Path, learn: Callable[[], Weights]) -> None:
    """Learn the weights, write them to `BLEND_FILE` and print them."""
    weights = learn()
    if is_first():
        write_json(folder / BLEND_FILE, weights.to_json())
    say(weights_sentence(name, weights))


def _learnt(
    inputs: RunInputs, config: BlendConfig, load_parts: LoadParts, times: Callable[[], RecountedFeatures]
) -> Weights:
    data, rng = inputs.data, np.random.default_rng([inputs.seed, 6])
    rows = data.some("validation", config.rows)
    fast, slow = load_parts(inputs.batch_size)
    say(f"{config.name}: learning weights on {len(rows):,} validation examples")
    weights = learn_weights(fast, times(), sampled(data, rows, MOST_CANDIDATES, rng))
    if slow:
        some = sampled(data, data.some("validation", RERANK_ROWS), len(data.catalogue), rng)
        weights = learn_rerank(BlendRanker(config.name, fast, times(), weights), slow, some)
    return weights


def sampled(
    data: PreparedData, rows: Sequence[RankingExample], most: int, rng: np.random.Generator
) -> list[RankingExample]:
    """Return the rows with sampled candidates: the target and at most `most` items that its user has not seen."""
    ids, drawn = data.catalogue.ids, np.arange(len(data.catalogue))
    if len(ids) > most:
        drawn = np.sort(rng.choice(len(ids), most, replace=False))
    listed = [ids[i] for i in drawn]
    return [
        replace(e, candidates=(e.target, *(i for i in listed if i not in seen and i != e.target)))
        for e, seen in zip(rows, seen_items(data, rows), strict=True)
    ]


class Recounted:
    """Counts of a log that include the targets of validation examples, except to score these examples."""

    def __init__(self, data: PreparedData, count: Callable[[pl.DataFrame], Any]) -> None:
        self.count = cache(lambda split: count(data.known_interactions(split)))
        self.validation = {(e.user_id, e.target) for e in data.validation}

    def before(self, examples: Sequence[RankingExample]) -> Any:
        """Return the counts of the interactions that are known before these examples."""
        is_validation = any((e.user_id, e.target) in self.validation for e in examples)
        return self.count("validation" if is_validation else "test")


class RecountedRanker(Recounted):
    """A baseline with `Recounted` counts."""

    def __init__(self, name: str, data: PreparedData, seed: int) -> None:
        fit = partial(baseline_rankers, catalogue=data.catalogue, seed=seed, names=[name], validation=data.validation)
        super().__init__(data, lambda log: fit(log)[0])
        self.name = name

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return the baseline's scores [B, C]."""
        return np.asarray(self.before(examples).score(examples))


class RecountedFeatures(Recounted):
    """`time_features` with `Recounted` counts."""

    def __init__(self, data: PreparedData) -> None:
        features = time_features(has_dates(data.train_interactions))
        self.names, index = [*features], data.catalogue.index
        super().__init__(data, lambda log: ItemFeatures(ItemHistory.of(log, data.catalogue), index, features))

    def __call__(self, examples: Sequence[RankingExample]) -> NDArray[np.float32]:
        """Return the features of the candidates [B, C, F]."""
        return np.asarray(self.before(examples)(examples))


class LazyRanker:
    """The ranker of an entry, which is loaded only to score examples without known predictions.

    An evaluation begins with `know`. From then on, scores of a block of examples are kept for the next blend.
    """

    def __init__(self, entry: Entry, batch_size: int) -> None:
        self.name = entry.name
        self.entry = entry
        self.batch_size = batch_size
        self.known: list[dict[str, float]] = []
        self.kept: dict[tuple[Any, ...], NDArray[np.float32]] | None = None

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep the entry's predictions, which may be of other examples than the next ones."""
        frame = answers.get(self.entry.key)
        rows = [] if frame is None else frame.select("candidates", "scores").iter_rows()
        self.known = [dict(zip(*row, strict=True)) for row in rows]
        self.kept = {} if self.kept is None else self.kept

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        pairs = list(zip(self.known, examples, strict=False))
        if len(pairs) == len(self.known) == len(examples) and all(t.keys() >= {*e.candidates} for t, e in pairs):
            return pad_scores([[t[c] for c in e.candidates] for t, e in pairs])
        if self.kept is None:  # a server must not keep the scores of all requests
            return self._ranker.score(examples)
        block = tuple((e, e.time) for e in examples)
        if block not in self.kept:
            if sum(scores.size for scores in self.kept.values()) > MOST_KEPT:
                self.kept.clear()
            self.kept[block] = self._ranker.score(examples).astype(np.float32)
        return self.kept[block].astype(np.float64)

    @cached_property
    def _ranker(self) -> Ranker:
        return self.entry.load(self.batch_size)


class LearntItems:
    """A ranker that learnt items from interactions. An item without any gets the median score of its example.

    Otherwise it would rank near the end, although a new item may well be next.
    """

    def __init__(self, ranker: LazyRanker, learnt: Collection[str]) -> None:
        self.name, self.ranker, self.learnt = ranker.name, ranker, dict.fromkeys(learnt, 0)

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on."""
        self.ranker.know(answers)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        scores = self.ranker.score(examples)
        known = pad_codes([e.candidates for e in examples], self.learnt) == 0
        medians = np.zeros((len(scores), 1))
        some = known.any(axis=1)
        medians[some] = np.nanmedian(np.where(known, scores, np.nan)[some], axis=1, keepdims=True)
        return np.where(known | np.isneginf(scores), scores, medians)


def _part(inputs: RunInputs, name: str, before: Mapping[str, Entry]) -> Entry:
    if name not in BASELINES:
        return before[name]
    entry = before[name]
    load = lambda size: RecountedRanker(name, inputs.data, inputs.seed)  # noqa: E731
    return replace(entry, load=load, load_full=load)


def _load_parts(inputs: RunInputs, parts: Sequence[Entry], batch_size: int) -> tuple[list[Ranker], list[Ranker]]:
    """Return the parts that score all items, and the title models, which are slow."""
    full = {part.name: part.full or part for part in parts}
    lazy = [LazyRanker(full[part.name], batch_size) for part in parts if not part.is_slow]
    learnt = set(inputs.data.train_interactions["item_id"].unique())
    fast: list[Ranker] = [part if part.name in BASELINES else LearntItems(part, learnt) for part in lazy]
    # A prompt that shows candidates has no room for so many.
    slow = [full[part.name] if shows_candidates(inputs.model, inputs.data.domain) else part for part in parts]
    return fast, [LazyRanker(entry, batch_size) for entry, part in zip(slow, parts, strict=True) if part.is_slow]


def _check_data(config: BlendConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: a blend learns its weights on validation examples, and the data have none: "
            "remove this entry, or prepare data with validation examples"
        )


def _needs(config: BlendConfig) -> dict[str, list[str]]:
    return {"parts": list(config.parts)}


KIND = RankerKind(BlendConfig, blend_entry, _needs, queries=True, served=True, check_data=_check_data)

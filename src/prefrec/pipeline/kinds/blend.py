"""Blend in a recipe: weights of rankers, and of what is known of items, learnt on validation rows."""

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
"""Negatives of a row that weights are learnt from: weights stay consistent with a sample (McFadden 1978)."""
MOST_KEPT = 200_000_000
"""Scores of a part that are kept for blends without another part."""
RERANK_ROWS = 300
"""Validation rows that title models are asked about."""


def blend_entry(inputs: RunInputs, config: BlendConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return the blend of rankers of `before`, with weights in `BLEND_FILE` that are learnt when it is made.

    Raise ConfigError if a part cannot be asked about the whole catalogue.
    """
    data, parts = inputs.data, [_part(inputs, name, before) for name in config.parts]
    if left_out := [part.name for part in parts if part.full is None]:
        raise ConfigError(
            f"rankers.{config.name}.parts: {', '.join(left_out)} cannot rank the full catalogue, as a "
            "blend needs; leave them out"
        )
    key = stage_key(
        blend=sorted(config.parts),
        rows=config.rows,
        parts=[part.key for part in parts],
        data=inputs.data_key,
        validation=[(e.user_id, e.target) for e in data.validation],
        seed=inputs.seed,
    )
    # Blends without a part ask the same rankers, and count the same features.
    late, times = cache(partial(_late, inputs, parts)), cache(partial(RecountedFeatures, data))
    learn = partial(_learnt, inputs, config, late, times)

    def entry(left_out: str = "") -> Entry:
        name = f"{config.name} without {left_out}" if left_out else config.name
        load = partial(_load, name, folder, late, times, left_out=left_out)
        return Entry(name, stage_key(blend=key, without=left_out) if left_out else key, load, load)

    without = {part: entry(part) for part in (*config.parts, TIME)}
    crossed = partial(_load_crossed, config.name, folder, late, times)
    return replace(entry(), make=partial(_learn, config.name, folder, learn), without=without, crossed=crossed)


Late = Callable[[int], tuple[list[Ranker], list[Ranker]]]
"""Rows per pass → the rankers that are asked about all items, and those that are slow."""


def _load(
    name: str, folder: Path, late: Late, times: Callable[[], RecountedFeatures], batch_size: int, *, left_out: str
) -> Ranker:
    """Return a blend whose weights were learnt, or the one without a part or `TIME`."""
    return _blend(name, _read_weights(folder), late(batch_size), times(), left_out)


def _load_crossed(
    name: str, folder: Path, late: Late, times: Callable[[], RecountedFeatures], batch_size: int
) -> Ranker:
    """Return the blend for the validation rows: each has weights that were learnt from other users."""
    return _blend(name, _read_weights(folder), late(batch_size), times(), crossed=True)


def _read_weights(folder: Path) -> Weights:
    return Weights.from_json(read_json(folder / BLEND_FILE))


def _blend(
    name: str,
    weights: Weights,
    late: tuple[list[Ranker], list[Ranker]],
    times: RecountedFeatures,
    left_out: str = "",
    crossed: bool = False,
) -> Ranker:
    fast, slow = late
    blend = BlendRanker(name, fast, times, weights, left_out, crossed)
    asked = [model for model in slow if model.name != left_out]
    if not (asked and weights.reranked):
        return blend
    return RerankedBlend(blend, asked, weights.reranked_folds if crossed else (weights.reranked,))


def _learn(name: str, folder: Path, learn: Callable[[], Weights]) -> None:
    """Write the weights to `BLEND_FILE`."""
    weights = learn()
    if is_first():
        write_json(folder / BLEND_FILE, weights.to_json())
    say(weights_sentence(name, weights))


def _learnt(inputs: RunInputs, config: BlendConfig, late: Late, times: Callable[[], RecountedFeatures]) -> Weights:
    data, rng = inputs.data, np.random.default_rng([inputs.seed, 6])
    rows = data.some("validation", config.rows)
    fast, slow = late(inputs.batch_size)
    say(f"{config.name}: learning weights on {len(rows):,} validation rows")
    weights = learn_weights(fast, times(), sampled(data, rows, MOST_CANDIDATES, rng))
    if slow:
        some = sampled(data, data.some("validation", RERANK_ROWS), len(data.catalogue), rng)
        weights = learn_rerank(BlendRanker(config.name, fast, times(), weights), slow, some)
    return weights


def sampled(
    data: PreparedData, rows: Sequence[RankingExample], most: int, rng: np.random.Generator
) -> list[RankingExample]:
    """Return the rows with other candidates: the target and at most `most` items that are new to their users."""
    ids, drawn = data.catalogue.ids, np.arange(len(data.catalogue))
    if len(ids) > most:
        drawn = np.sort(rng.choice(len(ids), most, replace=False))
    listed = [ids[i] for i in drawn]
    return [
        replace(e, candidates=(e.target, *(i for i in listed if i not in seen and i != e.target)))
        for e, seen in zip(rows, seen_items(data, rows), strict=True)
    ]


class Recounted:
    """Counts of a log: with the targets of validation rows, unless these rows themselves are asked about."""

    def __init__(self, data: PreparedData, count: Callable[[pl.DataFrame], Any]) -> None:
        self.count = cache(lambda split: count(data.known_interactions(split)))
        self.validation = {(e.user_id, e.target) for e in data.validation}

    def before(self, examples: Sequence[RankingExample]) -> Any:
        """Return what was counted in the interactions that are known before these rows."""
        is_own = any((e.user_id, e.target) in self.validation for e in examples)
        return self.count("validation" if is_own else "test")


class RecountedRanker(Recounted):
    """A baseline that is `Recounted`."""

    def __init__(self, name: str, data: PreparedData, seed: int) -> None:
        fit = partial(baseline_rankers, catalogue=data.catalogue, seed=seed, names=[name], validation=data.validation)
        super().__init__(data, lambda log: fit(log)[0])
        self.name = name

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return the baseline's scores [B, C]."""
        return np.asarray(self.before(examples).score(examples))


class RecountedFeatures(Recounted):
    """`time_features` that are `Recounted`."""

    def __init__(self, data: PreparedData) -> None:
        features = time_features(has_dates(data.train_interactions))
        index, self.names = {item: i for i, item in enumerate(data.catalogue.ids)}, [*features]
        super().__init__(data, lambda log: ItemFeatures(ItemHistory.of(log, data.catalogue), index, features))

    def __call__(self, examples: Sequence[RankingExample]) -> NDArray[np.float32]:
        """Return the features of the candidates [B, C, F]."""
        return np.asarray(self.before(examples)(examples))


class LateRanker:
    """The ranker of an entry, which is loaded only for rows without known answers.

    In an evaluation, which `know` begins, it is asked once about a block of rows that several blends ask about.
    """

    def __init__(self, entry: Entry, batch_size: int) -> None:
        self.name = entry.name
        self.entry = entry
        self.batch_size = batch_size
        self.known: list[dict[str, float]] = []
        self.kept: dict[tuple[Any, ...], NDArray[np.float32]] | None = None

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Keep the entry's predictions; the next rows may be others."""
        frame = answers.get(self.entry.key)
        rows = [] if frame is None else frame.select("candidates", "scores").iter_rows()
        self.known = [dict(zip(*row, strict=True)) for row in rows]
        self.kept = {} if self.kept is None else self.kept

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty places."""
        pairs = list(zip(self.known, examples, strict=False))
        if len(pairs) == len(self.known) == len(examples) and all(t.keys() >= {*e.candidates} for t, e in pairs):
            return pad_scores([[t[c] for c in e.candidates] for t, e in pairs])
        if self.kept is None:  # a server would keep the answers to all its questions
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
    """A ranker that learnt items from interactions. An item without any gets the median score of its row.

    Such an item would else be among the last, though a new item may well be next.
    """

    def __init__(self, ranker: LateRanker, learnt: Collection[str]) -> None:
        self.name, self.ranker, self.learnt = ranker.name, ranker, dict.fromkeys(learnt, 0)

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on."""
        self.ranker.know(answers)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty places."""
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


def _late(inputs: RunInputs, parts: Sequence[Entry], batch_size: int) -> tuple[list[Ranker], list[Ranker]]:
    """Return the rankers that are asked about all items, and the title models, which are slow."""
    full = {part.name: part.full or part for part in parts}
    late = [LateRanker(full[part.name], batch_size) for part in parts if not part.is_slow]
    learnt = set(inputs.data.train_interactions["item_id"].unique())
    fast: list[Ranker] = [part if part.name in BASELINES else LearntItems(part, learnt) for part in late]
    # A prompt with candidates has no room for so many.
    slow = [full[part.name] if shows_candidates(inputs.model, inputs.data.domain) else part for part in parts]
    return fast, [LateRanker(part, batch_size) for part, own in zip(slow, parts, strict=True) if own.is_slow]


def _check_data(config: BlendConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: its weights are learnt on validation rows, and the data has none; leave this "
            "entry out, or prepare data with validation rows"
        )


def _needs(config: BlendConfig) -> dict[str, list[str]]:
    return {"parts": list(config.parts)}


KIND = RankerKind(BlendConfig, blend_entry, _needs, asks=True, served=True, check_data=_check_data)

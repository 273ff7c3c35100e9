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
from prefrec.errors import ConfigError, DataError
from prefrec.files import read_json, write_json
from prefrec.pipeline.encoders import shows_candidates
from prefrec.pipeline.entry import Entry, RunInputs, fitted_baselines
from prefrec.pipeline.kinds import RankerKind
from prefrec.pipeline.recipe import BASELINES, PARTS
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.base import ComposedRanker
from prefrec.rankers.baselines import LIMITED, unable
from prefrec.rankers.blend import (
    BLEND_FILE,
    FOLDS,
    TIME,
    BlendConfig,
    BlendRanker,
    RerankedBlend,
    Weights,
    folds_of,
    learn_rerank,
    learn_weights,
    weights_sentence,
)
from prefrec.rankers.item_features import ItemFeatures, ItemHistory, time_features
from prefrec.rankers.matrices import pad_codes, pad_scores
from prefrec.rankers.reward import RewardRanker
from prefrec.rankers.softmax import FoldRanker
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
    data, parts = inputs.data, _parts(inputs, config, before)
    if lists := [part.name for part in parts if part.full is None]:
        raise ConfigError(
            f"rankers.{config.name}.parts: a blend needs full ranking, which {', '.join(lists)} cannot do: remove "
            "them from parts"
        )
    key = stage_key(
        blend=sorted(config.parts),
        rows=config.rows,
        parts=[part.key for part in parts],
        data=inputs.data_key,
        validation=[(e.user_id, e.target) for e in data.validation],
        seed=inputs.seed,
        **({"select": True} if config.select else {}),
    )
    by_split = BlendParts(inputs, parts)
    learn = partial(_learn, config.name, folder, partial(_learnt, inputs, config, by_split))
    return replace(_entries(config, key, folder, by_split), make=learn, weights=folder)


def _refit_entry(
    inputs: RunInputs, config: BlendConfig, folder: Path, before: Mapping[str, Entry], first: Entry
) -> Entry:
    """Return the blend of rankers that were refit, with the weights of `first`, which validation examples gave."""
    parts = _parts(inputs, config, before)
    key = stage_key(refit=first.key, parts=[part.key for part in parts])
    assert first.weights is not None
    return _entries(config, key, first.weights, BlendParts(inputs, parts))


def _entries(config: BlendConfig, key: str, folder: Path, by_split: BlendParts) -> Entry:
    """Return the blend with the weights in a folder; it has the blends without one of its parts."""

    def entry(excluded: str = "") -> Entry:
        name = f"{config.name} without {excluded}" if excluded else config.name
        load, crossed = (partial(_load, name, folder, by_split, split, excluded) for split in ("test", "validation"))
        return Entry(name, stage_key(blend=key, without=excluded) if excluded else key, load, load, crossed=crossed)

    without = {part: entry(part) for part in (*by_split.names, TIME)}
    training = partial(_load_for_training, config.name, folder, by_split)
    return replace(entry(), without=without, left_out=lambda: _read_weights(folder).left_out, training=training)


def _load(name: str, folder: Path, by_split: BlendParts, split: str, excluded: str, batch_size: int) -> Ranker:
    """Return the blend for examples of a split, without the `excluded` part or `TIME` if given.

    Each validation example is scored with weights learnt from other users. Only the whole blend has such weights.
    """
    fast, slow = by_split.rankers(split, batch_size)
    weights, is_crossed = _read_weights(folder), split == "validation" and not excluded
    blend = BlendRanker(name, fast, by_split.times(split), weights, excluded, is_crossed)
    kept = [model for model in slow if model.name != excluded]
    if not (kept and weights.reranked):
        return blend
    return RerankedBlend(blend, kept, weights.reranked_folds if is_crossed else (weights.reranked,))


def _load_for_training(name: str, folder: Path, by_split: BlendParts, batch_size: int) -> Ranker:
    """Return the blend for training examples, with counts of the users of other folds, and without title models."""
    weights = _read_weights(folder)
    own = [entry.name for entry in by_split.entries if entry.name not in BASELINES and entry.training is None]
    if own := [part for part in own if part in weights.units]:
        say(f"{name}: {', '.join(own)} learnt from these examples themselves; only counts are those of other users")

    def load(fold: int) -> Ranker:
        return BlendRanker(name, *by_split.without_fold(fold, [*weights.units], batch_size), weights)

    return FoldRanker(name, load)


def _read_weights(folder: Path) -> Weights:
    return Weights.from_json(read_json(folder / BLEND_FILE))


def _learn(name: str, folder: Path, learn: Callable[[], Weights]) -> None:
    """Learn the weights, write them to `BLEND_FILE` and print them."""
    weights = learn()
    if is_first():
        write_json(folder / BLEND_FILE, weights.to_json())
    say(weights_sentence(name, weights))


def _learnt(inputs: RunInputs, config: BlendConfig, by_split: BlendParts) -> Weights:
    data, rng = inputs.data, np.random.default_rng([inputs.seed, 6])
    rows = data.some("validation", config.rows)
    fast, slow = by_split.rankers("validation", inputs.batch_size)
    times = by_split.times("validation")
    for part, reason in _unable(inputs, config).items():
        say(f"{config.name}: {part} is left out: it {reason}")
    say(f"{config.name}: learning weights on {len(rows):,} validation examples")
    weights = learn_weights(fast, times, sampled(data, rows, MOST_CANDIDATES, rng), select=config.select)
    if slow:
        some = sampled(data, data.some("validation", RERANK_ROWS), len(data.catalogue), rng)
        weights = learn_rerank(BlendRanker(config.name, fast, times, weights), slow, some)
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


class BlendParts:
    """Parts and item features of a blend, which count what is known before the examples of a split.

    That are the training interactions; for `test`, and for questions to a server, with validation targets. A ranker
    is loaded once, and the blends that each leave out another part share it.
    """

    def __init__(self, inputs: RunInputs, entries: Sequence[Entry]) -> None:
        self.inputs = inputs
        self.entries = entries
        self.names = [entry.name for entry in entries]
        self.rankers = cache(self._rankers)
        self.times = cache(partial(split_features, inputs.data))
        self._loaded: dict[tuple[str, int], LazyRanker] = {}

    def _rankers(self, split: str, batch_size: int) -> tuple[list[Ranker], list[Ranker]]:
        """Return the parts that score all items, and the title models, which are slow."""
        learnt = set(self.inputs.data.train_interactions["item_id"].unique())
        fast, slow = list[Ranker](), list[Ranker]()
        for part in self.entries:
            ranker = self._ranker(part, split, batch_size)
            if part.is_slow:
                slow.append(ranker)
            else:
                fast.append(ranker if part.name in BASELINES else LearntItems(ranker, learnt))
        return fast, slow

    def _ranker(self, part: Entry, split: str, batch_size: int) -> Ranker:
        if part.ratio:
            aligned, start, beta = part.ratio
            policy, reference = (self._ranker(model, split, batch_size) for model in (aligned, start))
            return RewardRanker(part.name, policy, reference, beta)
        # A prompt that shows candidates has no room for so many.
        without_candidates = shows_candidates(self.inputs.model, self.inputs.data.domain)
        full = part.full or part
        return self._lazy((full if without_candidates or not part.is_slow else part).on(split), batch_size)

    def without_fold(self, fold: int, names: Sequence[str], batch_size: int) -> tuple[list[Ranker], ItemFeatures]:
        """Return the fast parts of these names and the item features for training examples of the users of a fold.

        They count the training interactions of all other users.
        """
        data, log = self.inputs.data, self.inputs.data.train_interactions
        others = outside_fold(log, fold)
        fast, _ = self.rankers("validation", batch_size)
        counts = [part.name for part in fast if part.name in BASELINES and part.name in names]
        rankers = {r.name: r for r in fitted_baselines(self.inputs, others, counts)}
        learnt = set(log["item_id"].unique())
        rankers |= {e.name: LearntItems(e.training(batch_size), learnt) for e in self.entries if e.training}
        features = time_features(has_dates(log))
        history = ItemHistory.of(others, data.catalogue)
        parts = [rankers.get(part.name, part) for part in fast]
        return parts, ItemFeatures(history, data.catalogue.index, features)

    def _lazy(self, entry: Entry, batch_size: int) -> LazyRanker:
        # Rankers that are the same for all splits, such as language models, are loaded once.
        return self._loaded.setdefault((entry.key, batch_size), LazyRanker(entry, batch_size))


def outside_fold(log: pl.DataFrame, fold: int) -> pl.DataFrame:
    """Return the interactions of all users but those of a fold; raise DataError if there are none."""
    users = log["user_id"].unique(maintain_order=True).to_list()
    kept = [user for user, own in zip(users, folds_of(users, FOLDS).tolist(), strict=True) if own != fold]
    if not kept:
        raise DataError(
            "negatives_from: ranker counts the interactions of other users, and there are too few users for that: "
            "choose other negatives"
        )
    return log.filter(pl.col("user_id").is_in(kept))


def split_features(data: PreparedData, split: str) -> ItemFeatures:
    """Return `time_features` that count what is known before the examples of a split."""
    features = time_features(has_dates(data.train_interactions))
    history = ItemHistory.of(data.known_interactions(split), data.catalogue)
    return ItemFeatures(history, data.catalogue.index, features)


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

    def __init__(self, ranker: Ranker, learnt: Collection[str]) -> None:
        self.name, self.ranker, self.learnt = ranker.name, ranker, dict.fromkeys(learnt, 0)

    def know(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on."""
        if isinstance(self.ranker, ComposedRanker):
            self.ranker.know(answers)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        scores = self.ranker.score(examples)
        known = pad_codes([e.candidates for e in examples], self.learnt) == 0
        medians = np.zeros((len(scores), 1))
        some = known.any(axis=1)
        medians[some] = np.nanmedian(np.where(known, scores, np.nan)[some], axis=1, keepdims=True)
        return np.where(known | np.isneginf(scores), scores, medians)


def _unable(inputs: RunInputs, config: BlendConfig) -> dict[str, str]:
    """Return name → reason of the parts that cannot be fitted to the longest log that they count."""
    limited = LIMITED.intersection(config.parts)
    return unable(inputs.data.known_interactions("test"), limited) if limited else {}


def _parts(inputs: RunInputs, config: BlendConfig, before: Mapping[str, Entry]) -> list[Entry]:
    """Return the parts that can be fitted; raise ConfigError if there are none."""
    without = _unable(inputs, config)
    if len(without) == len(config.parts):
        why = "; ".join(f"{part} {reason}" for part, reason in without.items())
        raise ConfigError(f"rankers.{config.name}.parts: the data have none of these parts: {why}")
    return [_part(inputs, name, before) for name in config.parts if name not in without]


def _part(inputs: RunInputs, name: str, before: Mapping[str, Entry]) -> Entry:
    """Return a part as an entry; a baseline counts what is known before the examples of a split."""
    if name not in BASELINES:
        return before[name]

    def load(split: str, batch_size: int) -> Ranker:
        (ranker,) = fitted_baselines(inputs, inputs.data.known_interactions(split), [name])
        return ranker

    for_test = partial(load, "test")
    return replace(before[name], load=for_test, load_full=for_test, crossed=partial(load, "validation"))


def _check_data(config: BlendConfig, data: PreparedData) -> None:
    if not data.validation:
        raise ConfigError(
            f"rankers.{config.name}: a blend learns its weights on validation examples, and the data have none: "
            "remove this entry, or prepare data with validation examples"
        )


def _needs(config: BlendConfig) -> dict[str, list[str]]:
    return {PARTS: list(config.parts)}


KIND = RankerKind(
    BlendConfig, blend_entry, _needs, queries=True, served=True, check_data=_check_data, refit=_refit_entry
)

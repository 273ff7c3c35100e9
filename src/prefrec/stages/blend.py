"""Blends in a recipe: weights of rankers and of item features, learnt on validation examples."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.console import say, warn
from prefrec.data import PreparedData, Query, RankingExample, has_dates, seen_items
from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json
from prefrec.processes import is_first
from prefrec.rankers import Ranker
from prefrec.rankers.base import ComposedRanker
from prefrec.rankers.baselines import BASELINES, LIMITED, unable
from prefrec.rankers.blend import (
    BLEND_FILE,
    RERANKED,
    BlendConfig,
    BlendRanker,
    KeptColumns,
    RerankedBlend,
    Weights,
)
from prefrec.rankers.blend_learning import RIDGES, learn_rerank, learn_weights
from prefrec.rankers.item_features import POPULARITY, TIME, ItemFeatures, ItemHistory, time_features
from prefrec.rankers.matrices import candidate_codes
from prefrec.rankers.own_past import PAST, OwnPast
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage, View
from prefrec.stages.baseline import AttributeStage, CountedBaselineStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.item_texts import shows_candidates

MOST_CANDIDATES = 2000
"""Negatives per example to learn weights from. A sample keeps the weights consistent (McFadden 1978)."""
RERANK_ROWS = 300
"""Validation examples that title models score."""


class BlendStage(RankerStage):
    """A blend of earlier rankers and baselines. Making it learns the weights and writes them to `BLEND_FILE`.

    In a refit, it blends the rankers that were refit, with the weights of `first`, which validation examples gave.

    Raise ConfigError if a part does not support full ranking, or the data have none of the parts.
    """

    Config = BlendConfig
    served = True
    queries = True
    has_out_of_fold = True
    config: BlendConfig

    def __init__(
        self,
        inputs: RunInputs,
        config: BlendConfig,
        folder: Path,
        before: Mapping[str, RankerStage],
        first: RankerStage | None = None,
    ) -> None:
        super().__init__(inputs, config, folder, before, first)
        self.parts = BlendParts(inputs, self._parts())
        if lists := [part.name for part in self.parts.stages if part.full is None]:
            raise ConfigError(
                f"rankers.{self.name}.parts: a blend needs full ranking, which {', '.join(lists)} cannot do: remove "
                "them from parts"
            )

    @property
    def makes_files(self) -> bool:
        return self.first is None

    @cached_property
    def key(self) -> str:
        parts = [part.key for part in self.parts.stages]
        if self.first is not None:
            return stage_key(refit=self.first.key, parts=parts)
        return stage_key(
            blend=sorted(self.config.parts),
            item_features=[POPULARITY, TIME],
            shrinkage=RIDGES,
            rows=self.config.rows,
            parts=parts,
            data=self.inputs.data_key,
            validation=[(e.user_id, e.target) for e in self.inputs.data.validation],
            seed=self.inputs.seed,
            **({"select": True} if self.config.select else {}),
            **({"past": True} if self.inputs.data.keeps_repeats else {}),
            **({"attributes": sorted(self.config.attribute_names)} if self.config.attributes else {}),
        )

    def make(self) -> None:
        weights = self._learn()
        if is_first():
            write_json(self.folder / BLEND_FILE, weights.to_json())
        say(self._outcome(weights))

    def _outcome(self, weights: Weights) -> str:
        """Return how much was learnt, and from what; the report has the weights themselves."""
        whole = weights.logits[""]
        out = [*self._unable(), *weights.left_out]
        left = f"; left out: {', '.join(out)}" if out else ""
        return f"{self.name}: {len(whole.names)} weights learnt on {whole.n:,} validation examples{left}"

    def load(self, batch_size: int) -> Ranker:
        return self.load_without("", "test", batch_size)

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return self.load_without("", "validation", batch_size)

    def load_without(self, excluded: str, split: str, batch_size: int) -> Ranker:
        """Load the blend for examples of a split, without a part or a group of features; "": the whole blend.

        Each validation example is scored with weights learnt from other users. Only the whole blend has such weights.
        """
        name = f"{self.name} without {excluded}" if excluded else self.name
        fast, slow = self.parts.rankers(split, batch_size)
        weights = self._weights()
        is_out_of_fold = split == "validation" and not excluded
        past = self.parts.past(split)
        columns = self.parts.kept(split)
        blend = BlendRanker(name, fast, self.parts.times(split), weights, excluded, is_out_of_fold, past, columns)
        kept = [model for model in slow if model.name != excluded]
        if not (kept and weights.reranked):
            return blend
        if len(kept) < len(slow):
            return RerankedBlend(blend, kept, (weights.reranked_without[excluded],))
        return RerankedBlend(blend, kept, weights.reranked_folds if is_out_of_fold else (weights.reranked,))

    def forget(self) -> None:
        self.parts.rankers.cache_clear()
        self.parts.times.cache_clear()
        self.parts.past.cache_clear()
        self.parts.kept.cache_clear()

    @cached_property
    def without(self) -> dict[str, RankerStage]:
        """Part, `POPULARITY`, `TIME` or `PAST` → the blend without it. The difference is what the part adds."""
        data = self.inputs.data
        features = (POPULARITY, *([TIME] if data.has_dates else []), *([PAST] if data.keeps_repeats else []))
        return {part: WithoutPart(self, part) for part in (*self.parts.names, *features)}

    @property
    def ablations(self) -> list[RankerStage]:
        left_out = self._weights().left_out
        blends = [less for part, less in self.without.items() if part not in left_out]
        # Without its only part a blend scores nothing.
        return blends if len(blends) > 1 else []

    @property
    def left_out(self) -> Collection[str]:
        if not read_json(self._file):  # not made yet, or damaged, which is refused where it is opened
            return ()
        weights = self._weights()
        slow = {part.name for part in self.parts.stages if part.is_slow}
        return {*weights.left_out} | (set() if weights.reranked else slow)

    def _weights(self) -> Weights:
        return Weights.from_json(read_json(self._file))

    @property
    def _file(self) -> Path:
        return (self.first or self).folder / BLEND_FILE

    def _parts(self) -> list[RankerStage]:
        """Return the parts that can be fitted; baselines count what is known before the examples of a split."""
        reasons = self._unable()
        parts: list[RankerStage] = []
        for name in self.config.parts:
            if name not in reasons:
                parts.append(CountedBaselineStage(self.inputs, name) if name in BASELINES else self.before[name])
        parts += [AttributeStage(self.inputs, *attribute) for attribute in self.config.attributes.items()]
        if not parts:
            why = "; ".join(f"{part} {reason}" for part, reason in reasons.items())
            raise ConfigError(f"rankers.{self.name}.parts: the data have none of these parts: {why}")
        return parts

    def _unable(self) -> dict[str, str]:
        """Return name → reason of the parts that cannot be fitted to the longest log that they count."""
        limited = LIMITED.intersection(self.config.parts)
        return unable(self.inputs.data.known_interactions("test"), limited) if limited else {}

    def _learn(self) -> Weights:
        data = self.inputs.data
        rng = np.random.default_rng([self.inputs.seed, 6])
        rows = data.examples("validation", self.config.rows)
        fast, slow = self.parts.rankers("validation", self.inputs.batch_size)
        times, past = self.parts.times("validation"), self.parts.past("validation")
        for part, reason in self._unable().items():
            say(f"{self.name}: {part} is left out: it {reason}")
        for ranker in fast:
            if isinstance(ranker, ComposedRanker):
                # From now on it keeps scores, because other blends learn from the same examples.
                ranker.use_predictions({})
        # Weights apart for own items double the features, so half of the candidates take as much memory.
        most = MOST_CANDIDATES if past is None else MOST_CANDIDATES // 2
        sample = sampled(data, rows, most, rng)
        weights = learn_weights(fast, times, sample, select=self.config.select, past=past)
        if slow:
            sample = sampled(data, data.examples("validation", RERANK_ROWS), len(data.catalogue), rng)
            weights = learn_rerank(BlendRanker(self.name, fast, times, weights, past=past), slow, sample)
            if not weights.reranked:
                names = ", ".join(model.name for model in slow)
                warn(
                    f"{self.name}: {names} will reorder nothing, because none of the {len(sample):,} sampled "
                    f"validation targets is among the {RERANKED} best items of the rest of the blend"
                )
        return weights


class WithoutPart(View):
    """A blend without one of its parts, `POPULARITY`, `TIME` or `PAST`."""

    of: BlendStage

    def __init__(self, of: BlendStage, excluded: str) -> None:
        super().__init__(of)
        self.name = f"{of.name} without {excluded}"
        self.excluded = excluded
        if isinstance(of.first, BlendStage):
            self.first = of.first.without[excluded]

    @property
    def key(self) -> str:
        return stage_key(blend=self.of.key, without=self.excluded)

    def load(self, batch_size: int) -> Ranker:
        return self.of.load_without(self.excluded, "test", batch_size)

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return self.of.load_without(self.excluded, "validation", batch_size)


def sampled(
    data: PreparedData, rows: Sequence[RankingExample], most: int, rng: np.random.Generator
) -> list[RankingExample]:
    """Return the rows with sampled candidates: the target and at most `most` items that its user has not seen."""
    ids = data.catalogue.ids
    drawn = np.arange(len(ids))
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
    is loaded once for all blends of a run, which share its scores as well (`LazyRanker`).
    """

    def __init__(self, inputs: RunInputs, stages: Sequence[RankerStage]) -> None:
        self.inputs = inputs
        self.stages = stages
        self.names = [stage.name for stage in stages]
        self.rankers = cache(self._rankers)
        self.times = cache(partial(split_features, inputs.data))
        self.past = cache(partial(split_past, inputs.data))
        self.kept = cache(lambda split: KeptColumns())

    def _rankers(self, split: str, batch_size: int) -> tuple[list[Ranker], list[Ranker]]:
        """Return the parts that score all items, and the title models, which are slow."""
        learnt = set(self.inputs.data.train_interactions["item_id"].unique())
        fast: list[Ranker] = []
        slow: list[Ranker] = []
        for part in self.stages:
            ranker = self._ranker(part, split, batch_size)
            if part.is_slow:
                slow.append(ranker)
            else:
                fast.append(LearntItems(ranker, learnt) if part.learns else ranker)
        return fast, slow

    def _ranker(self, part: RankerStage, split: str, batch_size: int) -> Ranker:
        # A prompt that shows candidates has no room for so many.
        without_candidates = shows_candidates(self.inputs.model, self.inputs.data.domain)
        asked = (part.full or part) if without_candidates or not part.is_slow else part
        return self.inputs.lazy(asked.out_of_fold if split == "validation" else asked, batch_size)


def split_features(data: PreparedData, split: str) -> ItemFeatures:
    """Return `time_features` that count what is known before the examples of a split."""
    features = time_features(has_dates(data.train_interactions))
    history = ItemHistory.of(data.known_interactions(split), data.catalogue)
    return ItemFeatures(history, data.catalogue.index, features)


def split_past(data: PreparedData, split: str) -> OwnPast | None:
    """Return the features of own items, by the gaps that are known before a split; None without repeats."""
    return OwnPast.of(data.known_interactions(split)) if data.keeps_repeats else None


class LearntItems:
    """A ranker that learnt items from interactions. An item without any gets the median score of its example.

    Otherwise it would rank near the end, although a new item may well be next.
    """

    def __init__(self, ranker: Ranker, learnt: Collection[str]) -> None:
        self.name = ranker.name
        self.ranker = ranker
        self.learnt = dict.fromkeys(learnt, 0)

    def use_predictions(self, answers: Mapping[str, pl.DataFrame]) -> None:
        """Pass predictions on."""
        if isinstance(self.ranker, ComposedRanker):
            self.ranker.use_predictions(answers)

    def score(self, queries: Sequence[Query]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty columns."""
        scores = self.ranker.score(queries)
        known = np.broadcast_to(candidate_codes(queries, self.learnt) == 0, scores.shape)
        medians = np.zeros((len(scores), 1))
        is_answered = known.any(axis=1)
        medians[is_answered] = np.nanmedian(np.where(known, scores, np.nan)[is_answered], axis=1, keepdims=True)
        return np.where(known | np.isneginf(scores), scores, medians)

"""Predictions of every ranker on the examples under test, kept in one file per ranker."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import polars as pl

from prefrec import processes
from prefrec.console import say
from prefrec.data import PreparedData, RankingExample, seen_items
from prefrec.data.rows import spread
from prefrec.errors import NO_EXAMPLES, ConfigError, DataError
from prefrec.evaluation import judge_texts, predict, rank_catalogue, read_predictions
from prefrec.evaluation.full import rank_together
from prefrec.evaluation.predictions import PREDICTION_SCHEMA
from prefrec.files import keep, kept_key
from prefrec.rankers.base import ComposedRanker, GeneratingRanker, Ranker
from prefrec.rankers.baselines import RandomRanker
from prefrec.runs.stage import stage_key
from prefrec.sections import EvaluateSection
from prefrec.stages.base import RankerStage


def predict_all(
    data: PreparedData,
    section: EvaluateSection,
    baselines: Sequence[Ranker],
    stages: Sequence[RankerStage],
    cache: Path,
    *,
    seed: int,
) -> pl.DataFrame:
    """Return predictions on the candidate sets under test, of the baselines and then of each stage's ranker.

    Raise ConfigError if two rankers share a name, DataError if there are no examples.
    """
    check_names([*section.baselines, *(stage.name for stage in stages)])
    rows = data.examples(section.split, section.rows)
    if not rows:
        raise DataError(f"nothing to evaluate: the data have no {section.split} examples; {NO_EXAMPLES}")
    stages = [stage.on(section.split) for stage in stages]
    frames = [predict(r, rows, data.catalogue, generate=False) for r in baselines]
    return pl.concat([*frames, *predict_stages(data, section, stages, rows, cache, seed=seed)])


def full_stages(stages: Sequence[RankerStage]) -> list[RankerStage]:
    """Return the stages for full ranking, of those that support it."""
    return [full for stage in stages if (full := stage.full)]


def check_names(names: Sequence[str]) -> None:
    """Raise ConfigError if two rankers share a name."""
    if len(set(names)) < len(names):
        raise ConfigError(f"names of rankers must be unique, got {', '.join(names)}: rename one")


def predict_full(
    data: PreparedData,
    section: EvaluateSection,
    baselines: Sequence[Ranker],
    stages: Sequence[RankerStage],
    cache: Path,
    *,
    seed: int,
) -> pl.DataFrame:
    """Return predictions in full ranking (`rank_catalogue`), of the baselines and then of the stages that support it.

    Slow rankers rank only `section.full_rows` of the examples under test, the others all. `random` is excluded,
    because its metrics are known exactly.
    """
    rows = data.examples(section.split, section.rows)
    seen = seen_items(data, rows)
    section = section.model_copy(update={"generate_rows": 0})
    numbers = {True: spread(rows, section.full_rows), False: list(range(len(rows)))}
    known = set(data.known_interactions(section.split)["item_id"])
    frames: dict[str, pl.DataFrame] = {}
    for baseline in baselines:
        if baseline.name != RandomRanker.name:
            frames[baseline.name] = rank_catalogue(baseline, rows, data.catalogue, seen, known)
    able = full_stages([stage.on(section.split) for stage in stages])
    frames |= {e.name: pl.DataFrame() for e in able}  # in the order of the table
    for is_slow, at in numbers.items():
        group = [stage for stage in able if stage.is_slow == is_slow]
        asked = [rows[i] for i in at]
        seen_before = [seen[i] for i in at]
        for answers in predict_stages(data, section, group, asked, cache, seed=seed, seen=seen_before):
            column = pl.Series("row", at, pl.UInt32)
            frames[answers["ranker"][0]] = answers.sort("row").with_columns(column)
    return pl.concat(frames.values())


def predict_stages(
    data: PreparedData,
    section: EvaluateSection,
    stages: Sequence[RankerStage],
    examples: Sequence[RankingExample],
    cache: Path,
    *,
    seed: int,
    seen: Sequence[Collection[str]] | None = None,
) -> list[pl.DataFrame]:
    """Return the predictions of each stage's ranker; those already in the folder `cache` are not made again.

    With many processes the first one writes the folder, and all read it.

    Args:
        data: prepared data.
        section: settings of the evaluation.
        stages: those of the rankers to query.
        examples: B examples.
        cache: folder with a file per ranker.
        seed: of the run.
        seen: [B] items that each example's user has interacted with. If given, rank the full catalogue without
            them in place of the candidate sets.
    """
    asked = _Asked.of(data, section, examples, cache, seed, seen)
    frames: list[pl.DataFrame] = []
    answers: dict[str, pl.DataFrame] = {}
    for group in _together(stages, seen is not None):
        asked.answer(group, answers)
        for stage in group:
            frames.append(read_predictions(asked.path(stage)))
            answers.setdefault(stage.key, frames[-1])
    return frames


@dataclass(frozen=True)
class _Asked:
    """Examples that stages are queried about, and the folder of their predictions.

    Attributes:
        rows_key: of the examples and their candidates.
        size: of the candidate sets, for messages.
        seen: as in `predict_stages`.
        trained: in full ranking, the items with known interactions.
        with_text: indices of the examples to generate text for, spread over users like the examples under test.
    """

    data: PreparedData
    batch_size: int
    examples: Sequence[RankingExample]
    cache: Path
    rows_key: str
    size: str
    seen: Sequence[Collection[str]] | None
    trained: Collection[str]
    with_text: Sequence[int]

    @classmethod
    def of(
        cls,
        data: PreparedData,
        section: EvaluateSection,
        examples: Sequence[RankingExample],
        cache: Path,
        seed: int,
        seen: Sequence[Collection[str]] | None,
    ) -> Self:
        """Return the examples with their key; the arguments are those of `predict_stages`."""
        if seen is None:
            trained: set[str] = set()
            lists = [(e.user_id, e.history, e.candidates, e.target) for e in examples]
            rows_key = stage_key(rows=lists, seed=seed, ties="mean")
            size = f"{max((len(e.candidates) for e in examples), default=0)} candidates"
        else:
            trained = set(data.known_interactions(section.split)["item_id"])
            pairs = zip(examples, seen, strict=True)
            questions = [(e.user_id, e.history, sorted(known), e.target) for e, known in pairs]
            rows_key = stage_key(full=questions, items=data.catalogue.ids, known=sorted(trained))
            size = f"all {len(data.catalogue):,} items"
        with_text = spread(examples, section.generate_rows)
        return cls(data, section.batch_size, examples, cache, rows_key, size, seen, trained, with_text)

    def path(self, stage: RankerStage) -> Path:
        """Return the file of a stage's predictions."""
        return self.cache / f"{stage.name}.parquet"

    def key(self, stage: RankerStage, generate: Sequence[int]) -> str:
        """Return the key of a stage's predictions, with texts for the examples of these indices."""
        model = {"model": stage.model} if stage.model else {}
        return stage_key(rows=self.rows_key, entry=stage.key, generate=generate, **model)

    def answer(self, group: Sequence[RankerStage], answers: dict[str, pl.DataFrame]) -> None:
        """Write the predictions of a group of stages (`_together`) that are not yet there, and add them to `answers`.

        `answers` are the predictions of earlier stages, by key.
        """
        loaded: list[tuple[RankerStage, Ranker]] = []
        due: list[tuple[RankerStage, Ranker]] = []
        for stage in group:
            known = processes.from_first(kept_key(self.path(stage)) if processes.is_first() else None)
            if known == self.key(stage, self.with_text):
                continue
            ranker = stage.load(self.batch_size)
            if isinstance(ranker, ComposedRanker):
                ranker.use_predictions(answers)
            loaded.append((stage, ranker))
            if known != self.key(stage, []):
                if stage.is_slow:  # others take seconds, and blends without a part are many
                    say(f"{stage.name}: scoring {len(self.examples)} examples of {self.size}")
                due.append((stage, ranker))
        made = self.predictions([ranker for _, ranker in due], shared=not group[0].is_slow)
        for (stage, _), frame in zip(due, made, strict=True):
            # Scores are written before texts are generated, so that a failure there does not lose them.
            _keep(self.path(stage), self.key(stage, []), frame)
            answers[stage.key] = frame
            processes.wait()
        for stage, ranker in loaded if self.with_text else ():
            frame = read_predictions(self.path(stage))
            texts = _with_texts(frame, ranker, self.data, self.examples, self.with_text)
            _keep(self.path(stage), self.key(stage, self.with_text), texts)
            processes.wait()

    def predictions(self, rankers: Sequence[Ranker], *, shared: bool) -> list[pl.DataFrame]:
        """Return the predictions of each ranker; `shared` as for `rank_catalogue`."""
        examples, catalogue = self.examples, self.data.catalogue
        if self.seen is None:
            return [predict(ranker, examples, catalogue, generate=False) for ranker in rankers]
        return rank_together(rankers, examples, catalogue, self.seen, self.trained, shared=shared)


def _together(stages: Sequence[RankerStage], is_full: bool) -> list[list[RankerStage]]:
    """Return stages in groups that score each block of examples in turn: in full ranking, those that query others.

    All others are loaded one after the other, because each may be a model that fills the memory.
    """
    groups: list[list[RankerStage]] = []
    is_joined = False
    for stage in stages:
        was_joined, is_joined = is_joined, is_full and stage.queries and not stage.is_slow
        if was_joined and is_joined:
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return groups


def _keep(path: Path, key: str, frame: pl.DataFrame) -> None:
    if processes.is_first():
        keep(path, frame.select(PREDICTION_SCHEMA.names()).write_parquet, key)


def _with_texts(
    frame: pl.DataFrame, ranker: Ranker, data: PreparedData, examples: Sequence[RankingExample], rows: Sequence[int]
) -> pl.DataFrame:
    """Return predictions with the texts that a ranker generates for the examples of these indices, if it can."""
    if not isinstance(ranker, GeneratingRanker):
        return frame
    chosen = [examples[i] for i in rows]
    texts = ranker.generate(chosen)
    columns: dict[str, list[str | None]] = {name: [None] * len(examples) for name in ("generated", "choice")}
    for row, text, choice in zip(rows, texts, judge_texts(texts, chosen, data.catalogue), strict=True):
        columns["generated"][row] = text
        columns["choice"][row] = choice
    return frame.with_columns(pl.Series(name, values, pl.String) for name, values in columns.items())

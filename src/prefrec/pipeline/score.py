"""Every ranker's predictions on the rows under test, kept in one file per ranker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import polars as pl

from prefrec import processes
from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import judge_texts, predict, read_predictions, write_predictions
from prefrec.evaluation.predictions import best_only
from prefrec.files import read_json, write_json
from prefrec.pipeline.entry import Entry
from prefrec.pipeline.recipe import EvaluateSection
from prefrec.rankers.base import ComposedRanker, GeneratingRanker, Ranker
from prefrec.rankers.reference import reference_rankers
from prefrec.runs.stage import stage_key


def fit_references(data: PreparedData, section: EvaluateSection, seed: int) -> list[Ranker]:
    """Return the section's reference rankers, fitted; `window co-occurrence` takes seconds to choose its settings."""
    return reference_rankers(data.train_interactions, data.catalogue, seed, section.references, data.validation)


def ask_all(
    data: PreparedData,
    section: EvaluateSection,
    references: Sequence[Ranker],
    entries: Sequence[Entry],
    examples: Sequence[RankingExample],
    cache: Path,
    *,
    seed: int,
    top: int | None = None,
) -> pl.DataFrame:
    """Return predictions of the reference rankers, then of each entry (`ask_models`), on these rows.

    Args:
        references: from `fit_references`.
        top: candidates kept of each row, best first; None: all.

    Raises:
        ConfigError: two rankers share a name.
        DataError: there are no rows.
    """
    names = [*section.references, *(e.name for e in entries)]
    if len(set(names)) < len(names):
        raise ConfigError(f"rankers need names of their own, got {', '.join(names)}")
    if not examples:
        raise DataError(f"nothing to evaluate: the data has no {section.split} rows")
    frames = [_best(predict(r, examples, data.catalogue, generate=False, seed=seed), top) for r in references]
    return pl.concat([*frames, *ask_models(data, section, entries, examples, cache, seed=seed, top=top)])


def ask_models(
    data: PreparedData,
    section: EvaluateSection,
    entries: Sequence[Entry],
    examples: Sequence[RankingExample],
    cache: Path,
    *,
    seed: int,
    top: int | None = None,
) -> list[pl.DataFrame]:
    """Return predictions of each entry on these rows; those already in the folder `cache` are not made again.

    Scores are kept before texts are asked for, under the key of predictions without texts. Of many processes the
    first one writes the folder, and all read it.

    Args:
        top: candidates kept of each row, best first; None: all.
    """
    base_key = stage_key(rows=[(e.user_id, e.history, e.candidates, e.target) for e in examples], seed=seed)
    places = _text_places(data, examples, section.generate_rows)
    first = places == list(range(len(places)))
    frames: list[pl.DataFrame] = []
    said: dict[str, pl.DataFrame] = {}
    for entry in entries:
        asked = {"model": entry.model} if entry.in_main_line else {}
        key, without_texts = (
            stage_key(rows=base_key, entry=entry.key, generate=n, **asked)
            for n in (section.generate_rows if first else places, 0)
        )
        path = cache / f"{entry.name}.parquet"
        found = processes.from_first(read_json(path.with_suffix(".json")) if path.is_file() else None)
        if found != key:
            scores = read_predictions(path) if found == without_texts else None
            keep = partial(_keep, path, without_texts)
            # Whole lists, since a fused ranker after it is made of them.
            said[entry.key] = _ask(entry, data, section, examples, seed, scores, keep, said)
            _keep(path, key, _best(said[entry.key], top))
            processes.wait()
        frames.append(read_predictions(path))
        said.setdefault(entry.key, frames[-1])
    return frames


def _keep(path: Path, key: str, frame: pl.DataFrame) -> None:
    if processes.is_first():
        path.with_suffix(".json").unlink(missing_ok=True)  # no key beside the answers to another
        write_predictions(frame, path)
        write_json(path.with_suffix(".json"), key)


def _best(frame: pl.DataFrame, top: int | None) -> pl.DataFrame:
    return frame if top is None else best_only(frame, top)


def _ask(
    entry: Entry,
    data: PreparedData,
    section: EvaluateSection,
    examples: Sequence[RankingExample],
    seed: int,
    scores: pl.DataFrame | None,
    keep: Callable[[pl.DataFrame], None],
    answers: Mapping[str, pl.DataFrame],
) -> pl.DataFrame:
    """Return predictions of an entry.

    Args:
        scores: predictions without texts, where they are known; None: `keep` gets them.
        answers: key of another entry → its predictions of these rows, for a ranker that is made of others.
    """
    width = max(len(e.candidates) for e in examples)
    asked = f"scoring {len(examples)} rows of {width} candidates" if scores is None else "scores are known"
    say(f"{entry.name}: {asked}")
    ranker = entry.load(section.batch_size)
    if isinstance(ranker, ComposedRanker):
        ranker.know(answers)
    frame = predict(ranker, examples, data.catalogue, generate=False, seed=seed) if scores is None else scores
    places = _text_places(data, examples, section.generate_rows)
    some = [examples[i] for i in places]
    if not some or not isinstance(ranker, GeneratingRanker):
        return frame
    if scores is None:
        keep(frame)
    texts = ranker.generate(some)
    choices = judge_texts(texts, some, data.catalogue)
    said, chosen = dict(zip(places, texts, strict=True)), dict(zip(places, choices, strict=True))
    rows = range(len(examples))
    return frame.with_columns(
        generated=pl.Series([said.get(i) for i in rows], dtype=pl.String),
        choice=pl.Series([chosen.get(i) for i in rows], dtype=pl.String),
    )


def _text_places(data: PreparedData, examples: Sequence[RankingExample], n: int) -> list[int]:
    """Places of n of the rows, spread over the users as rows under test are (`PreparedData.some`)."""
    some = {id(e) for e in replace(data, test=list(examples)).some("test", n)}
    return [i for i, e in enumerate(examples) if id(e) in some]

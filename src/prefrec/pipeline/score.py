"""Every ranker's predictions on the rows under test, kept in one file per ranker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec import processes
from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.errors import ConfigError, DataError, ModelError
from prefrec.evaluation import judge_texts, predict, read_predictions, write_predictions
from prefrec.evaluation.predictions import best_only
from prefrec.files import read_json, write_json
from prefrec.pipeline.encoders import prompt_encoder
from prefrec.pipeline.recipe import EvaluateSection, ModelSection
from prefrec.prompts import load_template
from prefrec.rankers.base import GeneratingRanker, Ranker
from prefrec.rankers.chatrec import ChatRecRanker
from prefrec.rankers.fuse import FuseRanker
from prefrec.rankers.lm import BATCH_SIZE, LMRanker, load_lm
from prefrec.rankers.reference import pad_scores, reference_rankers
from prefrec.rankers.retrieve import RetrieveThenRank
from prefrec.rankers.sequential import load_sequential
from prefrec.runs.stage import file_facts, stage_key


@dataclass(frozen=True)
class LMEntry:
    """A language-model ranker of the table: its name, its adapter (None: the bare base), and a key.

    The key changes with the adapter and with the titles it is asked about.
    """

    name: str
    adapter: Path | None
    key: str


@dataclass(frozen=True)
class SequentialEntry:
    """A trained sequential recommender of the table: its name, its folder, and a key that changes with it."""

    name: str
    folder: Path
    key: str


@dataclass(frozen=True)
class RankerEntry:
    """Any other ranker of the table.

    Attributes:
        name: in the table.
        key: changes with everything its answers depend on.
        load: makes the ranker, when it is asked and its answers are not known yet.
        load_full: makes it as it is asked about the whole catalogue; None: it cannot be asked so.
    """

    name: str
    key: str
    load: Callable[[], Ranker]
    load_full: Callable[[], Ranker] | None = field(default=None, kw_only=True)


Entry = LMEntry | SequentialEntry | RankerEntry


def ask_all(
    data: PreparedData,
    model: ModelSection,
    section: EvaluateSection,
    entries: Sequence[Entry],
    examples: Sequence[RankingExample],
    cache: Path,
    *,
    seed: int,
    top: int | None = None,
) -> pl.DataFrame:
    """Return predictions of the reference rankers, then of each entry (`ask_models`), on these rows.

    Args:
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
    asked = reference_rankers(data.train_interactions, data.catalogue, seed, section.references)
    frames = [_best(predict(r, examples, data.catalogue, generate=False, seed=seed), top) for r in asked]
    return pl.concat([*frames, *ask_models(data, model, section, entries, examples, cache, seed=seed, top=top)])


def ask_models(
    data: PreparedData,
    model: ModelSection,
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
        asked: dict[str, Any] = {}
        if isinstance(entry, LMEntry):
            asked["model"] = model_key(model)
        if not isinstance(entry, SequentialEntry):
            asked["generate"] = section.generate_rows if first else places
        key = stage_key(rows=base_key, entry=entry.key, **asked)
        without = asked | ({"generate": 0} if "generate" in asked else {})
        without_texts = stage_key(rows=base_key, entry=entry.key, **without)
        path = cache / f"{entry.name}.parquet"
        found = processes.from_first(read_json(path.with_suffix(".json")) if path.is_file() else None)
        if found != key:
            entry = _told(entry, said)
            scores = read_predictions(path) if found == without_texts else None
            keep = partial(_keep, path, without_texts)
            # Whole lists, since a fused ranker after it is made of them.
            said[entry.key] = _ask(entry, data, model, section, examples, seed, scores, keep)
            _keep(path, key, _best(said[entry.key], top))
            processes.wait()
        frames.append(read_predictions(path))
        said.setdefault(entry.key, frames[-1])
    return frames


def lm_ranker(
    name: str, adapter: Path | None, data: PreparedData, model: ModelSection, *, batch_size: int = BATCH_SIZE
) -> LMRanker:
    """A language model, with an adapter where one is given, as a ranker of the items of `data`."""
    lm, tokenizer = load_lm(model.name, adapter, **model.loading())
    template = load_template(model.templates[0], domain=data.domain)
    return LMRanker(
        name,
        lm,
        tokenizer,
        data.catalogue,
        template,
        max_length=model.max_length,
        chat=model.chat,
        batch_size=batch_size,
        objective=model.objective,
        encoder=prompt_encoder(model, data.catalogue),
    )


def entry_ranker(entry: Entry, data: PreparedData, model: ModelSection, *, batch_size: int = BATCH_SIZE) -> Ranker:
    """The ranker of an entry, loaded; `batch_size` is that of language models, those that it is made of included."""
    if isinstance(entry, SequentialEntry):
        return load_sequential(entry.folder, data.catalogue, entry.name)
    if isinstance(entry, LMEntry):
        return lm_ranker(entry.name, entry.adapter, data, model, batch_size=batch_size)
    ranker = entry.load()
    _set_batch_size(ranker, batch_size)
    return ranker


class LateRanker:
    """The ranker of an entry, loaded when it is asked about rows to which its answers are not known.

    `known` holds predictions of the entry, perhaps of these rows.
    """

    def __init__(self, entry: Entry, data: PreparedData, model: ModelSection) -> None:
        self.name = entry.name
        self.entry = entry
        self.batch_size = BATCH_SIZE
        self.known: pl.DataFrame | None = None
        self._load = partial(entry_ranker, entry, data, model)

    def score(self, examples: Sequence[RankingExample]) -> NDArray[np.float64]:
        """Return scores [B, C] of the candidates; -inf in empty places."""
        lists = [list(e.candidates) for e in examples]
        if self.known is not None and self.known["candidates"].to_list() == lists:
            return pad_scores(self.known["scores"].to_list())
        return self._ranker.score(examples)

    @cached_property
    def _ranker(self) -> Ranker:
        return self._load(batch_size=self.batch_size)


def _told(entry: Entry, known: Mapping[str, pl.DataFrame]) -> Entry:
    """Return the entry, whose ranker, if it is fused, is told what its parts answered: their keys → predictions."""
    if not isinstance(entry, RankerEntry):
        return entry
    inner = entry.load

    def load() -> Ranker:
        ranker = inner()
        for part in ranker.parts if isinstance(ranker, FuseRanker) else []:
            if isinstance(part, LateRanker):
                part.known = known.get(part.entry.key)
        return ranker

    return replace(entry, load=load)


def _set_batch_size(ranker: Ranker, batch_size: int) -> None:
    if isinstance(ranker, LMRanker | LateRanker):
        ranker.batch_size = batch_size
    elif isinstance(ranker, FuseRanker):
        for part in ranker.parts:
            _set_batch_size(part, batch_size)
    elif isinstance(ranker, RetrieveThenRank):
        _set_batch_size(ranker.retriever, batch_size)
        _set_batch_size(ranker.ranker, batch_size)
    elif isinstance(ranker, ChatRecRanker):
        _set_batch_size(ranker.retriever, batch_size)


def known_entry(name: str, of: str, entries: Mapping[str, Entry], field: str, more: Sequence[str] = ()) -> Entry:
    """The entry of this name, which the field `field` of the ranker `of` asks for.

    Args:
        more: names that the field may have beside those of the entries; for the message.

    Raises:
        ConfigError: there is none.
    """
    if name not in entries:
        raise ConfigError(f"{of}.{field}: there is no {name!r} here; there are {', '.join([*more, *entries])}")
    return entries[name]


def sequential_entry(folder: Path) -> SequentialEntry:
    """The sequential recommender in a folder from outside a run.

    Raises:
        ModelError: there is none.
    """
    about = read_json(folder / "model.json")
    if not isinstance(about, dict) or "model" not in about:
        raise ModelError(f"{folder} holds no sequential recommender; `prefrec sequential DATA {folder}` trains one")
    return SequentialEntry(about["model"], folder, stage_key(files=file_facts([folder])))


def adapter_key(adapter: Path | None, data: PreparedData) -> str:
    """The key of an adapter from outside a run, or of the bare base, on this data."""
    titles = {"titles": data.catalogue.titles, "domain": data.domain}
    return stage_key(**titles, files=file_facts([adapter] if adapter else []))


def model_key(model: ModelSection) -> dict[str, Any]:
    """What a stage depends on of the model: what decides in its section, and the files that are named in it."""
    facts = file_facts(Path(name).expanduser() for name in (model.name, *model.templates))
    return {**model.decisive(), **({"files": facts} if facts else {})}


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
    model: ModelSection,
    section: EvaluateSection,
    examples: Sequence[RankingExample],
    seed: int,
    scores: pl.DataFrame | None,
    keep: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """Predictions of an entry; `scores` are those without texts where they are known, else `keep` gets them."""
    width = max(len(e.candidates) for e in examples)
    asked = f"scoring {len(examples)} rows of {width} candidates" if scores is None else "scores are known"
    say(f"{entry.name}: {asked}")
    ranker = entry_ranker(entry, data, model, batch_size=section.batch_size)
    frame = predict(ranker, examples, data.catalogue, generate=False, seed=seed) if scores is None else scores
    places = _text_places(data, examples, section.generate_rows)
    some = [examples[i] for i in places]
    if not some or not isinstance(ranker, GeneratingRanker):
        return frame
    if scores is None:
        keep(frame)
    texts = ranker.generate(some)
    outcome = judge_texts(
        texts, [data.catalogue.titles_of(e.candidates) for e in some], np.array([e.target_index for e in some])
    )
    choices = [e.candidates[c] if c >= 0 else None for e, c in zip(some, outcome.choice, strict=True)]
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

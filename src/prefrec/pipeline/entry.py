"""Lines of the table: rankers by name, loaded when they are asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefrec.data import PreparedData
from prefrec.errors import ConfigError
from prefrec.pipeline.encoders import prompt_encoder
from prefrec.pipeline.recipe import ModelSection
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker
from prefrec.rankers.base import Ranker
from prefrec.rankers.lm import BATCH_SIZE, LMRanker, load_lm
from prefrec.rankers.reference import reference_ranker
from prefrec.runs.stage import file_facts, stage_key


@dataclass(frozen=True)
class Entry:
    """A ranker of the table, loaded when it is asked.

    Attributes:
        name: in the table.
        key: changes with everything its answers depend on, apart from `model`.
        load: makes the ranker, given the rows per pass.
        load_full: makes it as it is asked about the whole catalogue; None: it cannot be asked so.
        weights: folder of the trained weights, to go on from; None: the bare base, or nothing was trained.
        model: of a language model of the main line (zero-shot, SFT, alignments), how its base is asked: its answers
            depend on it, the training of its weights does not. None: any other ranker.
    """

    name: str
    key: str
    load: Callable[[int], Ranker]
    load_full: Callable[[int], Ranker] | None = None
    weights: Path | None = None
    model: Mapping[str, Any] | None = None

    @property
    def in_main_line(self) -> bool:
        """Return True for a language model that is shown the titles it scores."""
        return self.model is not None

    @property
    def full(self) -> Entry | None:
        """The entry as it is asked about the whole catalogue, with the history alone; None: it cannot be."""
        if self.load_full is None:
            return None
        if not self.in_main_line:
            return replace(self, load=self.load_full)
        key = stage_key(lm=self.key, model=self.model, candidates="none shown")
        return Entry(self.name, key, self.load_full, self.load_full, self.weights)


def full_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries that can be asked about the whole catalogue, as they are asked so.

    Left out are rankers that must be shown what they score, or ask a server about every item.
    """
    return [full for entry in entries if (full := entry.full)]


def lm_entry(
    name: str, weights: Path | None, data: PreparedData, model: ModelSection, key: str | None = None
) -> Entry:
    """Return a language model of the main line.

    Args:
        name: in the table.
        weights: of an adapter or a whole model; None: the bare base.
        data: whose titles it is asked about.
        model: the base, and how it is asked.
        key: of the stage that made the weights; None: they come from outside a run (`adapter_key`).
    """

    def load(batch_size: int) -> LMRanker:
        return lm_ranker(name, weights, data, model, batch_size=batch_size)

    def load_full(batch_size: int) -> CatalogueRanker:
        return CatalogueRanker(load(batch_size))

    return Entry(name, key or adapter_key(weights, data), load, load_full, weights, model_key(model))


def lm_ranker(
    name: str, adapter: Path | None, data: PreparedData, model: ModelSection, *, batch_size: int = BATCH_SIZE
) -> LMRanker:
    """Return a language model, with an adapter where one is given, as a ranker of the items of `data`."""
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


def reference_entry(name: str, data: PreparedData, data_key: str, seed: int) -> Entry:
    """Return a reference row as an entry, for rankers that are made of others."""

    def load(batch_size: int) -> Ranker:
        return reference_ranker(name, data.train_interactions, data.catalogue, seed, data.validation)

    return Entry(name, stage_key(reference=name, data=data_key, seed=seed), load, load)


def known_entry(name: str, of: str, entries: Mapping[str, Entry], field: str, more: Sequence[str] = ()) -> Entry:
    """Return the entry of this name, which the field `field` of the ranker `of` asks for.

    Args:
        more: names that the field may have beside those of the entries; for the message.

    Raises:
        ConfigError: there is none.
    """
    if name not in entries:
        raise ConfigError(f"{of}.{field}: there is no {name!r} here; there are {', '.join([*more, *entries])}")
    return entries[name]


def adapter_key(adapter: Path | None, data: PreparedData) -> str:
    """Return the key of an adapter from outside a run, or of the bare base, on this data."""
    titles = {"titles": data.catalogue.titles, "domain": data.domain}
    return stage_key(**titles, files=file_facts([adapter] if adapter else []))


def model_key(model: ModelSection) -> dict[str, Any]:
    """Return what a stage depends on of the model: what decides in its section, and the files named in it."""
    facts = file_facts(Path(name).expanduser() for name in (model.name, *model.templates))
    return {**model.decisive(), **({"files": facts} if facts else {})}

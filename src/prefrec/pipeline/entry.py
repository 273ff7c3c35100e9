"""Shared inputs of a run's stages, and lazily loaded rankers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn

from prefrec.data import PreparedData
from prefrec.data.refit import with_validation
from prefrec.errors import ConfigError
from prefrec.files import content_digest
from prefrec.lm.models import base_digest
from prefrec.pipeline.encoders import fit_items, prompt_encoder, shown_items
from prefrec.pipeline.recipe import LoraSection, ModelSection
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import baseline_rankers, unable
from prefrec.rankers.lm import BATCH_SIZE, LMRanker, load_lm
from prefrec.rankers.reward import RewardRanker
from prefrec.runs.stage import stage_key

WEIGHTS = "adapter"
"""Folder of the trained weights inside a stage's folder: an adapter, or a whole model."""
MADE_WITH = "made_with"
"""Key in `stage.json` for the inputs of a stage that trains a language model (`RunInputs.stage_inputs`)."""
_SHARED = {"data", "seed", "model", "digests", "lora", "start"}
"""Inputs of all language models of a run; the others are settings of their own training."""


@dataclass(frozen=True)
class RunInputs:
    """Inputs that all stages of a run share.

    Attributes:
        data: prepared data.
        data_key: key of the data.
        model: the base model and its prompts.
        lora: shape of a new adapter; None: train all weights.
        seed: of the run.
        batch_size: examples per pass of stages that query rankers. Results, and therefore keys, do not depend on it.
        earlier: for a refit, the data before it, whose validation examples have chosen all settings.
    """

    data: PreparedData
    data_key: str
    model: ModelSection
    lora: LoraSection | None
    seed: int
    batch_size: int = BATCH_SIZE
    earlier: PreparedData | None = None

    def refit(self) -> RunInputs:
        """Return the inputs of stages that learn training and validation interactions (`with_validation`)."""
        key = stage_key(data=self.data_key, refit="validation")
        return replace(self, data=with_validation(self.data), data_key=key, earlier=self.data)

    def stage_inputs(self, **more: Any) -> dict[str, Any]:
        """Return all inputs of a stage, these and `more`: settings by name, files by digest."""
        model, lora = self.model, self.lora.model_dump() if self.lora else None
        content = {"model": model.decisive(), "digests": model_digests(model, self.data.domain)}
        return {"data": self.data_key, "seed": self.seed, **content, "lora": lora, **more}

    def key(self, **more: Any) -> str:
        """Return the key of a stage with these inputs and `more`."""
        return stage_key(**by_content(self.stage_inputs(**more)))


def by_content(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's inputs with digests instead of the names of models and templates."""
    kept = {name: value for name, value in inputs.items() if name != "digests"}
    return kept | {"model": inputs["model"] | inputs["digests"]}


@dataclass(frozen=True)
class Entry:
    """A ranker of the table, which is loaded when it is first queried.

    Attributes:
        name: in the table.
        key: changes with everything that its scores depend on, except `model`.
        load: examples per pass → the ranker, for test examples and for questions of clients.
        load_full: examples per pass → the ranker for full ranking; None: it does not support full ranking.
        weights: folder of the trained weights; None: nothing was trained.
        model: of a language model (zero-shot, SFT, alignments), the settings of the base. Such a model may show the
            candidates in its prompt. None: not a language model.
        inputs: of the stage that trained a language model (`RunInputs.stage_inputs`).
        make: trains the ranker and writes it to the folder of its stage. A run calls it once for each key. None:
            nothing to train.
        is_slow: whether full ranking takes minutes, because it reads titles one by one. It then scores only unseen
            items, example by example.
        without: for a blend, part → the blend without that part. The difference is what the part adds.
        left_out: for a blend that is made, the parts that it has left out.
        crossed: for a ranker that learnt from validation examples or counts them, examples per pass → the ranker
            that scores each of them with what it learnt from other users, on lists and in full ranking.
        training: for a ranker of counts, examples per pass → the ranker that scores training examples with counts of
            other users, so that their own targets are not among them.
        ratio: for a reward, the aligned model, its reference, and β.
        validation: for a ranker that was refit with validation interactions, the one before, which answers
            validation examples in its place.
    """

    name: str
    key: str
    load: Callable[[int], Ranker]
    load_full: Callable[[int], Ranker] | None = None
    weights: Path | None = None
    model: Mapping[str, Any] | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[], object] | None = None
    is_slow: bool = False
    without: Mapping[str, Entry] = field(default_factory=dict)
    left_out: Callable[[], Collection[str]] = tuple
    crossed: Callable[[int], Ranker] | None = None
    training: Callable[[int], Ranker] | None = None
    ratio: tuple[Entry, Entry, float] | None = None
    validation: Entry | None = None

    def load_for_training(self, batch_size: int) -> Ranker:
        """Load the ranker for full ranking of training examples: `training`, or this one if it has none."""
        return (self.training or self.load_full or self.load)(batch_size)

    @property
    def ablations(self) -> list[Entry]:
        """The blends without one part, for each part that the blend has not left out; read them once it is made."""
        left_out = self.left_out()
        return [less for part, less in self.without.items() if part not in left_out]

    @property
    def settings(self) -> dict[str, Any]:
        """Section of the recipe → settings, of all stages that trained this language model."""
        return {name: value for name, value in self.inputs.items() if name not in _SHARED}

    @property
    def full(self) -> Entry | None:
        """The entry for full ranking, where prompts show no candidates; None: full ranking is not supported."""
        if self.load_full is None:
            return None
        before = self.validation and self.validation.full
        if self.model is None:
            return replace(self, load=self.load_full, validation=before)
        # Without candidates in the prompt, scores differ from those on candidate sets.
        key = stage_key(lm=self.key, model=self.model, candidates="none shown")
        return Entry(
            self.name, key, self.load_full, self.load_full, self.weights, is_slow=self.is_slow, validation=before
        )

    @property
    def on_validation(self) -> Entry:
        """The entry for validation examples, which a ranker must not have learnt from."""
        if self.validation is not None:
            return self.validation.on_validation
        if self.crossed is None:
            return self
        full = None if self.load_full is None else self.crossed
        return replace(self, key=stage_key(crossed=self.key), load=self.crossed, load_full=full)

    def on(self, split: str) -> Entry:
        """Return the entry for examples of a split: `on_validation`, or this one."""
        return self.on_validation if split == "validation" else self


def refitted(entry: Entry, before: Entry) -> Entry:
    """Return a ranker that was refit, with the one before, which answers validation examples in its place."""
    without = {part: refitted(less, before.without[part]) for part, less in entry.without.items()}
    return replace(entry, validation=before, without=without)


def full_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries for full ranking, of those that support it."""
    return [full for entry in entries if (full := entry.full)]


def loaded_once(entry: Entry) -> Entry:
    """Return the entry with loaders that load each ranker once."""
    load, full = cache(entry.load), entry.load_full
    return replace(entry, load=load, load_full=load if full is entry.load else full and cache(full))


def lm_entry(
    name: str,
    weights: Path | None,
    data: PreparedData,
    model: ModelSection,
    inputs: Mapping[str, Any] | None = None,
    key: str | None = None,
) -> Entry:
    """Return the entry of a language model.

    Args:
        name: in the table.
        weights: folder of an adapter or a whole model. Default: the base model.
        data: prepared data.
        model: the base model and its prompts.
        inputs: of the stage that trained the weights; they give the key.
        key: of the entry, if there are no `inputs`. Default: a hash of the weights.
    """
    load = partial(lm_ranker, name, weights, data, model)
    key = stage_key(**by_content(inputs)) if inputs else key or adapter_key(weights, data)
    content = model_key(model, data.domain)
    if texts := shown_items(model, data.catalogue):
        content |= {"item_text": stage_key(texts=texts)}
    whole, is_slow = (lambda size: CatalogueRanker(load(size))), model.answers != "items"
    return Entry(name, key, load, whole, weights, content, inputs or {}, is_slow=is_slow)


def lm_ranker(
    name: str, weights: Path | None, data: PreparedData, model: ModelSection, batch_size: int = BATCH_SIZE
) -> LMRanker:
    """Load a language model, with an adapter or other weights if given, as a ranker of the items of `data`."""
    lm, _ = load_lm(model.name, weights, **model.loading())
    fit_items(lm, data, model)
    return as_ranker(name, lm, data, model, batch_size=batch_size)


def as_ranker(name: str, lm: nn.Module, data: PreparedData, model: ModelSection, **sizes: int) -> LMRanker:
    """Return a loaded model as a ranker of the items of `data`; `sizes` are batch sizes of `LMRanker`."""
    encoder, template = prompt_encoder(model, data.catalogue), load_template(model.templates[0], domain=data.domain)
    settings: Any = {"objective": model.objective, "encoder": encoder, **sizes}
    return LMRanker(name, lm, encoder.tokenizer, data.catalogue, template, **settings)


def reward_entry(name: str, aligned: Entry, reference: Entry, beta: float) -> Entry:
    """Return the reward of an aligned language model as a ranker.

    Args:
        name: of the entry.
        aligned: the aligned model.
        reference: the model that it started from.
        beta: β of the alignment.
    """

    def load(batch_size: int) -> Ranker:
        return RewardRanker(name, aligned.load(batch_size), reference.load(batch_size), beta)

    def load_full(batch_size: int) -> Ranker:
        loaders = [entry.load_full or entry.load for entry in (aligned, reference)]
        policy, before = (load(batch_size) for load in loaders)
        return RewardRanker(name, policy, before, beta)

    key = stage_key(reward=aligned.key, reference=reference.key, beta=beta)
    ratio = aligned, reference, beta
    return Entry(name, key, load, load_full, model=aligned.model, is_slow=aligned.is_slow, ratio=ratio)


def baseline_entry(inputs: RunInputs, name: str) -> Entry:
    """Return a baseline, such as popularity."""

    def load(batch_size: int) -> Ranker:
        log = inputs.data.train_interactions
        if reason := unable(log, [name]).get(name):
            raise ConfigError(f"{name} {reason}: name another ranker")
        return fitted_baselines(inputs, log, [name])[0]

    return Entry(name, stage_key(reference=name, data=inputs.data_key, seed=inputs.seed), load, load)


def fitted_baselines(inputs: RunInputs, log: pl.DataFrame, names: Sequence[str]) -> list[Ranker]:
    """Return baselines fitted to a log, with the settings that validation examples choose on the training log.

    In a refit, that is the training log before it: the examples must not be in the log that they choose on.
    """
    data = inputs.earlier or inputs.data
    rows, chosen_on = data.validation, data.train_interactions
    return baseline_rankers(log, data.catalogue, inputs.seed, names, rows, chosen_on)


def adapter_key(weights: Path | None, data: PreparedData) -> str:
    """Return the key of weights from outside a run, or of the base model, on this data."""
    files = content_digest(weights) if weights else None
    return stage_key(titles=data.catalogue.titles, domain=data.domain, files=files)


def model_key(model: ModelSection, domain: str) -> dict[str, Any]:
    """Return the model's part of a key: settings that affect results, and digests of the files that they name."""
    return model.decisive() | model_digests(model, domain)


def model_digests(model: ModelSection, domain: str) -> dict[str, Any]:
    """Return field → digest of what it names: the base's files, and the templates' texts or the title encoder."""
    digests: dict[str, Any] = {"name": base_digest(model.name)}
    if model.answers == "items":
        vectors = model.items.vectors
        vectors = vectors if vectors in ("base", "tfidf") else base_digest(vectors)
        return digests | {"items": model.items.model_dump() | {"vectors": vectors}}
    texts = [load_template(name, domain=domain).source for name in model.templates]
    return digests | {"templates": [hashlib.sha256(text.encode()).hexdigest() for text in texts]}

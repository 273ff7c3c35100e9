"""Shared inputs of a run's stages, and lazily loaded rankers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import nn

from prefrec.data import PreparedData
from prefrec.files import content_digest
from prefrec.lm.models import base_digest
from prefrec.pipeline.encoders import fit_items, prompt_encoder, shown_items
from prefrec.pipeline.recipe import LoraSection, ModelSection
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker
from prefrec.rankers.base import Ranker
from prefrec.rankers.baselines import baseline_rankers
from prefrec.rankers.lm import BATCH_SIZE, LMRanker, load_lm
from prefrec.runs.stage import stage_key

WEIGHTS = "adapter"
"""Folder of the trained weights inside a stage's folder: an adapter, or a whole model."""
MADE_WITH = "made_with"
"""Key in `stage.json` for the inputs of a stage that trains a language model (`RunInputs.stage_inputs`)."""
_SHARED = {"data", "seed", "model", "digests", "lora", "start"}
"""Inputs of all language models of a run; the others are settings of their own training."""


@dataclass(frozen=True)
class RunInputs:
    """Data and their key, base model, form of a new adapter (None means all weights are trained), and seed.

    `batch_size` is the rows per pass of stages that ask rankers. No result depends on it, so no key does.
    """

    data: PreparedData
    data_key: str
    model: ModelSection
    lora: LoraSection | None
    seed: int
    batch_size: int = BATCH_SIZE

    def stage_inputs(self, **more: Any) -> dict[str, Any]:
        """Return what decides the result of a stage made of these and `more`: settings by name, files by digest."""
        model, lora = self.model, self.lora.model_dump() if self.lora else None
        content = {"model": model.decisive(), "digests": model_digests(model, self.data.domain)}
        return {"data": self.data_key, "seed": self.seed, **content, "lora": lora, **more}

    def key(self, **more: Any) -> str:
        """Return the key of a stage made of these and `more`."""
        return stage_key(**by_content(self.stage_inputs(**more)))


def by_content(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's inputs with digests in the place of the names of models and templates."""
    kept = {name: value for name, value in inputs.items() if name != "digests"}
    return kept | {"model": inputs["model"] | inputs["digests"]}


@dataclass(frozen=True)
class Entry:
    """A ranker of the table, loaded when it is asked.

    Attributes:
        name: in the table.
        key: changes with everything its answers depend on, apart from `model`.
        load: makes the ranker, given the rows per pass.
        load_full: makes it for questions about the whole catalogue; None: it cannot answer them.
        weights: folder of the trained weights; None: nothing was trained.
        model: settings of the base, for a language model (zero-shot, SFT, alignments), else None. Its prompt shows
            the titles that it scores.
        inputs: of the stage that trained a language model (`RunInputs.stage_inputs`).
        make: trains the ranker, or chooses what it needs, and writes it to the folder of its stage; None: there is
            nothing to make. It is called in a run, once for each key.
        is_slow: whole catalogues take it minutes, because it reads titles one by one. It is asked about the unseen
            items of each row alone.
        without: part → the ranker without it, of one that is made of parts. What the part adds is the difference.
        crossed: makes it for the validation rows, if it learnt from them: what it knows is of other users then.
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
    crossed: Callable[[int], Ranker] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of all stages that a language model went through, by their names in the recipe."""
        return {name: value for name, value in self.inputs.items() if name not in _SHARED}

    @property
    def full(self) -> Entry | None:
        """The entry for questions about the whole catalogue, where no candidates are shown; None: it has none."""
        if self.load_full is None:
            return None
        if self.model is None:
            return replace(self, load=self.load_full)
        # The prompt shows no candidates then, so answers are others than those to lists.
        key = stage_key(lm=self.key, model=self.model, candidates="none shown")
        return Entry(self.name, key, self.load_full, self.load_full, self.weights, is_slow=self.is_slow)

    @property
    def on_validation(self) -> Entry:
        """The entry for validation rows, which it must not have learnt from."""
        if self.crossed is None:
            return self
        return replace(self, key=stage_key(crossed=self.key), load=self.crossed)


def full_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries for questions about the whole catalogue, without those that cannot answer them."""
    return [full for entry in entries if (full := entry.full)]


def loaded_once(entry: Entry) -> Entry:
    """Return the entry with loaders that make each ranker once."""
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
    """Return a language model, from the folder of an adapter or a whole model (None: the bare base).

    `inputs` are those of the stage that made the weights, and give its `key`. Without both of them the key is that of
    the weights themselves.
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
    """Return a loaded model as a ranker of the items of `data`; `sizes` are of the passes, as for `LMRanker`."""
    encoder, template = prompt_encoder(model, data.catalogue), load_template(model.templates[0], domain=data.domain)
    settings: Any = {"objective": model.objective, "encoder": encoder, **sizes}
    return LMRanker(name, lm, encoder.tokenizer, data.catalogue, template, **settings)


def baseline_entry(inputs: RunInputs, name: str) -> Entry:
    """Return a baseline, such as popularity."""
    data, seed = inputs.data, inputs.seed

    def load(batch_size: int) -> Ranker:
        return baseline_rankers(data.train_interactions, data.catalogue, seed, [name], data.validation)[0]

    return Entry(name, stage_key(reference=name, data=inputs.data_key, seed=seed), load, load)


def adapter_key(weights: Path | None, data: PreparedData) -> str:
    """Return the key of weights from outside a run, or of the bare base, on this data."""
    files = content_digest(weights) if weights else None
    return stage_key(titles=data.catalogue.titles, domain=data.domain, files=files)


def model_key(model: ModelSection, domain: str) -> dict[str, Any]:
    """Return what a key holds of the model: its result-changing settings, and digests of the files that it names."""
    return model.decisive() | model_digests(model, domain)


def model_digests(model: ModelSection, domain: str) -> dict[str, Any]:
    """Return field → digest of what it names: the base's files, and the templates' texts or the items' encoder."""
    digests: dict[str, Any] = {"name": base_digest(model.name)}
    if model.answers == "items":
        vectors = model.items.vectors
        vectors = vectors if vectors in ("base", "tfidf") else base_digest(vectors)
        return digests | {"items": model.items.model_dump() | {"vectors": vectors}}
    texts = [load_template(name, domain=domain).source for name in model.templates]
    return digests | {"templates": [hashlib.sha256(text.encode()).hexdigest() for text in texts]}

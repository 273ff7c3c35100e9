"""Inputs that all stages of a run share, and the parts of keys that name files by their content."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from prefrec.data import PreparedData
from prefrec.data.refit import with_validation
from prefrec.files import content_digest
from prefrec.lm.names import base_digest
from prefrec.prompts import load_template
from prefrec.rankers.base import Ranker
from prefrec.rankers.config import BATCH_SIZE
from prefrec.rankers.fitted_baselines import FittedBaselines
from prefrec.runs.stage import stage_key
from prefrec.sections import LoraSection, ModelSection
from prefrec.stages.lazy import LazyRanker, Loadable


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
        earlier: for a refit, the inputs before it.
    """

    data: PreparedData
    data_key: str
    model: ModelSection
    lora: LoraSection | None
    seed: int
    batch_size: int = BATCH_SIZE
    earlier: RunInputs | None = None
    _lazy: dict[tuple[str, type, int], LazyRanker] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def baselines(self) -> FittedBaselines:
        """The baselines of the run. A refit shares those before it, whose validation examples choose settings."""
        return self.earlier.baselines if self.earlier else FittedBaselines(self.data, self.seed)

    def refit(self) -> RunInputs:
        """Return the inputs of stages that learn training and validation interactions (`with_validation`)."""
        key = stage_key(data=self.data_key, refit="validation")
        return replace(self, data=with_validation(self.data), data_key=key, earlier=self)

    def stage_inputs(self, **more: Any) -> dict[str, Any]:
        """Return all inputs of a stage, these and `more`: settings by name, files by digest."""
        model, lora = self.model, self.lora.model_dump() if self.lora else None
        content = {"model": model.decisive(), "digests": model_digests(model, self.data.domain)}
        return {"data": self.data_key, "seed": self.seed, **content, "lora": lora, **more}

    def key(self, **more: Any) -> str:
        """Return the key of a stage with these inputs and `more`."""
        return stage_key(**by_content(self.stage_inputs(**more)))

    def baseline(self, name: str, split: str) -> Ranker:
        """Return a baseline that counts what is known before the examples of a split. It is fitted once."""
        # In a refit, validation interactions are known before all examples.
        return self.baselines.before("test" if self.earlier else split, [name])[0]

    def lazy(self, stage: Loadable, batch_size: int) -> LazyRanker:
        """Return the ranker of a stage that several others query, such as blends. It is loaded on its first query."""
        # The type is part of the key because a stage that a server has loaded is not to be loaded again.
        key = (stage.key, type(stage), batch_size)
        if key not in self._lazy:
            self._lazy[key] = LazyRanker(stage, batch_size)
        return self._lazy[key]

    def forget(self, *, rankers: bool) -> None:
        """Forget the scores of an evaluation's examples; with `rankers`, also the rankers that were loaded."""
        for ranker in self._lazy.values():
            ranker.forget()
        if rankers:
            self._lazy.clear()
            self.baselines.forget()


def by_content(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stage's inputs with digests instead of the names of models and templates."""
    kept = {name: value for name, value in inputs.items() if name != "digests"}
    return kept | {"model": inputs["model"] | inputs["digests"]}


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

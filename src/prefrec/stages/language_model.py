"""Language models as rankers: the base model, or one with trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefrec.data import PreparedData
from prefrec.extras import need
from prefrec.prompts import load_template
from prefrec.rankers.base import Ranker
from prefrec.rankers.config import BATCH_SIZE
from prefrec.runs.stage import stage_key
from prefrec.sections import ModelSection
from prefrec.stages.base import WEIGHTS, RankerStage, View
from prefrec.stages.inputs import RunInputs, adapter_key, by_content, model_key
from prefrec.stages.item_texts import shown_items

if TYPE_CHECKING:
    # To plan a run needs no torch. What loads a model imports it.
    from torch import nn

    from prefrec.rankers.lm import LMRanker

_SHARED = {"data", "seed", "model", "digests", "lora", "start"}
"""Inputs of all language models of a run; the others are settings of their own training."""


class LMStage(RankerStage):
    """A language model that is not trained here: the base model, or weights from outside the run.

    Args:
        name: in the table.
        weights: folder of an adapter or a whole model. None: the base model.
        data: prepared data.
        section: the base model and its prompts.
        made_with: inputs of the stage that trained the weights; they give the key.
        key: the key of a model without such inputs. Default: a hash of the weights, the base model and its prompts.
        first: for a refit, the model of the training log alone.
    """

    weights: Path | None = None

    def __init__(
        self,
        name: str,
        weights: Path | None,
        data: PreparedData,
        section: ModelSection,
        made_with: Mapping[str, Any] | None = None,
        key: str | None = None,
        first: RankerStage | None = None,
    ) -> None:
        self.name = name
        self.weights = weights
        self.data = data
        self.section = section
        self.first = first
        self._made_with = made_with or {}
        self._key = key

    @property
    def made_with(self) -> Mapping[str, Any]:
        return self._made_with

    @cached_property
    def key(self) -> str:
        if self.made_with:
            return stage_key(**by_content(self.made_with))
        # Blends and other rankers that query the model keep its key alone, so that the key names the base, too.
        return self._key or stage_key(weights=adapter_key(self.weights, self.data), model=self.model)

    @cached_property
    def model(self) -> Mapping[str, Any]:
        content = model_key(self.section, self.data.domain)
        if texts := shown_items(self.section, self.data.catalogue):
            content |= {"item_text": stage_key(texts=texts)}
        return content

    @property
    def is_slow(self) -> bool:
        return self.section.answers != "items"

    def load(self, batch_size: int) -> LMRanker:
        return lm_ranker(self.name, self.weights, self.data, self.section, batch_size)

    def load_full(self, batch_size: int) -> Ranker:
        """Load the model for full ranking, where its prompts show no candidates."""
        from prefrec.rankers.catalogue import CatalogueRanker

        return CatalogueRanker(self.load(batch_size))

    @cached_property
    def full(self) -> RankerStage:
        return WithoutCandidates(self)


class TrainedLMStage(LMStage):
    """A language model that a stage trains; its `made_with` has all that the weights depend on.

    Args:
        name: in the table.
        inputs: shared inputs of the run.
        config: settings of the training.
        folder: of the stage.
        start: the language model that it starts from. None: the base model.
        first: for a refit, the model of the training log alone.
    """

    def __init__(
        self,
        name: str,
        inputs: RunInputs,
        config: Any,
        folder: Path,
        start: RankerStage | None = None,
        first: RankerStage | None = None,
    ) -> None:
        super().__init__(name, folder / WEIGHTS, inputs.data, inputs.model, first=first)
        self.inputs = inputs
        self.config = config
        self.folder = folder
        self.start = start


def started_from(start: RankerStage | None) -> dict[str, Any]:
    """Return the part of a stage's inputs that names the language model that it starts from.

    With the settings of all stages that trained this model, a message can name those that changed.
    """
    if start is None:
        return {}
    trained_with = {name: value for name, value in start.made_with.items() if name not in _SHARED}
    return {"start": start.key, **trained_with}


class WithoutCandidates(View):
    """A language model in full ranking, whose prompts show no candidates, so that its scores differ."""

    model = None

    of: LMStage

    def __init__(self, of: LMStage) -> None:
        super().__init__(of)
        self.first = of.first and of.first.full

    @cached_property
    def key(self) -> str:
        return stage_key(lm=self.of.key, model=self.of.model, candidates="none shown")

    def load(self, batch_size: int) -> Ranker:
        return self.of.load_full(batch_size)


def lm_ranker(
    name: str, weights: Path | None, data: PreparedData, model: ModelSection, batch_size: int = BATCH_SIZE
) -> LMRanker:
    """Load a language model, with an adapter or other weights if given, as a ranker of the items of `data`."""
    need("lm", f"the language model {name}")
    from prefrec.rankers.lm import load_lm
    from prefrec.stages.encoders import fit_items

    lm, _ = load_lm(model.name, weights, **model.loading())
    fit_items(lm, data, model)
    return as_ranker(name, lm, data, model, batch_size=batch_size)


def as_ranker(name: str, lm: nn.Module, data: PreparedData, model: ModelSection, **sizes: int) -> LMRanker:
    """Return a loaded model as a ranker of the items of `data`; `sizes` are batch sizes of `LMRanker`."""
    from prefrec.rankers.lm import LMRanker
    from prefrec.stages.encoders import prompt_encoder

    encoder = prompt_encoder(model, data.catalogue)
    template = load_template(model.templates[0], domain=data.domain)
    settings: Any = {"objective": model.objective, "encoder": encoder, **sizes}
    return LMRanker(name, lm, encoder.tokenizer, data.catalogue, template, **settings)

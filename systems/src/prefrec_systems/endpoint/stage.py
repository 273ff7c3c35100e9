"""A served model in a recipe; nothing is trained."""

from __future__ import annotations

from functools import cached_property

from prefrec import processes
from prefrec.errors import ModelError
from prefrec.lm.models import load_tokenizer
from prefrec.lm.names import base_digest
from prefrec.prompts import PromptTemplate, load_template
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import adapter_key
from prefrec_systems.endpoint import EndpointConfig, EndpointRanker, OpenAIClient, ServerSettings
from prefrec_systems.endpoint.config import PATIENCE


class EndpointStage(RankerStage):
    """A served model, queried with the recipe's template, length and chat setting."""

    Config = EndpointConfig
    full = None
    config: EndpointConfig

    @cached_property
    def key(self) -> str:
        model = self.inputs.model
        return stage_key(
            endpoint=self.config.model_dump(exclude={*PATIENCE, "name"}) | {"model": served_model(self.config)},
            asked=[base_digest(self.tokenizer), self.template.source, model.max_length, model.chat],
            titles=adapter_key(None, self.inputs.data),
        )

    def load(self, batch_size: int) -> Ranker:
        return EndpointRanker(
            self.name,
            OpenAIClient(self.config),
            load_tokenizer(self.tokenizer),
            self.inputs.data.catalogue,
            self.template,
            max_length=self.inputs.model.max_length,
            chat=self.inputs.model.chat,
            prompts=self.config.prompts,
        )

    @property
    def tokenizer(self) -> str:
        """Name of the tokenizer of the served model."""
        return self.config.tokenizer or self.inputs.model.name

    @cached_property
    def template(self) -> PromptTemplate:
        """The first template of the recipe's model."""
        return load_template(self.inputs.model.templates[0], domain=self.inputs.data.domain)


def served_model(settings: ServerSettings) -> str:
    """Return the model's name from the settings, or else from the server.

    The name is part of the key, so that cached predictions are not used for another model on the same server. Raise
    ModelError if the server cannot be reached, or does not serve exactly one model.
    """
    if settings.model is not None:
        return settings.model
    try:
        return processes.from_first(OpenAIClient(settings).model)
    except ModelError as e:
        raise ModelError(
            f"{e}; to use cached predictions without the server, set `model` to the model that made them"
        ) from e

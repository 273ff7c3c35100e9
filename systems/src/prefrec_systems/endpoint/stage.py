"""A served model in a recipe; nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec import processes
from prefrec.errors import ModelError
from prefrec.lm.models import base_digest, load_tokenizer
from prefrec.pipeline.entry import Entry, RunInputs, adapter_key
from prefrec.pipeline.kinds import RankerKind
from prefrec.prompts import load_template
from prefrec.rankers.base import Ranker
from prefrec.runs.stage import stage_key
from prefrec_systems.endpoint import EndpointConfig, EndpointRanker, OpenAIClient, ServerSettings
from prefrec_systems.endpoint.config import PATIENCE


def endpoint_entry(inputs: RunInputs, config: EndpointConfig, folder: Path, before: Mapping[str, Entry]) -> Entry:
    """Return the served model as an entry, queried with the recipe's template, length and chat setting."""
    model = inputs.model
    tokenizer = config.tokenizer or model.name
    template = load_template(model.templates[0], domain=inputs.data.domain)
    key = stage_key(
        endpoint=config.model_dump(exclude={*PATIENCE, "name"}) | {"model": served_model(config)},
        asked=[base_digest(tokenizer), template.source, model.max_length, model.chat],
        titles=adapter_key(None, inputs.data),
    )

    def load(batch_size: int) -> Ranker:
        return EndpointRanker(
            config.name,
            OpenAIClient(config),
            load_tokenizer(tokenizer),
            inputs.data.catalogue,
            template,
            max_length=model.max_length,
            chat=model.chat,
            prompts=config.prompts,
        )

    return Entry(config.name, key, load)


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


KIND = RankerKind(EndpointConfig, endpoint_entry)

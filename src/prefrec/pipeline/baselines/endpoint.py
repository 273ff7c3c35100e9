"""The stage of a model behind a server: nothing to train."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefrec.models import load_tokenizer
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.score import Entry, RankerEntry
from prefrec.prompts import load_template
from prefrec.rankers.base import Ranker
from prefrec.rankers.endpoint import EndpointConfig, EndpointRanker
from prefrec.rankers.openai_api import OpenAIClient

PATIENCE = {"timeout", "retries", "backoff", "concurrency", "key_variable"}
"""Settings of a server that its answers do not depend on."""


def endpoint_stage(
    made_of: Ingredients, config: EndpointConfig, folder: Path, before: Mapping[str, Entry]
) -> RankerEntry:
    """The served model as an entry, asked with the recipe's template, length and chat setting."""

    def load() -> Ranker:
        model = made_of.model
        return EndpointRanker(
            config.name,
            OpenAIClient(config),
            load_tokenizer(config.tokenizer or model.name),
            made_of.data.catalogue,
            load_template(model.templates[0], domain=made_of.data.domain),
            max_length=model.max_length,
            chat=model.chat,
            prompts=config.prompts,
        )

    return RankerEntry(config.name, made_of.key(endpoint=config.model_dump(exclude=PATIENCE)), load)

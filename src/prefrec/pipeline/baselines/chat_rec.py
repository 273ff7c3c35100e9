"""The stage of Chat-REC: nothing to train; a retriever and a language model that there are are put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import polars as pl

from prefrec.data import PreparedData
from prefrec.data.readers import read_table
from prefrec.pipeline.baselines.endpoint import PATIENCE, served_model
from prefrec.pipeline.ingredients import Ingredients
from prefrec.pipeline.recipe import ModelSection, ReferenceName
from prefrec.pipeline.score import Entry, LMEntry, RankerEntry, entry_ranker, known_entry, model_key
from prefrec.rankers.base import Ranker
from prefrec.rankers.chatrec import ChatModel, ChatRecConfig, ChatRecRanker, EndpointChat, LocalChat, Profiles
from prefrec.rankers.lm import load_lm
from prefrec.rankers.openai_api import OpenAIClient
from prefrec.rankers.reference import reference_ranker
from prefrec.runs.stage import file_facts, stage_key


def chat_rec_stage(
    made_of: Ingredients, config: ChatRecConfig, folder: Path, before: Mapping[str, Entry]
) -> RankerEntry:
    """Chat-REC as an entry.

    Raises:
        ConfigError: there is no such retriever.
        ModelError: the server's model is not named, and it does not say which one it serves.
    """
    first = retriever_entry(config, before)
    chat, files = _chat_key(config, made_of.model), [config.users] if config.users else []
    key = stage_key(
        chat_rec=config.model_dump(exclude={"name", "model", "server", "batch_size", "max_length"}),
        chat=chat,
        retriever=first.key if first else config.retriever,
        retriever_model=model_key(made_of.model) if isinstance(first, LMEntry) else None,
        data=made_of.data_key,
        seed=made_of.seed,
        files=file_facts(files),
    )

    def load() -> Ranker:
        return chat_rec_ranker(config, made_of.data, made_of.model, before, seed=made_of.seed)

    return RankerEntry(config.name, key, load)


def chat_rec_ranker(
    config: ChatRecConfig, data: PreparedData, model: ModelSection, before: Mapping[str, Entry], *, seed: int
) -> ChatRecRanker:
    """Retriever, language model and profiles, loaded.

    Args:
        config: what to put together.
        data: titles, interactions and domain.
        model: the local model where `config` names none, and its precision.
        before: entries by name, of which one may be the retriever.
        seed: of ties, and of the reference row `random`.

    Raises:
        ConfigError: there is no such retriever.
        DataError: the table of users cannot be read.
        ModelError, TokenizerError: the local model cannot be read, or has no chat template.
    """
    first = retriever_entry(config, before)
    if first is None:
        retriever = reference_ranker(config.retriever, data.train_interactions, data.catalogue, seed, data.validation)
    else:
        retriever = entry_ranker(first, data, model)
    profiles = Profiles(data.catalogue, data.train_interactions, _users(config.users))
    chat = _chat(config, model)
    return ChatRecRanker(
        config.name, retriever, chat, data.catalogue, profiles, domain=data.domain, keep=config.keep, seed=seed
    )


def retriever_entry(config: ChatRecConfig, before: Mapping[str, Entry]) -> Entry | None:
    """The entry that retrieves; None for a reference row.

    Raises:
        ConfigError: there is none of this name.
    """
    references = get_args(ReferenceName)
    if config.retriever in references:
        return None
    return known_entry(config.retriever, config.name, before, "retriever", references)


def _chat_key(config: ChatRecConfig, model: ModelSection) -> dict[str, Any]:
    """What the answers of the language model depend on."""
    if config.server is not None:
        return config.server.model_dump(exclude=PATIENCE) | {"model": served_model(config.server)}
    name = config.model or model.name
    loading = {k: v for k, v in model.loading().items() if k in model.decisive()}
    return {"model": name, **loading, "max_length": config.max_length, "files": file_facts([Path(name).expanduser()])}


def _chat(config: ChatRecConfig, model: ModelSection) -> ChatModel:
    if config.server is not None:
        return EndpointChat(OpenAIClient(config.server), max_new_tokens=config.max_new_tokens)
    lm, tokenizer = load_lm(config.model or model.name, **model.loading())
    return LocalChat(
        lm,
        tokenizer,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        batch_size=config.batch_size,
    )


def _users(path: Path | None) -> pl.DataFrame | None:
    return read_table(path) if path is not None else None

"""Chat-REC in a recipe: a retriever and a language model are combined, and nothing is trained."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from prefrec.files import content_digest
from prefrec.intake.readers import read_table
from prefrec.lm.names import base_digest
from prefrec.rankers.base import Ranker
from prefrec.rankers.config import BATCH_SIZE
from prefrec.rankers.lm import load_lm
from prefrec.runs.stage import stage_key
from prefrec.sections import ModelSection
from prefrec.stages.base import RankerStage
from prefrec.stages.inputs import RunInputs
from prefrec_systems.chatrec import ChatModel, ChatRecConfig, ChatRecRanker, EndpointChat, LocalChat, Profiles
from prefrec_systems.endpoint import OpenAIClient
from prefrec_systems.endpoint.config import PATIENCE
from prefrec_systems.endpoint.stage import served_model


class ChatRecStage(RankerStage):
    """Chat-REC with a retriever of the recipe."""

    Config = ChatRecConfig
    queries = True
    full = None
    config: ChatRecConfig

    @property
    def retriever(self) -> RankerStage:
        """The stage of the retriever."""
        return self.before[self.config.retriever]

    @cached_property
    def key(self) -> str:
        """Raise ModelError if `server.model` is not set, and the server does not say which model it serves."""
        config = self.config
        return stage_key(
            chat_rec=config.model_dump(exclude={"name", "model", "server", "batch_size", "max_length", "users"}),
            chat=_chat_key(config, self.inputs.model),
            retriever=self.retriever.key,
            retriever_model=self.retriever.model,
            data=self.inputs.data_key,
            seed=self.inputs.seed,
            users=content_digest(config.users) if config.users else None,
        )

    @property
    def has_out_of_fold(self) -> bool:
        return self.retriever.has_out_of_fold

    def load(self, batch_size: int) -> Ranker:
        return chat_rec_ranker(self.config, self.inputs, self.retriever, batch_size=batch_size)

    def load_out_of_fold(self, batch_size: int) -> Ranker:
        return chat_rec_ranker(self.config, self.inputs, self.retriever.out_of_fold, batch_size=batch_size)


def chat_rec_ranker(
    config: ChatRecConfig, inputs: RunInputs, retriever: RankerStage, *, batch_size: int = BATCH_SIZE
) -> ChatRecRanker:
    """Load retriever, language model and profiles.

    Args:
        config: settings of Chat-REC.
        inputs: data, seed of ties, and the local model if `config` names none.
        retriever: stage of the retriever.
        batch_size: examples per pass of the retriever.

    Raises:
        DataError: the table of users cannot be read.
        ModelError, TokenizerError: the local model cannot be read, or has no chat template.
    """
    data = inputs.data
    users = None if config.users is None else read_table(config.users)
    profiles = Profiles(data.catalogue, data.train_interactions, users)
    chat = _chat(config, inputs.model)
    return ChatRecRanker(
        config.name,
        retriever.load(batch_size),
        chat,
        data.catalogue,
        profiles,
        domain=data.domain,
        keep=config.keep,
        seed=inputs.seed,
    )


def _chat_key(config: ChatRecConfig, model: ModelSection) -> dict[str, Any]:
    """Return what the language model's answers depend on."""
    if config.server is not None:
        return config.server.model_dump(exclude=PATIENCE) | {"model": served_model(config.server)}
    name = config.model or model.name
    loading = {k: v for k, v in model.loading().items() if k in model.decisive()}
    return {"model": base_digest(name), **loading, "max_length": config.max_length}


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

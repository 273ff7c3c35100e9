"""Chat models: a local one, or one behind an OpenAI-compatible server."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from prefrec.console import track
from prefrec.errors import ModelError, TokenizerError
from prefrec.prompts.chat import Message
from prefrec.rankers.lm import greedy_answers
from prefrec.training.sampler import longest_first
from prefrec_systems.chatrec.conversation import encode_conversation
from prefrec_systems.endpoint import OpenAIClient

Conversation = Sequence[Message]

_TOO_LONG = re.compile(r"refuses the request .*context[ _](?:length|size|window)", re.IGNORECASE | re.DOTALL)
"""Matches the errors of OpenAI's servers, vLLM and llama.cpp for conversations that are too long."""


class ConversationTooLongError(TokenizerError):
    """A conversation that leaves no room for its answer."""


class ChatModel(Protocol):
    """A language model that answers conversations."""

    def answer(self, conversations: Sequence[Conversation], doing: str) -> list[str]:
        """Return the assistant's next message in each conversation; `doing` is the label of the progress bar."""
        ...


class LocalChat:
    """A causal LM with a chat template, decoded greedily.

    Args:
        model: a causal LM.
        tokenizer: its tokenizer.
        max_new_tokens: most tokens of an answer.
        max_length: most tokens of a conversation with its answer.
        batch_size: conversations per pass.

    Raises:
        TokenizerError: the tokenizer has no chat template, or no end token.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_new_tokens: int = 400,
        max_length: int = 4096,
        batch_size: int = 4,
    ) -> None:
        if tokenizer.eos_token_id is None or not tokenizer.chat_template:
            raise TokenizerError(
                "the tokenizer lacks a chat template or an end token, which Chat-REC needs: choose an instruct model"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.end: int = tokenizer.eos_token_id
        self.max_new_tokens = max_new_tokens
        self.max_length = max_length
        self.batch_size = batch_size

    def answer(self, conversations: Sequence[Conversation], doing: str) -> list[str]:
        """Return the next message of each conversation.

        Raises:
            ConversationTooLongError: a conversation leaves no room for its answer.
        """
        prompts = [encode_conversation(self.tokenizer, c) for c in conversations]
        longest = max(map(len, prompts), default=0)
        if longest + self.max_new_tokens > self.max_length:
            raise ConversationTooLongError(
                f"a conversation of {longest} tokens with an answer of up to {self.max_new_tokens} exceeds "
                f"max_length ({self.max_length}): show fewer items (`keep`), or raise max_length up to its limit"
            )
        order = longest_first(range(len(prompts)), [len(p) for p in prompts])
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        texts: dict[int, str] = {}
        with torch.no_grad():
            for rows in track(batches, doing):
                batch = [prompts[i] for i in rows]
                answers = greedy_answers(self.model, self.tokenizer, batch, self.end, self.max_new_tokens)
                texts.update(zip(rows, answers, strict=True))
        return [texts[i] for i in range(len(prompts))]


class EndpointChat:
    """A model behind `/chat/completions`, queried at temperature 0. Raises errors of `OpenAIClient`."""

    def __init__(self, client: OpenAIClient, *, max_new_tokens: int = 400) -> None:
        self.client = client
        self.max_new_tokens = max_new_tokens

    def answer(self, conversations: Sequence[Conversation], doing: str) -> list[str]:
        """Return the next message of each conversation.

        Raises:
            ConversationTooLongError: the server says that a conversation exceeds the model's context.
        """
        settings = {"max_tokens": self.max_new_tokens, "temperature": 0}
        bodies = ({"messages": [dict(m) for m in c], **settings} for c in conversations)
        try:
            return list(track(self.client.many(self.client.chat, bodies), doing, total=len(conversations)))
        except ModelError as e:
            if _TOO_LONG.search(str(e)):
                raise ConversationTooLongError(str(e)) from e
            raise

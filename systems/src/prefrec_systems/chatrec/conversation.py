"""Tokenise conversations with the tokenizer's chat template, without special tokens in text from data."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from prefrec.errors import TokenizerError
from prefrec.prompts.chat import Message, chat_frame, special_ids


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the token ids of the messages, up to the beginning of the assistant's next answer.

    Raises:
        TokenizerError: the tokenizer has no chat template, or it drops or changes a message.
    """
    if not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat template: use an instruct model, or a model on a server")
    parts = chat_frame(tokenizer, messages)
    contents = [m["content"] for m in messages]
    whole = parts[0] + "".join(c + p for c, p in zip(contents, parts[1:], strict=True))
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in parts]
    special = special_ids(tokenizer)
    # Models are trained on the joint tokenisation. If a message adds special tokens to it, the pieces are tokenised
    # separately, with special tokens only in the template's pieces.
    if sum(i in special for i in ids) == sum(i in special for part in pieces for i in part):
        return tuple(ids)
    contents_ids = [tokenizer(c, add_special_tokens=False, split_special_tokens=True)["input_ids"] for c in contents]
    return (*pieces[0], *(i for c, p in zip(contents_ids, pieces[1:], strict=True) for i in (*c, *p)))

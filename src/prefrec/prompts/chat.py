"""Tokenisation of conversations by the tokenizer's chat template, without special tokens in text from data."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from prefrec.errors import TokenizerError

Message = dict[str, str]
"""`role` (user or assistant) and `content`."""

_MARK = "prefrec-content-{}-stands-here"


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the token ids of the messages, up to where the assistant's next answer begins.

    Raises:
        TokenizerError: the tokenizer has no chat template, or it drops or changes a message.
    """
    if not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat template; use an instruct model, or a server's")
    parts = chat_frame(tokenizer, messages)
    contents = [m["content"] for m in messages]
    whole = parts[0] + "".join(c + p for c, p in zip(contents, parts[1:], strict=True))
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in parts]
    special = special_ids(tokenizer)
    # The joint tokenisation is what a model was trained on. If a message added special tokens to it, the pieces are
    # tokenised separately, with special tokens only in the template's pieces text.
    if sum(i in special for i in ids) == sum(i in special for part in pieces for i in part):
        return tuple(ids)
    contents_ids = [tokenizer(c, add_special_tokens=False, split_special_tokens=True)["input_ids"] for c in contents]
    return (*pieces[0], *(i for c, p in zip(contents_ids, pieces[1:], strict=True) for i in (*c, *p)))


def chat_frame(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str]:
    """Return the chat template's text before, between and after the messages; transformers renders it in a sandbox.

    Raise TokenizerError if the template fails, or drops or repeats a message.
    """
    marked = [{**m, "content": _MARK.format(n)} for n, m in enumerate(messages)]
    try:
        text = str(tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as e:
        raise TokenizerError(f"the tokenizer's chat template cannot be used: {e}") from e
    pattern = re.compile(_MARK.format(r"\d+"))
    if pattern.findall(text) != [m["content"] for m in marked]:
        raise TokenizerError(
            "the tokenizer's chat template drops or repeats a message; use another template, or no chat"
        )
    return pattern.split(text)


def special_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the ids that text from data must never become: `all_special_ids` and unnamed special tokens."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*added, *tokenizer.all_special_ids])

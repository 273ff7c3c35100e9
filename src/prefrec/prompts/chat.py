"""The text of a chat template around messages, and the special tokens that data must not produce."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jinja2

from prefrec.errors import TokenizerError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
"""`role` (user or assistant) and `content`."""
_MARK = "prefrec-content-{}-stands-here"


def chat_frame(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[str]:
    """Return the chat template's text before, between and after the messages.

    transformers renders it in a sandbox. Raise TokenizerError if the template fails, or drops or repeats a message.
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
    """Return the token ids that data must never produce: `all_special_ids` and unnamed special tokens."""
    added = (i for i, token in tokenizer.added_tokens_decoder.items() if token.special)
    return frozenset([*added, *tokenizer.all_special_ids])

"""A conversation as token ids, by the tokenizer's chat template; text from data never becomes a special token."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jinja2
from transformers import PreTrainedTokenizerBase

from prefrec.errors import TokenizerError
from prefrec.prompts.encoding import special_ids

Message = dict[str, str]
"""`role` (user or assistant) and `content`."""

_PLACE = "prefrec-content-{}-stands-here"


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Token ids of the messages, up to where the assistant's next answer begins.

    Raises:
        TokenizerError: the tokenizer has no chat template, or it leaves out or alters what was said.
    """
    if not tokenizer.chat_template:
        raise TokenizerError("the tokenizer has no chat template; use an instruct model, or a server's")
    places = [{**m, "content": _PLACE.format(n)} for n, m in enumerate(messages)]
    try:
        frame = str(tokenizer.apply_chat_template(places, tokenize=False, add_generation_prompt=True))
    except jinja2.TemplateError as e:
        raise TokenizerError(f"the tokenizer's chat template cannot be used: {e}") from e
    pattern = re.compile(_PLACE.format(r"\d+"))
    parts = pattern.split(frame)
    if pattern.findall(frame) != [p["content"] for p in places]:
        raise TokenizerError("the tokenizer's chat template leaves out a message, or says one twice")
    contents = [m["content"] for m in messages]
    whole = parts[0] + "".join(c + p for c, p in zip(contents, parts[1:], strict=True))
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    own = [tokenizer(p, add_special_tokens=False)["input_ids"] for p in parts]
    special = special_ids(tokenizer)
    if sum(i in special for i in ids) == sum(i in special for part in own for i in part):
        return tuple(ids)
    said = [tokenizer(c, add_special_tokens=False, split_special_tokens=True)["input_ids"] for c in contents]
    return (*own[0], *(i for c, p in zip(said, own[1:], strict=True) for i in (*c, *p)))

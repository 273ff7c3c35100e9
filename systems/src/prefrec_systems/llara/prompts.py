"""Hybrid prompts: each title is followed by its item token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import polars as pl
from transformers import PreTrainedTokenizerBase

from prefrec.data import Catalogue
from prefrec.errors import DataError
from prefrec.prompts import PromptEncoder
from prefrec_systems.llara.embedding import HybridEmbedding

_MARK = "\ue0d5"  # from the private use area of Unicode: not a letter of any script
_MARKED = re.compile(f"{_MARK}(\\d+){_MARK}")
_ANCHOR = "a"  # put before a text to get its token ids inside a prompt


class HybridEncoder(PromptEncoder):
    """A `PromptEncoder` for prompts that show the titles of `hybrid_catalogue`.

    Text between item tokens is tokenised piece by piece, as between special tokens.

    Args:
        tokenizer: tokenizer of the model.
        embedding: embedding with the item tokens.
        **settings: other arguments of `PromptEncoder`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, embedding: HybridEmbedding, **settings: Any) -> None:
        super().__init__(tokenizer, **settings)
        self.first_item = embedding.first_item

    def _ids(self, text: str, *, begin: bool = False, special: bool = False) -> tuple[int, ...]:
        first, *rest = _MARKED.split(text)
        ids = [*super()._ids(first, begin=begin, special=special)]
        if rest:
            pieces = self._continued(rest[1::2], special=special)
            for item, piece in zip(rest[::2], pieces, strict=True):
                ids += [self.first_item + int(item), *piece]
        return tuple(ids)

    def _continued(self, texts: Sequence[str], *, special: bool) -> list[tuple[int, ...]]:
        """Return token ids of texts inside a prompt, without the space that some tokenizers add before a text."""
        count = len(texts)
        before, *ids = self._many_ids([_ANCHOR, *(_ANCHOR + t for t in texts), *texts], special=special)
        joint, alone = ids[:count], ids[count:]
        return [j[len(before) :] if j[: len(before)] == before else a for j, a in zip(joint, alone, strict=True)]


def hybrid_catalogue(catalogue: Catalogue, embedding: HybridEmbedding) -> Catalogue:
    """Return the catalogue for prompts: each title is followed by the mark of its item.

    Items that the sequential recommender does not know have no mark.

    Raises:
        DataError: a title contains the character of the marks.
    """
    marks = {item: f"{_MARK}{n}{_MARK}" for n, item in enumerate(embedding.ids)}
    if marked := [title for title in catalogue.titles.values() if _MARK in title]:
        raise DataError(f"the title {marked[0]!r} contains U+E0D5, which marks items in hybrid prompts: remove it")
    shown = [title + marks.get(item, "") for item, title in catalogue.titles.items()]
    return Catalogue(catalogue.frame.with_columns(pl.Series("title", shown)))

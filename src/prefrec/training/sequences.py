"""Histories as running text: each title is predicted from the titles before it, with no list of candidates.

A ranking question teaches one title in some 250 tokens, a history one title in some seven. A model that has read
the histories of the training users knows what is watched, and after what, before it is asked its first question.
"""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from prefrec.data import Catalogue
from prefrec.errors import TokenizerError
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate

_FIRST, _SECOND = "the-first-title", "the-second-title"
LEAST = 5
"""Titles that a sequence has at least."""


def encode_sequences(
    interactions: pl.DataFrame,
    catalogue: Catalogue,
    template: PromptTemplate,
    encoder: PromptEncoder,
    *,
    titles: int,
) -> list[ChoiceSet]:
    """Choice sets of one answer each: the history that `template` shows, as the answer to the text before it.

    Args:
        interactions: frame `user_id, item_id, …`, each user's rows together and in time: training data alone.
        catalogue: titles of all items.
        template: its text before the first history title is the prompt, its text between two titles joins them.
        encoder: of the model's tokenizer.
        titles: longest sequence; a user with more gives several, one after the other. A sequence that exceeds
            the encoder's `max_length` is halved until it fits.

    Raises:
        TokenizerError: a sequence of `LEAST` titles exceeds `max_length`.
    """
    head, joint = _frame(template)
    return [
        choices
        for _, rows in interactions.group_by("user_id", maintain_order=True)
        for sequence in _cut(catalogue.titles_of(rows["item_id"].to_list()), titles)
        for choices in _encode(sequence, head, joint, encoder)
    ]


def _frame(template: PromptTemplate) -> tuple[str, str]:
    """The template's text before the first history title, and between the first two, with no candidates shown."""
    shown = template.render([_FIRST, _SECOND], [])
    head, _, rest = shown.partition(_FIRST)
    return head, rest[: rest.index(_SECOND)]


def _cut(titles: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(titles), size):
        part = titles[start : start + size]
        if len(part) >= LEAST:
            yield part


def _encode(sequence: list[str], head: str, joint: str, encoder: PromptEncoder) -> Iterator[ChoiceSet]:
    try:
        yield encoder.encode_text(head, [joint.join(sequence)])
    except TokenizerError:
        half = len(sequence) // 2
        if half < LEAST:
            raise
        yield from _encode(sequence[:half], head, joint, encoder)
        yield from _encode(sequence[half:], head, joint, encoder)

"""Datasets of choice sets for the trainers, made from texts or ranking examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from numbers import Real
from textwrap import shorten
from typing import Any, Literal, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prefrec.data import Catalogue, Query, RankingExample
from prefrec.errors import ConfigError, DataError, TokenizerError
from prefrec.lm.catalogue_softmax import CatalogueSoftmax
from prefrec.lm.models import SHOWN
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.prompts.chat import Message
from prefrec.training.defaults import NegativesDrawn


class EncodedRows(Dataset[dict[str, Any]]):
    """Examples as token ids.

    Attributes:
        encoder: the encoder that made them. Default: the trainer's own, with its tokenizer.
        within: restrict the softmax over answers to this catalogue. Default: all tokens.
    """

    encoder: Any = None
    within: CatalogueSoftmax | None = None

    def encoded_by(self, encoder: Any, within: CatalogueSoftmax | None = None) -> Self:
        """Set the attributes `encoder` and `within`; return this dataset."""
        self.encoder, self.within = encoder, within
        return self


class ChoiceDataset(EncodedRows):
    """A dataset of choice sets with one answer each, for SFT."""

    def __init__(self, choice_sets: Sequence[ChoiceSet]) -> None:
        if not choice_sets:
            raise DataError("the dataset has no examples; give at least one")
        self.choice_sets = list(choice_sets)

    def __len__(self) -> int:
        return len(self.choice_sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"choices": self.choice_sets[index]}


class PreferenceDataset(EncodedRows):
    """A dataset of choice sets with the chosen answer first, followed by rejected answers.

    Args:
        choice_sets: chosen answer first, then all rejected answers. Their number may differ between examples.
        num_negatives: number N of rejected answers per step. Default: all.
        negatives: `fixed`: sample N answers once. `per_epoch`: resample every epoch. Samples depend only on seed,
            epoch and example.
        scores: one number per answer and example, for losses that need them.
        ref_logps: log-probability per answer and example under a reference other than the starting model. Default:
            the trainer computes them if its loss needs them.
        groups: a number below n per example, equal for successive examples whose prompts have a common beginning.
            They then share a pass (`trajectories`). Default: examples are shuffled individually.

    Attributes:
        sizes: smallest and largest number of rejected answers per step.
        ref_logps: log-probabilities [n, C] under the reference; −inf where an example has fewer answers; None if
            unknown.
        has_reference: True if they were given.

    Raises:
        DataError: there are no examples, one has no rejected answer, or `scores` or `ref_logps` is not one number per
            answer.
        ConfigError: an example has fewer than N rejected answers, or `num_negatives` or `negatives` is not valid.
    """

    def __init__(
        self,
        choice_sets: Sequence[ChoiceSet],
        *,
        num_negatives: int | None = None,
        negatives: NegativesDrawn = "fixed",
        seed: int = 0,
        scores: Sequence[Sequence[float]] | None = None,
        ref_logps: Sequence[Sequence[float]] | None = None,
        groups: Sequence[int] | None = None,
    ) -> None:
        check_negatives(num_negatives, negatives)
        if not choice_sets:
            raise DataError("the dataset has no examples; give at least one")
        available = np.array([len(c.answers) - 1 for c in choice_sets])
        least = int(available.min())
        if least < 1:
            raise DataError(f"example {int(available.argmin())} has no rejected answer")
        if num_negatives is not None and num_negatives > least:
            raise ConfigError(
                f"num_negatives is {num_negatives}, but example {int(available.argmin())} has only {least} rejected "
                "answers: lower num_negatives, prepare larger candidate sets, or remove num_negatives to use all"
            )
        _check_lengths("scores", scores, choice_sets)
        _check_lengths("ref_logps", ref_logps, choice_sets)
        self.sizes = (least, int(available.max())) if num_negatives is None else (num_negatives, num_negatives)
        self.seed = seed
        self.epoch = 0
        self.choice_sets = list(choice_sets)
        self.scores = scores
        self.groups = groups
        self.ref_logps: NDArray[np.float32] | None = None if ref_logps is None else padded(ref_logps)
        self.has_reference = ref_logps is not None
        if negatives == "fixed":
            drawn = [self[i] for i in range(len(choice_sets))]
            self.choice_sets = [row["choices"] for row in drawn]
            self.scores = None if scores is None else [row["scores"] for row in drawn]
            self.ref_logps = None if ref_logps is None else padded([row["ref_logps"] for row in drawn])

    def set_epoch(self, epoch: int) -> None:
        """Use the negatives of this epoch; fixed negatives do not change."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.choice_sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns, whole = self._columns(index), self.choice_sets[index]
        row: dict[str, Any] = {"choices": ChoiceSet(whole.prompt, tuple(whole.answers[c] for c in columns))}
        if self.scores is not None:
            row["scores"] = [self.scores[index][c] for c in columns]
        if self.ref_logps is not None:
            row["ref_logps"] = self.ref_logps[index][columns]
        return row

    def _columns(self, index: int) -> list[int]:
        rejected = len(self.choice_sets[index].answers) - 1
        if rejected <= self.sizes[1]:
            return [*range(1 + rejected)]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return [0, *rng.choice(np.arange(1, 1 + rejected), self.sizes[1], replace=False).tolist()]


def check_negatives(num_negatives: int | None, negatives: str) -> None:
    """Raise ConfigError if there are no negatives to sample, or no such way to sample them."""
    if num_negatives is not None and num_negatives < 1:
        raise ConfigError(f"num_negatives must be at least 1, got {num_negatives}")
    if negatives not in (drawn := get_args(NegativesDrawn)):
        raise ConfigError(f"negatives must be one of {', '.join(drawn)}, got {negatives!r}")


def _check_lengths(name: str, rows: Sequence[Sequence[float]] | None, choice_sets: Sequence[ChoiceSet]) -> None:
    """Raise DataError about the first example without a number for each of its answers."""
    if rows is None:
        return
    for example, (values, choices) in enumerate(zip_longest(rows, choice_sets)):
        if values is None or choices is None or len(values) != len(choices.answers):
            raise DataError(f"{name} of example {example} is not one number per answer")


def padded(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Return rows of numbers as an array [n, C], −inf beyond the end of a row."""
    out = np.full((len(rows), max(map(len, rows))), -np.inf, dtype=np.float32)
    for row, numbers in zip(out, rows, strict=True):
        row[: len(numbers)] = numbers
    return out


def encode_completions(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder) -> list[ChoiceSet]:
    """Encode rows `prompt, completion`; raise DataError if a column is missing or empty.

    As in TRL, a prompt may be messages, and an answer one message; the tokenizer's chat template formats them.
    """
    return [_encoded(encoder, row, i, [_text(row, "completion", i)]) for i, row in enumerate(rows)]


def encode_preferences(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder) -> list[ChoiceSet]:
    """Encode rows `prompt, chosen, rejected`, where `rejected` is a list, or one answer (N = 1).

    Texts may be messages, as in `encode_completions`. Raise DataError if a column is missing or empty, the chosen
    answer is among the rejected ones, also as tokens, or `scores` is not one finite number per answer.
    """
    sets = []
    for i, row in enumerate(rows):
        chosen, rejected = _text(row, "chosen", i), _content(row.get("rejected"))
        rejected = [rejected] if isinstance(rejected, str) else rejected
        rejected = [*map(_content, rejected)] if isinstance(rejected, Sequence) else rejected
        if not isinstance(rejected, Sequence) or not rejected or not all(isinstance(r, str) and r for r in rejected):
            raise DataError(f"row {i}: `rejected` must be a text or a list of texts, got {rejected!r}")
        if chosen in rejected:
            raise DataError(f"row {i}: the chosen answer {chosen!r} is also among the rejected ones")
        scores = row.get("scores")
        if scores is not None and not _are_numbers(scores, 1 + len(rejected)):
            raise DataError(
                f"row {i}: `scores` must have a number for the chosen answer and for each rejected answer"
            )
        choices = _encoded(encoder, row, i, [chosen, *rejected])
        if choices.answers[0] in choices.answers[1:]:
            same = rejected[choices.answers.index(choices.answers[0], 1) - 1]
            raise DataError(
                f"row {i}: the chosen answer {chosen!r} and the rejected answer {same!r} have the same tokens"
            )
        sets.append(choices)
    return sets


def _are_numbers(values: Any, count: int) -> bool:
    """Return True for a list of so many finite numbers."""
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or len(values) != count:
        return False
    return all(isinstance(v, Real) and math.isfinite(v) for v in values)


def _encoded(encoder: PromptEncoder, row: Mapping[str, Any], index: int, answers: Sequence[str]) -> ChoiceSet:
    """Encode the prompt of a row with these answers; errors name the row."""
    try:
        return encoder.encode_text(_prompt(row, index), answers)
    except TokenizerError as e:
        raise TokenizerError(f"row {index}: {e}") from e


def encode_examples(
    queries: Sequence[Query],
    catalogue: Catalogue,
    templates: Sequence[PromptTemplate],
    encoder: PromptEncoder,
    *,
    answers: Literal["target", "target-first", "candidates"],
    shown: Catalogue | None = None,
    groups: Sequence[int] | None = None,
) -> list[ChoiceSet]:
    """Encode queries as choice sets.

    Args:
        queries: n queries; all are ranking examples, if their targets are answers.
        catalogue: titles of answers.
        templates: prompt templates. Query i gets template i mod the number of templates.
        answers: `target`: only the target (SFT). `target-first`: the target, then the other candidates in order
            (alignment). `candidates`: all candidates in order (scoring).
        shown: titles in prompts. Default: `catalogue`.
        groups: [n] group of each query, which then chooses the template in place of i.

    Raises:
        TokenizerError: a query does not fit into the maximum length even without its history.
    """
    shown = catalogue if shown is None else shown
    sets = []
    for i, query in enumerate(queries):
        if answers == "target":
            wanted = catalogue.titles_of([cast(RankingExample, query).target])
        elif answers == "target-first":
            wanted = catalogue.titles_of(cast(RankingExample, query).target_first)
        else:
            wanted = catalogue.titles_of(query.candidates)
        template = templates[(i if groups is None else groups[i]) % len(templates)]
        prompt = shown.titles_of(query.history), shown.titles_of(query.candidates)
        try:
            sets.append(encoder.encode(template, *prompt, wanted))
        except TokenizerError as e:
            user = "" if query.user_id is None else f" (user {query.user_id})"
            raise TokenizerError(f"example {i}{user}: {e}") from e
    return sets


def trajectories(examples: Sequence[RankingExample]) -> list[int]:
    """Return the group of each example: successive examples of a user, each history continuing the previous one."""
    begins = (
        before.user_id != example.user_id or example.history[: len(before.history)] != before.history
        for before, example in pairwise(examples)
    )
    return [*accumulate(begins, initial=0)][: len(examples)]


def _content(answer: Any) -> Any:
    """Return the text of an answer that is one message; other answers are returned unchanged."""
    is_message = isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], Mapping)
    return answer[0].get("content") if is_message else answer


def _prompt(row: Mapping[str, Any], index: int) -> str | list[Message]:
    prompt = row.get("prompt")
    listed = prompt if isinstance(prompt, list) else []
    are_messages = [isinstance(m, Mapping) and isinstance(m.get("content"), str) and "role" in m for m in listed]
    return listed if are_messages and all(are_messages) else _text(row, "prompt", index)


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column) if column == "prompt" else _content(row.get(column))
    if not isinstance(value, str) or not value.strip():
        columns = ", ".join(map(str, row))
        shown = shorten(repr(value), SHOWN, placeholder=" …")
        raise DataError(
            f"row {index}: `{column}` must be a text, or messages whose content is a text, got {shown} "
            f"(columns: {columns})"
        )
    return value

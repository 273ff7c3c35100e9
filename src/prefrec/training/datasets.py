"""Datasets of choice sets for the trainers, from rows of text or ranking examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, TokenizerError
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate


class ChoiceDataset(Dataset[dict[str, Any]]):
    """A dataset of choice sets with one answer each, for SFT."""

    def __init__(self, choice_sets: Sequence[ChoiceSet]) -> None:
        if not choice_sets:
            raise DataError("the training data has no rows")
        self.choice_sets = list(choice_sets)

    def __len__(self) -> int:
        return len(self.choice_sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"choices": self.choice_sets[index]}


class PreferenceDataset(Dataset[dict[str, Any]]):
    """A dataset of choice sets with the chosen answer first, and all or N of the rejected ones per step.

    Raise DataError if there are no rows, or a row has no rejected answer, ConfigError if a row has fewer than N.

    Args:
        choice_sets: chosen answer first, then all rejected answers. Rows may have different numbers of them.
        num_negatives: N; None for all rejected answers of each row.
        negatives: `fixed` draws the N once, `per_epoch` in each epoch. Draws depend only on seed, epoch and row.

    Attributes:
        sizes: smallest and largest number of rejected answers per step of any row.
        ref_logps: the reference's log-probabilities [n, C], −inf where a row has fewer answers; None: not known.
    """

    def __init__(
        self,
        choice_sets: Sequence[ChoiceSet],
        *,
        num_negatives: int | None = None,
        negatives: Literal["fixed", "per_epoch"] = "fixed",
        seed: int = 0,
    ) -> None:
        if not choice_sets:
            raise DataError("the training data has no rows")
        available = np.array([len(c.answers) - 1 for c in choice_sets])
        least = int(available.min())
        if least < 1:
            raise DataError(f"row {int(available.argmin())} has no rejected answer")
        if num_negatives is not None and num_negatives > least:
            raise ConfigError(
                f"num_negatives is {num_negatives}, but row {int(available.argmin())} has only {least} rejected "
                "answers: lower num_negatives, prepare longer candidate lists, or leave it out to use all answers"
            )
        self.sizes = (least, int(available.max())) if num_negatives is None else (num_negatives, num_negatives)
        self.seed = seed
        self.epoch = 0
        self.choice_sets = list(choice_sets)
        if negatives == "fixed":
            self.choice_sets = [self._take(i, self._columns(i)) for i in range(len(choice_sets))]
        self.ref_logps: NDArray[np.float32] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Use the negatives of this epoch (no effect if they are fixed)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.choice_sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = self._columns(index)
        row: dict[str, Any] = {"choices": self._take(index, columns)}
        if self.ref_logps is not None:
            row["ref_logps"] = self.ref_logps[index][columns]
        return row

    def _columns(self, index: int) -> list[int]:
        rejected = len(self.choice_sets[index].answers) - 1
        if rejected <= self.sizes[1]:
            return [*range(1 + rejected)]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return [0, *(1 + rng.choice(rejected, self.sizes[1], replace=False)).tolist()]

    def _take(self, index: int, columns: Sequence[int]) -> ChoiceSet:
        whole = self.choice_sets[index]
        return ChoiceSet(whole.prompt, tuple(whole.answers[c] for c in columns))


def encode_completions(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder) -> list[ChoiceSet]:
    """Return the choice sets of rows `prompt, completion`; raise DataError if a column is missing or empty."""
    return [encoder.encode_text(_text(row, "prompt", i), [_text(row, "completion", i)]) for i, row in enumerate(rows)]


def encode_preferences(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder) -> list[ChoiceSet]:
    """Return the choice sets of rows `prompt, chosen, rejected`, where `rejected` is a list, or one string (N = 1).

    Raise DataError if a column is missing or empty, or the chosen answer is among the rejected ones.
    """
    sets = []
    for i, row in enumerate(rows):
        chosen, rejected = _text(row, "chosen", i), row.get("rejected")
        rejected = [rejected] if isinstance(rejected, str) else rejected
        if not isinstance(rejected, Sequence) or not rejected or not all(isinstance(r, str) and r for r in rejected):
            raise DataError(f"row {i}: `rejected` must be a text or a list of texts, got {rejected!r}")
        if chosen in rejected:
            raise DataError(f"row {i}: the chosen answer {chosen!r} is also among the rejected ones")
        sets.append(encoder.encode_text(_text(row, "prompt", i), [chosen, *rejected]))
    return sets


def encode_examples(
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    templates: Sequence[PromptTemplate],
    encoder: PromptEncoder,
    *,
    answers: Literal["target", "target-first", "candidates"],
    shown: Catalogue | None = None,
) -> list[ChoiceSet]:
    """Return the choice sets of ranking examples; row i has template i mod the number of templates.

    Answers are the `target` (SFT), the `target-first` and then the other candidates in order (alignment), or all
    `candidates` in order (scoring). `shown` are the titles in prompts, if these differ from the titles of answers.
    Raise TokenizerError if a row does not fit, even without its history.
    """
    shown = catalogue if shown is None else shown
    sets = []
    for i, example in enumerate(examples):
        wanted = catalogue.titles_of(example.candidates)
        if answers == "target":
            wanted = [catalogue.titles[example.target]]
        elif answers == "target-first":
            wanted = [wanted.pop(example.target_index), *wanted]
        template = templates[i % len(templates)]
        prompt = shown.titles_of(example.history), shown.titles_of(example.candidates)
        try:
            sets.append(encoder.encode(template, *prompt, wanted))
        except TokenizerError as e:
            raise TokenizerError(f"row {i} (user {example.user_id}): {e}") from e
    return sets


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        columns = ", ".join(map(str, row))
        raise DataError(f"row {index}: `{column}` must be a text, got {value!r} (columns: {columns})")
    return value

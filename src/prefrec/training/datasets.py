"""Datasets of choice sets for the trainers, from rows of text or ranking examples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from prefrec.data import Catalogue, RankingExample
from prefrec.errors import ConfigError, DataError, TokenizerError
from prefrec.lm.items import ItemEncoder
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
    """A dataset of choice sets with the chosen answer first, and N of the rejected ones per step.

    Args:
        choice_sets: chosen answer first, then all rejected answers.
        num_negatives: N; None for the smallest number of rejected answers of any row.
        negatives: `fixed` draws the N once; `per_epoch` draws them in each epoch. Draws depend only on seed, epoch
            and row.
        seed: of the draws.

    Raises:
        DataError: there are no rows, or a row has no rejected answer.
        ConfigError: a row has fewer than N rejected answers.
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
        self.num_negatives = least if num_negatives is None else num_negatives
        if self.num_negatives > least:
            raise ConfigError(
                f"num_negatives is {num_negatives}, but row {int(available.argmin())} has only {least} rejected "
                "answers: lower num_negatives or prepare longer candidate lists"
            )
        self.redrawn = negatives == "per_epoch" and bool((available > self.num_negatives).any())
        self.seed = seed
        self.epoch = 0
        self.choice_sets = list(choice_sets)
        if not self.redrawn:
            self.choice_sets = [self._take(i, self._columns(i)) for i in range(len(choice_sets))]
        self.ref_logps: NDArray[np.float32] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Use the negatives of this epoch (no effect if they are fixed)."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.choice_sets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not self.redrawn:
            row: dict[str, Any] = {"choices": self.choice_sets[index]}
            columns = slice(None)
        else:
            columns = self._columns(index)
            row = {"choices": self._take(index, columns)}
        if self.ref_logps is not None:
            row["ref_logps"] = self.ref_logps[index][columns]
        return row

    def _columns(self, index: int) -> Any:
        rejected = len(self.choice_sets[index].answers) - 1
        if rejected == self.num_negatives:
            return [*range(1 + rejected)]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return [0, *(1 + rng.choice(rejected, self.num_negatives, replace=False)).tolist()]

    def _take(self, index: int, columns: Sequence[int]) -> ChoiceSet:
        whole = self.choice_sets[index]
        return ChoiceSet(whole.prompt, tuple(whole.answers[c] for c in columns))


def encode_completions(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder | ItemEncoder) -> list[ChoiceSet]:
    """Return the choice sets of rows `prompt, completion` (TRL's names).

    Raises:
        DataError: a column is missing or empty; the message names the row.
    """
    return [encoder.encode_text(_text(row, "prompt", i), [_text(row, "completion", i)]) for i, row in enumerate(rows)]


def encode_preferences(rows: Iterable[Mapping[str, Any]], encoder: PromptEncoder | ItemEncoder) -> list[ChoiceSet]:
    """Return the choice sets of rows `prompt, chosen, rejected` (TRL's names).

    `rejected` is a list of strings, or one string (N = 1).

    Raises:
        DataError: a column is missing or empty, or the chosen answer is among the rejected ones.
    """
    return [_encode_preference(row, i, encoder) for i, row in enumerate(rows)]


def encode_examples(
    examples: Sequence[RankingExample],
    catalogue: Catalogue,
    templates: Sequence[PromptTemplate],
    encoder: PromptEncoder | ItemEncoder,
    *,
    answers: Literal["target", "target-first", "candidates"],
    shown: Catalogue | None = None,
) -> list[ChoiceSet]:
    """Return the choice sets of ranking examples; row i has template i mod the number of templates.

    Args:
        catalogue: titles of all items.
        templates: one or more phrasings.
        encoder: of the model's tokenizer, or of item tokens.
        answers: `target` (SFT), `target-first` (alignment: target, then the other candidates in order), or
            `candidates` (scoring: all in order).
        shown: titles in prompts, if these differ from the titles of answers.

    Raises:
        TokenizerError: a row does not fit, even without its history; the message names row and user.
    """
    shown = catalogue if shown is None else shown
    sets = []
    for i, example in enumerate(examples):
        candidates = catalogue.titles_of(example.candidates)
        target = catalogue.titles[example.target]
        if answers == "target":
            wanted = [target]
        elif answers == "target-first":
            index = example.target_index
            wanted = [target, *candidates[:index], *candidates[index + 1 :]]
        else:
            wanted = candidates
        template = templates[i % len(templates)]
        prompt = shown.titles_of(example.history), shown.titles_of(example.candidates)
        try:
            sets.append(encoder.encode(template, *prompt, wanted))
        except TokenizerError as e:
            raise TokenizerError(f"row {i} (user {example.user_id}): {e}") from e
    return sets


def _encode_preference(row: Mapping[str, Any], index: int, encoder: PromptEncoder | ItemEncoder) -> ChoiceSet:
    chosen = _text(row, "chosen", index)
    rejected = row.get("rejected")
    rejected = [rejected] if isinstance(rejected, str) else rejected
    if not isinstance(rejected, Sequence) or not rejected or not all(isinstance(r, str) and r for r in rejected):
        raise DataError(f"row {index}: `rejected` must be a text or a list of texts, got {rejected!r}")
    if chosen in rejected:
        raise DataError(f"row {index}: the chosen answer {chosen!r} is also among the rejected ones")
    return encoder.encode_text(_text(row, "prompt", index), [chosen, *rejected])


def _text(row: Mapping[str, Any], column: str, index: int) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value:
        columns = ", ".join(map(str, row))
        raise DataError(f"row {index}: `{column}` must be a text, got {value!r} (columns: {columns})")
    return value

"""TALLRec's prompt: what a user liked and disliked, one item, and the answers Yes and No."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

from prefrec.data import Catalogue
from prefrec.errors import TemplateError, TokenizerError
from prefrec.prompts import ChoiceSet, PromptEncoder, PromptTemplate
from prefrec.prompts.templates import in_words
from prefrec.training import ChoiceDataset
from prefrec_systems.tallrec.questions import Question

YES, NO = "Yes", "No"
ANSWERS = (YES, NO)
"""The answers of every choice set, in this order."""


@dataclass(frozen=True)
class LikeTemplate(PromptTemplate):
    """A prompt with the placeholders `liked` and `disliked` (lists of titles, oldest first) and `item` (a title)."""

    placeholders: ClassVar[tuple[str, ...]] = ("liked", "disliked", "item")

    def ask(self, liked: Sequence[str], disliked: Sequence[str], item: str) -> str:
        """Return the prompt for these titles."""
        return self._fill(liked=list(liked), disliked=list(disliked), item=item)


def load_like_template(name: str | None, *, domain: str = "generic") -> LikeTemplate:
    """Return the built-in template of a domain, or the one in a file.

    Raises:
        TemplateError: the file does not exist, or is not such a template.
    """
    if name is None:
        return LikeTemplate(f"like/{domain}", in_words(files("prefrec_systems.tallrec") / "like.jinja2", domain))
    if not Path(name).is_file():
        raise TemplateError(
            f"there is no template {name!r}: set `template` to a jinja2 file, or remove it for the built-in one"
        )
    return LikeTemplate.read(Path(name))


def encode_question(
    question: Question,
    catalogue: Catalogue,
    template: LikeTemplate,
    encoder: PromptEncoder,
    answers: Sequence[str] = ANSWERS,
) -> ChoiceSet:
    """Return the choice set of a question, without the oldest history items that do not fit.

    Raises:
        TokenizerError: the question exceeds the encoder's `max_length` even without history.
    """
    (item,) = catalogue.titles_of([question.item])
    titles = catalogue.titles_of(i for i, _ in question.history)
    opinions = [(title, liked) for title, (_, liked) in zip(titles, question.history, strict=True)]
    for dropped in range(len(opinions) + 1):
        liked, disliked = ([t for t, like in opinions[dropped:] if like is which] for which in (True, False))
        try:
            choices = encoder.encode_text(template.ask(liked, disliked, item), answers)
        except TokenizerError:
            if dropped == len(opinions):
                raise
        else:
            encoder.shortened += dropped > 0
            return choices
    raise AssertionError("the loop returns or raises")


def tallrec_dataset(
    questions: Sequence[Question], catalogue: Catalogue, template: LikeTemplate, encoder: PromptEncoder
) -> ChoiceDataset:
    """Return choice sets with one answer, Yes or No, for `SFTTrainer`.

    Raises:
        DataError: there are no questions.
        TokenizerError: a question exceeds the encoder's `max_length` even without history.
    """
    return ChoiceDataset(
        [encode_question(q, catalogue, template, encoder, [YES if q.liked else NO]) for q in questions]
    )

"""Questions with their answers as choice sets, for SFT."""

from __future__ import annotations

from collections.abc import Sequence

from prefrec.data import Catalogue
from prefrec.prompts import PromptEncoder
from prefrec.training import ChoiceDataset
from prefrec_systems.tallrec.prompts import NO, YES, LikeTemplate, encode_question
from prefrec_systems.tallrec.questions import Question


def tallrec_dataset(
    questions: Sequence[Question], catalogue: Catalogue, template: LikeTemplate, encoder: PromptEncoder
) -> ChoiceDataset:
    """Choice sets of one answer, Yes or No: what `SFTTrainer` trains TALLRec on.

    Raises:
        DataError: there are no questions.
        TokenizerError: a question exceeds the encoder's `max_length` without any history.
    """
    return ChoiceDataset(
        [encode_question(q, catalogue, template, encoder, [YES if q.liked else NO]) for q in questions]
    )

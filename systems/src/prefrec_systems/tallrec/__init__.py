"""TALLRec: a language model fine-tuned to say whether a user will like an item, which ranks by P(Yes)."""

from prefrec_systems.tallrec.config import TallrecConfig
from prefrec_systems.tallrec.prompts import (
    ANSWERS,
    LikeTemplate,
    encode_question,
    load_like_template,
    tallrec_dataset,
)
from prefrec_systems.tallrec.questions import Opinions, Question, history_of, training_questions
from prefrec_systems.tallrec.ranker import TallrecRanker, load_tallrec

__all__ = [
    "ANSWERS",
    "LikeTemplate",
    "Opinions",
    "Question",
    "TallrecConfig",
    "TallrecRanker",
    "encode_question",
    "history_of",
    "load_like_template",
    "load_tallrec",
    "tallrec_dataset",
    "training_questions",
]

"""GRU4Rec, Caser and SASRec, trained on all positions of a sequence in one pass."""

from prefrec_systems.sequential.config import SEQUENTIAL_MODELS, SequentialConfig
from prefrec_systems.sequential.ranker import SequentialRanker, load_sequential
from prefrec_systems.sequential.train import MODEL_FILES, train_sequential

__all__ = [
    "MODEL_FILES",
    "SEQUENTIAL_MODELS",
    "SequentialConfig",
    "SequentialRanker",
    "load_sequential",
    "train_sequential",
]

"""GRU4Rec, Caser and SASRec: trained by hopwise in a process of its own, asked here."""

from prefrec_systems.sequential.benchmark import Vocabulary, write_benchmark
from prefrec_systems.sequential.config import SEQUENTIAL_MODELS, Grid, SequentialConfig
from prefrec_systems.sequential.ranker import SequentialRanker, load_sequential, require_hopwise
from prefrec_systems.sequential.train import MODEL_FILES, train_sequential

__all__ = [
    "MODEL_FILES",
    "SEQUENTIAL_MODELS",
    "Grid",
    "SequentialConfig",
    "SequentialRanker",
    "Vocabulary",
    "load_sequential",
    "require_hopwise",
    "train_sequential",
    "write_benchmark",
]

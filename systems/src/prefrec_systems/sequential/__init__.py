"""GRU4Rec, Caser and SASRec: hopwise trains them in a process of its own, this one asks them."""

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

"""LLaRA: a language model that reads items as titles with projected vectors of a sequential recommender."""

from prefrec_systems.llara.config import LlaraAlignConfig, LlaraConfig
from prefrec_systems.llara.embedding import (
    PROJECTOR_FILE,
    HybridEmbedding,
    ItemVectors,
    Projector,
    add_items,
    embedding_of,
    load_projector,
    save_projector,
    vectors_of,
)
from prefrec_systems.llara.prompts import HybridEncoder, hybrid_catalogue
from prefrec_systems.llara.ranker import LlaraRanker, load_llara, load_llara_model
from prefrec_systems.llara.train import CurriculumDataset, LlaraTrainer

__all__ = [
    "PROJECTOR_FILE",
    "CurriculumDataset",
    "HybridEmbedding",
    "HybridEncoder",
    "ItemVectors",
    "LlaraAlignConfig",
    "LlaraConfig",
    "LlaraRanker",
    "LlaraTrainer",
    "Projector",
    "add_items",
    "embedding_of",
    "hybrid_catalogue",
    "load_llara",
    "load_llara_model",
    "load_projector",
    "save_projector",
    "vectors_of",
]

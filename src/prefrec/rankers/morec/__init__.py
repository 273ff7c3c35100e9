"""MoRec: a title encoder in place of item ids in a sequential recommender."""

from prefrec.rankers.morec.config import MoRecConfig
from prefrec.rankers.morec.ranker import MODEL_FILES, MoRecRanker, load_morec
from prefrec.rankers.morec.train import train_morec

__all__ = ["MODEL_FILES", "MoRecConfig", "MoRecRanker", "load_morec", "train_morec"]

"""MoRec: a sequential recommender with a title encoder instead of item ids."""

from prefrec_systems.morec.config import MoRecConfig
from prefrec_systems.morec.ranker import MODEL_FILES, load_morec
from prefrec_systems.morec.train import train_morec

__all__ = ["MODEL_FILES", "MoRecConfig", "load_morec", "train_morec"]

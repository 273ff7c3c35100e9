"""EASE and implicit ALS: linear rankers of the user × item matrix."""

from prefrec_systems.linear.ranker import ALSConfig, ALSRanker, EASEConfig, EASERanker

__all__ = ["ALSConfig", "ALSRanker", "EASEConfig", "EASERanker"]

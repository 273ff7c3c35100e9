"""Implicit ALS: a linear ranker of the user × item matrix."""

from prefrec_systems.linear.ranker import ALSConfig, ALSRanker

__all__ = ["ALSConfig", "ALSRanker"]

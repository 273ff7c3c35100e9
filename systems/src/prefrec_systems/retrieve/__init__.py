"""Retrieve-then-rank: one ranker narrows a list of any length, another one orders what is left."""

from prefrec_systems.retrieve.ranker import RetrieveThenRank, RetrieveThenRankConfig

__all__ = ["RetrieveThenRank", "RetrieveThenRankConfig"]

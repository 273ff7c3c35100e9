"""Retrieve-then-rank: one ranker retrieves K of any number of candidates, another one reorders them."""

from prefrec_systems.retrieve.ranker import RetrieveThenRank, RetrieveThenRankConfig

__all__ = ["RetrieveThenRank", "RetrieveThenRankConfig"]

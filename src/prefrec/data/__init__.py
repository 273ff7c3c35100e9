"""Ranking examples and their parts: catalogue, histories of users, splits and candidate sets."""

from prefrec.data.query import Candidates, Queries, Query
from prefrec.data.rows import LazyExamples, RankingExample
from prefrec.data.seen import UnknownUserError, seen_items, user_histories
from prefrec.data.store import prepared_digest, read_prepared, write_prepared
from prefrec.data.types import Catalogue, PreparedData, Window, examples_to_frame, frame_to_examples, has_dates

__all__ = [
    "Candidates", "Catalogue", "LazyExamples", "PreparedData", "Queries", "Query", "RankingExample",
    "UnknownUserError", "Window", "examples_to_frame", "frame_to_examples", "has_dates", "prepared_digest",
    "read_prepared", "seen_items", "user_histories", "write_prepared",
]  # fmt: skip

"""Prepare ranking examples from logs and catalogues."""

from prefrec.data.config import CandidateConfig, ColumnNames, PrepareConfig, config_error
from prefrec.data.prepare import prepare
from prefrec.data.rows import LazyExamples, RankingExample
from prefrec.data.seen import UnknownUserError, seen_items, user_histories
from prefrec.data.store import prepared_digest, read_prepared, write_prepared
from prefrec.data.types import Catalogue, PreparedData, Window, examples_to_frame, frame_to_examples, has_dates

__all__ = [
    "CandidateConfig", "Catalogue", "ColumnNames", "LazyExamples", "PrepareConfig", "PreparedData", "RankingExample",
    "UnknownUserError", "Window", "config_error", "examples_to_frame", "frame_to_examples", "has_dates", "prepare",
    "prepared_digest", "read_prepared", "seen_items", "user_histories", "write_prepared",
]  # fmt: skip

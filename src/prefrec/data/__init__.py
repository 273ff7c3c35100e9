"""Logs and catalogues in, ranking examples out."""

from prefrec.data.types import Catalogue, PreparedData, RankingExample, examples_to_frame, frame_to_examples

__all__ = ["Catalogue", "PreparedData", "RankingExample", "examples_to_frame", "frame_to_examples"]

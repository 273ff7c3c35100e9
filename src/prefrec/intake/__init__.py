"""Read logs and catalogues of many forms, and prepare examples from them."""

from prefrec.intake.config import CandidateConfig, ColumnNames, PrepareConfig
from prefrec.intake.prepare import prepare

__all__ = ["CandidateConfig", "ColumnNames", "PrepareConfig", "prepare"]

"""What a file is: read logs and catalogues of any form, and prepare examples from them."""

from prefrec.intake.config import CandidateConfig, ColumnNames, PrepareConfig
from prefrec.intake.prepare import prepare

__all__ = ["CandidateConfig", "ColumnNames", "PrepareConfig", "prepare"]

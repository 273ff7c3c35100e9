"""The studies there are, by name."""

from __future__ import annotations

from prefrec.studies import alignments
from prefrec.studies.study import Study

STUDIES: dict[str, Study] = {s.name: s for s in (alignments.ABLATION, alignments.NEGATIVES_STUDY, alignments.BETA)}
"""Name on the command line → study."""

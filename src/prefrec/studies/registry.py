"""The studies there are, by name."""

from __future__ import annotations

from prefrec.studies.alignments import ABLATION, BETA, NEGATIVES_STUDY
from prefrec.studies.dynamics import DYNAMICS
from prefrec.studies.gradients import GRADIENTS
from prefrec.studies.study import Study

STUDIES: dict[str, Study] = {s.name: s for s in (ABLATION, NEGATIVES_STUDY, BETA, DYNAMICS, GRADIENTS)}
"""Name on the command line → study."""

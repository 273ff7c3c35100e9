"""The studies there are, by name."""

from __future__ import annotations

from prefrec.studies.alignments import ABLATION, BETA, NEGATIVES_STUDY
from prefrec.studies.cost import COST
from prefrec.studies.dynamics import DYNAMICS
from prefrec.studies.fairness import FAIRNESS
from prefrec.studies.gradients import GRADIENTS
from prefrec.studies.robustness import ROBUSTNESS
from prefrec.studies.study import Study

STUDIES: dict[str, Study] = {
    s.name: s for s in (ABLATION, NEGATIVES_STUDY, BETA, DYNAMICS, GRADIENTS, ROBUSTNESS, FAIRNESS, COST)
}
"""Name on the command line → study."""

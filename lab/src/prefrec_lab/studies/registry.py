"""All studies, by name."""

from __future__ import annotations

from prefrec_lab.studies.alignments import ABLATION, BETA, NEGATIVES_STUDY
from prefrec_lab.studies.budget import BUDGET
from prefrec_lab.studies.cold_start import COLD_START
from prefrec_lab.studies.continual import CONTINUAL
from prefrec_lab.studies.cost import COST
from prefrec_lab.studies.dynamics import DYNAMICS
from prefrec_lab.studies.fairness import FAIRNESS
from prefrec_lab.studies.gradients import GRADIENTS
from prefrec_lab.studies.negative_sampling import NEGATIVE_SAMPLING
from prefrec_lab.studies.negatives_theory import NEGATIVES_THEORY
from prefrec_lab.studies.robustness import ROBUSTNESS
from prefrec_lab.studies.sizes import DATA_SIZE, MODEL_SIZE
from prefrec_lab.studies.table import TABLE
from prefrec_lab.studies.transfer import TRANSFER
from prefrec_lab.study_tools.study import Study

STUDIES: dict[str, Study] = {
    s.name: s
    for s in (
        ABLATION,
        NEGATIVES_STUDY,
        BETA,
        BUDGET,
        DYNAMICS,
        GRADIENTS,
        NEGATIVE_SAMPLING,
        NEGATIVES_THEORY,
        DATA_SIZE,
        MODEL_SIZE,
        COLD_START,
        ROBUSTNESS,
        FAIRNESS,
        TRANSFER,
        CONTINUAL,
        COST,
        TABLE,
    )
}
"""Name on the command line → study."""

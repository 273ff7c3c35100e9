"""The studies there are, by name."""

from __future__ import annotations

from prefrec.studies.alignments import ABLATION, BETA, NEGATIVES_STUDY
from prefrec.studies.cold_start import COLD_START
from prefrec.studies.continual import CONTINUAL
from prefrec.studies.cost import COST
from prefrec.studies.dynamics import DYNAMICS
from prefrec.studies.fairness import FAIRNESS
from prefrec.studies.gradients import GRADIENTS
from prefrec.studies.negative_sampling import NEGATIVE_SAMPLING
from prefrec.studies.robustness import ROBUSTNESS
from prefrec.studies.study import Study
from prefrec.studies.table import TABLE
from prefrec.studies.transfer import TRANSFER

STUDIES: dict[str, Study] = {
    s.name: s
    for s in (
        ABLATION,
        NEGATIVES_STUDY,
        BETA,
        DYNAMICS,
        GRADIENTS,
        NEGATIVE_SAMPLING,
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

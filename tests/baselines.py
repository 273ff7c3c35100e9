"""Names of the baselines that small logs without dates have."""

from prefrec.pipeline.recipe import REFERENCE_RANKERS
from prefrec.rankers.reference import TIMED

UNDATED_BASELINES = [name for name in REFERENCE_RANKERS if name not in TIMED]
SERVED_BASELINES = [name for name in UNDATED_BASELINES if name != "item only"]

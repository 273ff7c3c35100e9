"""Names of the baselines that small logs without dates have."""

from prefrec.pipeline.recipe import BASELINES
from prefrec.rankers.baselines import TIMED

UNDATED_BASELINES = [name for name in BASELINES if name not in TIMED]
SERVED_BASELINES = [name for name in UNDATED_BASELINES if name != "item only"]

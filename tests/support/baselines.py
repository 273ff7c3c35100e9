"""Names of the baselines that small logs without dates and repeats have."""

from prefrec.rankers.baselines import BASELINES, TIMED
from prefrec.rankers.buy_again import BuyAgainRanker

UNDATED_BASELINES = [name for name in BASELINES if name not in TIMED and name != BuyAgainRanker.name]
SERVED_BASELINES = [name for name in UNDATED_BASELINES if name != "item only"]

"""`prefrec lab bench`: the cost of a training step and of a ranking here, compared with other methods in one run."""

from prefrec_lab.bench.run import run_bench
from prefrec_lab.bench.settings import BenchSettings

__all__ = ["BenchSettings", "run_bench"]

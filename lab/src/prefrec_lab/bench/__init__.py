"""`prefrec bench`: what a step and a ranking cost here, beside the ways in use today, all in one run."""

from prefrec_lab.bench.run import run_bench
from prefrec_lab.bench.settings import BenchSettings

__all__ = ["BenchSettings", "run_bench"]

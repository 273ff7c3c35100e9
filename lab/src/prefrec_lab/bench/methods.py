"""The methods that are measured, by section and name."""

from __future__ import annotations

import gc
from collections.abc import Callable

import torch
from transformers import set_seed

from prefrec_lab.bench.job import Job, Measured
from prefrec_lab.bench.rankings import catalogue_full, catalogue_trie, rank_full, rank_packed, rank_separate
from prefrec_lab.bench.settings import MATMUL, PREFREC, PUBLISHED, SEPARATE, TRL
from prefrec_lab.bench.steps import matmul, own_trainer, published, trl_trainer

Measure = Callable[[Job], Measured]

_STEPS: dict[str, Measure] = {
    PUBLISHED: published,
    TRL: trl_trainer,
    SEPARATE: own_trainer,
    PREFREC: own_trainer,
    MATMUL: matmul,
}

MEASURES: dict[str, dict[str, Measure]] = {
    "steps": _STEPS,
    "growth": _STEPS,
    "ranking": {PUBLISHED: rank_full, SEPARATE: rank_separate, PREFREC: rank_packed, MATMUL: matmul},
    "catalogue": {PUBLISHED: catalogue_full, PREFREC: catalogue_trie},
}
"""Section → method → function that measures it once."""


def measure(job: Job) -> Measured:
    """Measure a job once, from a freshly loaded model; loading and setting up are not timed."""
    try:
        set_seed(job.settings.seed)
        return MEASURES[job.section][job.base](job)
    finally:
        gc.collect()
        if job.device == "cuda":
            torch.cuda.empty_cache()

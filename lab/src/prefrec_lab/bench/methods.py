"""The methods that are measured, by section and name; those of rankings, which need no gradient, are made here."""

from __future__ import annotations

import gc
from collections.abc import Callable

import numpy as np
import torch
from transformers import set_seed

from prefrec.lm.catalogue import catalogue_logps, trie_layout
from prefrec.lm.packing import pack
from prefrec.lm.scoring import choice_logps
from prefrec.lm.trie import Trie
from prefrec.prompts import ChoiceSet
from prefrec.rankers import LMRanker
from prefrec_lab.bench.job import Job, Measured, memory_of
from prefrec_lab.bench.published import full_sequence_logps
from prefrec_lab.bench.settings import MATMUL, PREFREC, PUBLISHED, SEPARATE, TRL
from prefrec_lab.bench.steps import matmul, own_trainer, published, trl_trainer
from prefrec_lab.bench.workload import base_model, plain_model, tokenizer_of
from prefrec_lab.stopwatch import Stopwatch

Measure = Callable[[Job], Measured]


def rank_full(job: Job) -> Measured:
    """Rank candidates with one full sequence per candidate and float32 logits at all positions."""
    model, end = plain_model(job.settings), tokenizer_of(job.settings).eos_token_id
    watch = Stopwatch(job.device)
    with memory_of(job) as memory, torch.no_grad(), watch.running(), job.precision:
        logps = full_sequence_logps(model, job.choice_sets, end)
    return Measured({"ranking": watch.read()}, job.rows, memory, facts={"logps/chosen": float(logps[:, 0].mean())})


def rank_separate(job: Job) -> Measured:
    """Rank candidates with one full sequence per candidate and logits at the answers only."""
    model, end = base_model(job.settings), tokenizer_of(job.settings).eos_token_id
    watch = Stopwatch(job.device)
    with memory_of(job) as memory, torch.no_grad(), watch.running():
        logps = choice_logps(model, pack(job.choice_sets, pad_id=end, layout="separate").to(job.device))
    return Measured({"ranking": watch.read()}, job.rows, memory, facts={"logps/chosen": float(logps[:, 0].mean())})


def rank_packed(job: Job) -> Measured:
    """Rank candidates with `LMRanker.score`: render, tokenise, pack, one pass. Its layout check is not timed."""
    work = job.work
    ranker = LMRanker(
        PREFREC,
        base_model(job.settings),
        tokenizer_of(job.settings),
        work.catalogue,
        work.template,
        max_length=None,
        batch_size=len(work.examples),
        objective="tokens",
    )
    ranker.score(work.examples[:1])
    watch = Stopwatch(job.device)
    with memory_of(job) as memory, watch.running():
        scores = ranker.score(work.examples)
    chosen = [scores[i, e.target_index] for i, e in enumerate(work.examples)]
    facts = {"logps/chosen": float(sum(chosen) / len(chosen))}
    return Measured({"ranking": watch.read()}, len(work.examples), memory, facts=facts)


def catalogue_full(job: Job) -> Measured:
    """Score a sample of titles with one full sequence each and float32 logits everywhere; scale to all titles."""
    model, end = plain_model(job.settings), tokenizer_of(job.settings).eos_token_id
    whole = job.choice_sets[0]
    rng = np.random.default_rng(job.settings.seed)
    answers = [whole.answers[i] for i in rng.choice(len(whole.answers), job.sampled, replace=False)]
    at_once = job.settings.sequences
    passes = [ChoiceSet(whole.prompt, tuple(answers[i : i + at_once])) for i in range(0, len(answers), at_once)]
    watch = Stopwatch(job.device)
    with memory_of(job) as memory, torch.no_grad(), watch.running(), job.precision:
        for choice_set in passes:
            full_sequence_logps(model, [choice_set], end)
    note = f"{len(answers)} of {len(whole.answers):,} titles, scaled" if len(answers) < len(whole.answers) else ""
    return Measured({"ranking": watch.read()}, len(answers) / len(whole.answers), memory, note=note)


def catalogue_trie(job: Job) -> Measured:
    """Score all titles through their trie. Trie and layout, the same for every prompt, are not timed."""
    model, whole = base_model(job.settings), job.choice_sets[0]
    trie = Trie.build(whole.answers)
    with torch.no_grad():
        layout, _ = trie_layout(model, whole.prompt, trie)
        watch = Stopwatch(job.device)
        with memory_of(job) as memory, watch.running():
            catalogue_logps(model, whole.prompt, trie, layout=layout)
    return Measured({"ranking": watch.read()}, 1, memory)


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

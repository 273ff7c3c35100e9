"""Run the bench: new workers for each N, one repetition of each method in turn, results kept at once.

The order of methods rotates between repetitions, so that a slowdown of the machine affects all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from prefrec.console import warn
from prefrec.errors import ConfigError
from prefrec.files import read_json, write_json
from prefrec.runs.stage import machine
from prefrec_lab.bench.floor import ModelShape, count_tokens, flops, model_shape
from prefrec_lab.bench.job import Job, Measured
from prefrec_lab.bench.progress import Progress, label, missing_repetitions
from prefrec_lab.bench.records import append_record, read_records
from prefrec_lab.bench.settings import MATMUL, PREFREC, PUBLISHED, SEPARATE, BenchSettings
from prefrec_lab.bench.worker import Worker, WorkerEndedError
from prefrec_lab.bench.workload import catalogue_workload, config_of, make_workload
from prefrec_lab.machine import free_bytes

CANDIDATES = 20
"""Titles in a list that is ranked."""

MEMORY_SHARE = 0.9
"""Share of the memory free at the start that a worker may take."""

STEP_PASSES = {"forward": 2, "backward": 1, "adapted": 1}
"""Passes of a training step: policy and reference forward, policy backward."""

RANKING_PASSES = {"forward": 1, "backward": 0, "adapted": 0}

LOG = "worker.log"
SETTINGS = "settings.json"


def run_bench(settings: BenchSettings, out: Path) -> list[dict[str, Any]]:
    """Measure what `out` does not hold yet; return all its records.

    Args:
        out: folder of the measurements. The measurements of an earlier run are kept.

    Raises:
        ConfigError: the folder's measurements were made with other settings.
    """
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(settings, out)
    plan = [cell for section in settings.sections for cell in _cells(settings, section)]
    memory = _memory(settings)
    environment_now = _environment(settings, memory)
    _compare_commits(read_records(out), environment_now)
    append_record(out, {"kind": "session", "environment": environment_now, "began": time.time()})
    shape = model_shape(config_of(settings), settings.lora_rank)
    for job in (j for cell in plan for j in cell if j.section != "catalogue" and j.method == PREFREC):
        append_record(out, _workload_record(job, shape))
    progress = Progress(settings, out, [job for cell in plan for job in cell])
    for cell in plan:
        _run_cell(cell, out, memory, progress)
    return read_records(out)


def _cells(settings: BenchSettings, section: str) -> list[list[Job]]:
    """Return the jobs of a section; those in one list are measured in turn."""
    if section == "steps":
        return [
            [Job(settings, section, m, n, work) for m in (MATMUL, *settings.methods)]
            for n in settings.negatives
            for work in [make_workload(settings, n)]
        ]
    if section == "growth":
        wanted = [n for n in settings.negatives if PREFREC in settings.methods]
        return [[Job(settings, section, PREFREC, n, make_workload(settings, n)) for n in wanted]]
    if section == "ranking":
        work = make_workload(settings, CANDIDATES - 1)
        methods = (MATMUL, PUBLISHED, SEPARATE, PREFREC)
        return [[Job(settings, section, m, CANDIDATES - 1, work) for m in _wanted(methods, settings)]]
    work = catalogue_workload(settings)
    titles = len(work.choice_sets[0].answers)
    return [[Job(settings, section, m, titles - 1, work) for m in _wanted((PUBLISHED, PREFREC), settings)]]


def _wanted(methods: Sequence[str], settings: BenchSettings) -> list[str]:
    return [m for m in methods if m in (MATMUL, *settings.methods)]


def _run_cell(jobs: Sequence[Job], out: Path, memory: int | None, progress: Progress) -> None:
    """Measure the missing repetitions of these jobs, in turn."""
    records = read_records(out)
    open_jobs = [j for j in jobs if missing_repetitions(records, j) and progress.affordable(j)]
    with ExitStack() as stack:
        workers = {j.key: stack.enter_context(Worker(j, out / LOG, memory)) for j in open_jobs}
        for repetition in range(1 + max((j.settings.repetitions for j in open_jobs), default=-1)):
            shift = repetition % max(1, len(open_jobs))
            for job in [*open_jobs[shift:], *open_jobs[:shift]]:
                wanted = repetition == 0 or repetition in missing_repetitions(records, job)
                if wanted and job.key in workers and not _once(job, workers[job.key], repetition, out, progress):
                    del workers[job.key]


def _once(job: Job, worker: Worker, repetition: int, out: Path, progress: Progress) -> bool:
    """Measure and record one repetition (0 is the warm-up); return False if the worker has ended."""
    began = time.monotonic()
    try:
        if repetition == 0:
            worker.ready()
            began = time.monotonic()
        measured = worker.measure()
    except WorkerEndedError as e:
        append_record(out, {"kind": "failure", **_named(job), "reason": str(e), "final": e.final})
        warn(f"{label(job)}: {e}")
        progress.ended(job)
        return False
    elapsed = time.monotonic() - began
    append_record(out, _record(job, measured, repetition, elapsed))
    progress.done(job, measured, repetition, elapsed)
    return True


def _named(job: Job) -> dict[str, Any]:
    section, negatives, method = job.key
    return {"section": section, "negatives": negatives, "method": method}


def _record(job: Job, measured: Measured, repetition: int, elapsed: float) -> dict[str, Any]:
    return {
        "kind": "measurement",
        **_named(job),
        "repetition": repetition,
        "cpu_s": measured.cpu,
        "wall_s": measured.wall,
        "parts": {name: vars(seconds) for name, seconds in measured.parts.items()},
        "rows": measured.rows,
        "tokens": job.tokens,
        "resident_bytes": measured.memory.resident,
        "peak_bytes": measured.memory.peak,
        "note": measured.note,
        "facts": measured.facts,
        "elapsed_s": elapsed,
        "at": time.time(),
    }


def _workload_record(job: Job, shape: ModelShape) -> dict[str, Any]:
    """Return the least work of the rows, averaged per row."""
    sets = job.work.choice_sets
    passes = RANKING_PASSES if job.section == "ranking" else STEP_PASSES
    prompts = sum(len(c.prompt) for c in sets) / len(sets)
    return {
        "kind": "workload",
        **_named(job),
        "rows": len(sets),
        "shown": len(job.work.examples[0].candidates),
        "prompt_tokens": prompts,
        "answer_tokens": sum(len(a) for c in sets for a in c.answers) / sum(len(c.answers) for c in sets),
        "floor_flops": flops(shape, count_tokens(sets), **passes) / len(sets),
    }


def _check_settings(settings: BenchSettings, out: Path) -> None:
    """Write the settings, or compare them with those of the folder's measurements."""
    new, path = settings.identity(), out / SETTINGS
    recorded = read_json(path)
    if not any(r["kind"] == "measurement" for r in read_records(out)):
        write_json(path, new)
    elif not recorded:
        raise ConfigError(
            f"{path} is damaged, so the settings of its measurements are unknown: choose another folder"
        )
    elif recorded != new:
        differ = [f"{k} {recorded.get(k)!r}, now {v!r}" for k, v in new.items() if recorded.get(k) != v]
        raise ConfigError(f"{out} holds measurements with other settings ({'; '.join(differ)}): name another folder")


def _compare_commits(records: Sequence[Mapping[str, Any]], now: Mapping[str, Any]) -> None:
    """Warn if the folder's measurements were made with another version of the code."""
    before = {r["environment"].get("commit") for r in records if r["kind"] == "session"}
    if any(r["kind"] == "measurement" for r in records) and (others := before - {now.get("commit")}):
        earlier = ", ".join(sorted(str(c)[:12] for c in others))
        warn(
            f"the folder holds measurements of commit {earlier}; now it is {str(now.get('commit'))[:12]}: medians "
            "mix both, and shares of the floor use the present count of tokens; name another folder to separate them"
        )


def _environment(settings: BenchSettings, memory: int | None) -> dict[str, Any]:
    """Return machine, versions and commit, and the limits of the workers."""
    peer = {"trl": version("trl")} if find_spec("trl") else {}
    limits = {"threads": settings.threads or torch.get_num_threads(), "memory_limit_bytes": memory}
    return {**machine(), "seed": settings.seed, **peer, **limits}


def _memory(settings: BenchSettings) -> int | None:
    if settings.memory_gb is not None:
        return round(settings.memory_gb * 2**30)
    free = free_bytes()
    return None if free is None else round(MEMORY_SHARE * free)

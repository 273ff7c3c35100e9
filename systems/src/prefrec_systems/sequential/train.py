"""Training of a sequential recommender: write benchmark files, watch a process, keep its weights."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefrec.console import say, track
from prefrec.data import PreparedData
from prefrec.errors import ModelError
from prefrec.files import write_text
from prefrec_systems.sequential.benchmark import Vocabulary, write_benchmark
from prefrec_systems.sequential.config import METRIC, MISSING, SETTINGS, Job, SequentialConfig
from prefrec_systems.sequential.ranker import missing_module

MODEL_FILES = ("model.safetensors", "model.json")
"""The files that `load_sequential` reads."""
WORKER = "prefrec_systems.sequential.worker"


def train_sequential(data: PreparedData, config: SequentialConfig, out: Path, *, seed: int) -> Path:
    """Train by hopwise in a process of its own; return `out`, which then holds `MODEL_FILES` and `log.json`.

    After each epoch hopwise ranks the whole vocabulary for every validation row. The epoch and the cell of the grid
    with the highest NDCG@10 are kept. An interrupted training continues after its last epoch. On the CPU the same
    data, configuration and seed give the same weights.

    Raises:
        ConfigError: hopwise, or a module that it needs, is not installed.
        DataError: there is nothing to train on, or no validation row to choose the epoch by.
        ModelError: the process failed; the message has its last line and names its log.
    """
    work = out.absolute() / "work"
    work.mkdir(parents=True, exist_ok=True)
    vocabulary = write_benchmark(data, work)
    job: Job = {
        "model": config.model,
        "benchmark": str(work),
        "out": str(work),
        "items": len(vocabulary.items),
        "users": len(vocabulary.users),
        "history_length": vocabulary.history_length,
        "epochs": config.epochs,
        "patience": config.patience,
        "batch_size": config.batch_size,
        "seed": seed,
        "settings": config.settings,
        "names": list(SETTINGS[config.model]),
        "trials": config.trials,
    }
    write_text(work / "job.json", json.dumps(job, ensure_ascii=False))
    for _ in track(_epochs(work, config), config.model, total=config.epochs * len(config.trials)):
        pass
    _collect(work, out, config, vocabulary)
    return out


def _epochs(work: Path, config: SequentialConfig) -> Iterator[dict[str, Any]]:
    """Yield the worker's reports of its epochs; at a training's end also one for each epoch that it did not need."""
    seen = 0
    with _worker(work) as lines:
        for line in lines:
            event = json.loads(line)
            if "missing" in event:
                raise missing_module(event["missing"])
            if "best" not in event:
                seen += 1
                yield event
                continue
            rate, decay = config.trials[event["trial"]]
            say(
                f"{config.model}, learning rate {rate:g}, weight decay {decay:g}: "
                f"validation {METRIC.upper()} {event['best']:.4f} at epoch {event['best_epoch'] + 1}"
            )
            for _ in range(seen, config.epochs * (event["trial"] + 1)):
                yield event
            seen = config.epochs * (event["trial"] + 1)


@contextmanager
def _worker(work: Path) -> Iterator[Iterator[str]]:
    """Start the worker and give the lines that it prints; end it if the caller stops reading.

    Raises:
        ModelError: the worker failed.
    """
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    command = [sys.executable, "-m", WORKER, str(work / "job.json")]
    log = work / "worker.log"
    with (
        log.open("w", encoding="utf-8") as errors,
        subprocess.Popen(
            command, cwd=work, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            yield iter(process.stdout or ())
        except BaseException:
            process.terminate()
            raise
    if process.returncode not in (0, MISSING):
        last = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()][-1:] or ["no message"]
        raise ModelError(f"hopwise ended with exit code {process.returncode}: {last[0]}; its whole log is in {log}")


def _collect(work: Path, out: Path, config: SequentialConfig, vocabulary: Vocabulary) -> None:
    """Keep the weights and what is needed to read them; remove the files that only training needed."""
    outcome = json.loads((work / "outcome.json").read_text(encoding="utf-8"))
    logs = [trial.pop("log") for trial in outcome["trials"]]
    epochs = [{"trial": n, **entry} for n, log in enumerate(logs) for entry in log]
    write_text(out / "log.json", json.dumps(epochs, ensure_ascii=False))
    weights, description_file = (out / name for name in MODEL_FILES)
    (work / weights.name).replace(weights)
    description = {
        "model": config.model,
        "history_length": vocabulary.history_length,
        **outcome,
        "items": vocabulary.items,
        "users": vocabulary.users,
    }
    write_text(description_file, json.dumps(description, ensure_ascii=False))
    shutil.rmtree(work)

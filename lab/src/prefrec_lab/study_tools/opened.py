"""Costs of a run's stages, and predictions of its models on a study's examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from prefrec import processes
from prefrec.data import PreparedData, RankingExample, read_prepared, write_prepared
from prefrec.files import write_json
from prefrec.pipeline.opened import Run
from prefrec.pipeline.score import predict_stages
from prefrec.recipe import Recipe
from prefrec.runs.stage import STAGE_FILE, read_state, seal
from prefrec.sections import SFT, ZERO_SHOT


def start_of(recipe: Recipe) -> str:
    """Return the name of the model that a recipe's alignments start from, which is their reference."""
    return SFT if recipe.sft else ZERO_SHOT


def change_data(folder: Path, change: Callable[[PreparedData], PreparedData]) -> None:
    """Change the prepared data of a run; a resumed run calls this again, so the change must be idempotent."""
    place = folder / "data"
    data = read_prepared(place)
    if processes.is_first() and (changed := change(data)).train != data.train:
        write_prepared(changed, place)
        # Otherwise the next stage would take the changed files for damaged ones.
        write_json(place / STAGE_FILE, read_state(place) | {"files": seal(place)})
    processes.wait()


def took(run: Run, name: str, what: Literal["seconds", "cpu_seconds", "peak_bytes"]) -> float | None:
    """Return the time or memory of a training stage by itself; None: not known."""
    state = run.stages[name].state if name in run.stages else {}
    return float(state[what]) if state.get("finished") and what in state else None


def ask(run: Run, names: Sequence[str], examples: Sequence[RankingExample], cache: Path) -> list[pl.DataFrame]:
    """Return predictions of a run's models on any rows of its items, kept in the folder `cache`."""
    section = run.recipe.evaluate.model_copy(update={"generate_rows": 0})
    return predict_stages(run.data, section, [run.stage(n) for n in names], examples, cache, seed=run.recipe.seed)

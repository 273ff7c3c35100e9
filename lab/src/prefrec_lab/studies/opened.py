"""Costs of a run's stages, and answers of its models to rows of a study's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from prefrec.data import RankingExample
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, Recipe
from prefrec.pipeline.score import ask_models


def start_of(recipe: Recipe) -> str:
    """Return the name of the model that a recipe's alignments start from, which is their reference."""
    return SFT if recipe.sft else ZERO_SHOT


def took(run: Run, name: str, what: Literal["seconds", "cpu_seconds", "peak_bytes"]) -> float | None:
    """Return the time or memory of a training stage by itself; None: not known."""
    state = run.stages[name].state if name in run.stages else {}
    return float(state[what]) if state.get("finished") and what in state else None


def ask(run: Run, names: Sequence[str], examples: Sequence[RankingExample], cache: Path) -> list[pl.DataFrame]:
    """Return predictions of a run's models on any rows of its items, kept in the folder `cache`."""
    section = run.recipe.evaluate.model_copy(update={"generate_rows": 0})
    return ask_models(run.data, section, [run.entry(n) for n in names], examples, cache, seed=run.recipe.seed)

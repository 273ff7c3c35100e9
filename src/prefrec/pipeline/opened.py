"""A run's folder as studies and explanations read it: its recipe, data, models, logs and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl
from rich.markup import escape

from prefrec.console import warn
from prefrec.data import PreparedData, RankingExample, prepared_digest
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import read_predictions
from prefrec.pipeline.entry import Entry, lm_entry, lm_ranker
from prefrec.pipeline.provenance import changed_since
from prefrec.pipeline.recipe import SFT, ZERO_SHOT, Recipe, load_recipe
from prefrec.pipeline.score import ask_models
from prefrec.pipeline.train import WEIGHTS
from prefrec.rankers import LMRanker
from prefrec.runs.contents import Stage, read_run
from prefrec.runs.stage import taken


@dataclass(frozen=True)
class Run:
    """A run that has got at least as far as its prepared data.

    Attributes:
        folder: of the run.
        recipe: as the folder holds it.
        data: the prepared data.
        stages: training stages by name, with their state and log.
        outdated: what has changed since the rankers were evaluated, "" where nothing has.
    """

    folder: Path
    recipe: Recipe
    data: PreparedData
    stages: dict[str, Stage]
    outdated: str = ""

    @property
    def models(self) -> list[str]:
        """Names of the language models that can be asked, in the order of the table."""
        return [n for n in self.recipe.lm_rankers if n == ZERO_SHOT or self.adapter(n).is_dir()]

    @property
    def start(self) -> str:
        """The model that alignments start from, which is their reference."""
        return start_of(self.recipe)

    def adapter(self, name: str) -> Path:
        """The folder in which the adapter of a stage lies."""
        stage = self.folder / name if name == SFT else self.folder / "align" / name
        return stage / WEIGHTS

    def changed(self, name: str) -> list[str] | None:
        """Fields of the recipe that a language model was trained with other values of; None where it is not known."""
        if name == ZERO_SHOT:
            return []
        state = self.stages[name].state if name in self.stages else {}
        return changed_since(name, state, self.recipe, prepared_digest(self.folder / "data"), self.data.domain)

    def entry(self, name: str) -> Entry:
        """A language model of this run as a line of a table.

        Raises:
            DataError: there is no such model, or it is not trained yet.
            ConfigError: it was trained with another recipe than the one that lies there.
        """
        if name not in (ZERO_SHOT, *self.models):
            raise DataError(f"{self.folder}: no trained model {name!r}; there are {', '.join(self.models) or 'none'}")
        changed = self.changed(name)
        if changed:
            raise ConfigError(
                f"{self.folder}: {name} was made with another recipe ({', '.join(changed)}) than the one that lies "
                "there: run the recipe again (`prefrec run`), or put the recipe back"
            )
        if changed is None and self.outdated:
            warn(f"whether {escape(name)} was made with the recipe that lies there is not known: {self.outdated}")
        return lm_entry(name, None if name == ZERO_SHOT else self.adapter(name), self.data, self.recipe.model)

    def ranker(self, name: str) -> LMRanker:
        """A language model of this run, loaded; errors as for `entry`."""
        return lm_ranker(name, self.entry(name).weights, self.data, self.recipe.model)

    def ask(self, names: Sequence[str], examples: Sequence[RankingExample], cache: Path) -> list[pl.DataFrame]:
        """Predictions of these models on any rows of the run's items, kept in the folder `cache`."""
        entries, section = [self.entry(n) for n in names], self.recipe.evaluate
        section = section.model_copy(update={"generate_rows": 0})
        return ask_models(self.data, section, entries, examples, cache, seed=self.recipe.seed)

    def predictions(self) -> pl.DataFrame:
        """What every ranker of the run said.

        Raises:
            DataError: the run has not been evaluated, or not since it changed.
        """
        if self.outdated:
            raise DataError(f"{self.folder}/predictions.parquet is of an earlier run: {self.outdated}")
        return read_predictions(self.folder / "predictions.parquet")

    def seconds(self, name: str) -> float | None:
        """Seconds that a training stage takes by itself; None where it is not finished."""
        return self.took(name, "seconds")

    def took(self, name: str, what: Literal["seconds", "cpu_seconds", "peak_bytes"]) -> float | None:
        """Return the time or memory that a training stage took (`prefrec.runs.stage`); None if it was not recorded.

        Times are those of the stage alone: a pass over the reference that an earlier stage left to it counts too.
        """
        state = self.stages[name].state if name in self.stages else {}
        if not state.get("finished") or what not in state:
            return None
        return taken(state, what)


def start_of(recipe: Recipe) -> str:
    """The model that a recipe's alignments start from."""
    return SFT if recipe.sft else ZERO_SHOT


def open_run(folder: Path) -> Run:
    """The run in `folder`.

    Raises:
        DataError: no such folder, no run in it, or one without its prepared data.
        ConfigError: its recipe cannot be read.
    """
    contents = read_run(folder)
    if contents.data is None:
        reason = next((m for m in contents.missing if m.startswith("data")), "data is missing")
        raise DataError(f"{folder}: {reason}; `prefrec run` with the same recipe goes on from here")
    recipe = load_recipe(folder / "recipe.yaml")
    return Run(folder, recipe, contents.data, {s.name: s for s in contents.stages}, contents.outdated)

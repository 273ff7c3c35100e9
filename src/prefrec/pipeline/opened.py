"""A run's folder for studies, serving and explanations: its recipe, data, models, logs and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import polars as pl
from rich.markup import escape

from prefrec.console import warn
from prefrec.data import PreparedData, prepared_digest
from prefrec.errors import ConfigError, DataError
from prefrec.evaluation import read_predictions
from prefrec.pipeline.entry import OPEN_ONLY, WEIGHTS, Entry, Ingredients, lm_entry, lm_ranker, part_entry
from prefrec.pipeline.kinds import SEQUENTIAL, ranker_kind
from prefrec.pipeline.provenance import changed_since
from prefrec.pipeline.recipe import RANKERS, SFT, ZERO_SHOT, Recipe, load_recipe
from prefrec.pipeline.run import train_stages
from prefrec.rankers import LMRanker
from prefrec.runs.contents import Stage, read_run
from prefrec.runs.stage import damaged, read_state


@dataclass(frozen=True)
class Run:
    """A run with prepared data, finished or not; `outdated` names what changed since the evaluation, if anything."""

    folder: Path
    recipe: Recipe
    data: PreparedData
    stages: dict[str, Stage]
    outdated: str = ""

    @property
    def models(self) -> list[str]:
        """Names of the language models that can be asked, in the order of the table."""
        return [n for n in self.recipe.lm_rankers if n == ZERO_SHOT or self.adapter(n).is_dir()]

    def adapter(self, name: str) -> Path:
        """Return the folder of a stage's weights."""
        return (self.folder / name if name == SFT else self.folder / "align" / name) / WEIGHTS

    @cached_property
    def _made_of(self) -> Ingredients:
        recipe, key = self.recipe, prepared_digest(self.folder / "data")
        return Ingredients(self.data, key, recipe.model, recipe.lora, recipe.seed)

    @cached_property
    def planned(self) -> dict[str, Entry]:
        """Language models that `prefrec run` would have with this recipe and data, by name."""
        recipe, judges = self.recipe, []
        for config in recipe.sequential:
            state = read_state(self.folder / SEQUENTIAL / config.model)
            key = state.get("key") if state.get("config") == config.model_dump(mode="json") else None
            judges.append(Entry(config.model, str(key), load=cast(Any, None)))  # a plan loads nothing
        return {
            e.name: e for e in train_stages(recipe, self._made_of, self.folder, (SFT, "align"), judges, plan=True)
        }

    def changed(self, name: str) -> list[str] | None:
        """Return the inputs that a language model was trained with other values of; None: not recorded."""
        if name not in self.planned:
            return []
        return changed_since(self.stages[name].state if name in self.stages else {}, self.planned[name])

    def entry(self, name: str) -> Entry:
        """Return a language model of this run as a row of the table.

        Raise DataError if it is missing or damaged, ConfigError if it was trained with another recipe.
        """
        if name not in (ZERO_SHOT, *self.models):
            raise DataError(f"{self.folder}: no trained model {name!r}; there are {', '.join(self.models) or 'none'}")
        changed = self.changed(name)
        if changed:
            raise ConfigError(
                f"{self.folder}: {name} was made with another recipe ({', '.join(changed)}) than the one in this "
                "folder: run the recipe again (`prefrec run`), or put the recipe back"
            )
        if changed is None and self.outdated:
            warn(f"{escape(name)} may have been made with another recipe than the one in its run: {self.outdated}")
        if broken := damaged(self.adapter(name).parent):
            raise DataError(
                f"{self.folder}: {name} is damaged ({', '.join(broken)}): run the recipe again (`prefrec run`)"
            )
        return self.planned.get(name) or lm_entry(name, None, self.data, self.recipe.model)

    def any_entry(self, name: str, shared: Mapping[str, Entry] = {}) -> Entry:
        """Return a ranker of any kind of this run, made of `shared` ones where it can be; errors as of `entry`."""
        made: dict[str, Any] = {config.model: config for config in self.recipe.sequential}
        made |= dict.fromkeys(self.models) | {config.name: config for config in self.recipe.rankers}
        if (config := made.get(name)) is None:
            is_reference = name in self.recipe.evaluate.references
            return part_entry(self._made_of, name, "", {}, "") if is_reference else self.entry(name)
        section = RANKERS if config in self.recipe.rankers else SEQUENTIAL
        # Rankers that were made before, of those whose names are in the configuration.
        text, earlier = config.model_dump_json(), [*made][: [*made].index(name)]
        needed = [other for other in earlier if f'"{other}"' in text and other not in shared]
        before = {**shared, **{other: self.any_entry(other, shared) for other in needed}}
        kind = ranker_kind(config.kind if section == RANKERS else SEQUENTIAL)
        context = copy_context()
        context.run(OPEN_ONLY.set, True)
        return context.run(kind.stage, self._made_of, config, self.folder / section / name, before)

    def ranker(self, name: str) -> LMRanker:
        """Load a language model of this run; errors are those of `entry`."""
        return lm_ranker(name, self.entry(name).weights, self.data, self.recipe.model)

    def predictions(self) -> pl.DataFrame:
        """Return the predictions of all rankers; raise DataError if the run changed since, or was not evaluated."""
        if self.outdated:
            raise DataError(f"{self.folder}/predictions.parquet is of an earlier run: {self.outdated}")
        return read_predictions(self.folder / "predictions.parquet")


def open_run(folder: Path) -> Run:
    """Return the run in `folder`; raise DataError if it has no prepared data, ConfigError if its recipe is bad."""
    contents = read_run(folder)
    if contents.data is None:
        reason = next((m for m in contents.missing if m.startswith("data")), "data is missing")
        raise DataError(f"{folder}: {reason}; `prefrec run` with the same recipe goes on from here")
    recipe = load_recipe(folder / "recipe.yaml")
    return Run(folder, recipe, contents.data, {s.name: s for s in contents.stages}, contents.outdated)

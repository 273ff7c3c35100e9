"""Open a run's folder: its recipe, data, models, logs and predictions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from rich.markup import escape

from prefrec.console import warn
from prefrec.data import PreparedData
from prefrec.errors import DataError, PrefrecError
from prefrec.evaluation.targets import NEW_TO_USER
from prefrec.pipeline.plan import Plan, planned
from prefrec.recipe import Recipe, load_recipe, reached
from prefrec.runs.contents import RunContents, StageLog, read_run
from prefrec.runs.remote import local_run
from prefrec.runs.results import PREDICTIONS, Results
from prefrec.runs.stage import read_state
from prefrec.sections import ALIGN, SFT, ZERO_SHOT
from prefrec.stages.base import WEIGHTS, RankerStage
from prefrec.stages.language_model import lm_ranker

if TYPE_CHECKING:
    from prefrec.rankers import LMRanker


@dataclass(frozen=True)
class Run:
    """A run with prepared data, finished or not.

    Attributes:
        stages: name → stage, of those that have begun.
        outdated: what changed since the evaluation; "" if nothing did.
        results: what the evaluation has measured.
        made_by: the plan that made it, whose rankers may be in memory. Default: the run was opened later.
    """

    folder: Path
    recipe: Recipe
    data: PreparedData
    stages: dict[str, StageLog]
    outdated: str
    results: Results
    made_by: Plan | None = None

    @classmethod
    def of(cls, contents: RunContents, recipe: Recipe, data: PreparedData, made_by: Plan | None = None) -> Run:
        """Return the run with these contents of its folder."""
        stages = {stage.name: stage for stage in contents.stages}
        return cls(contents.folder, recipe, data, stages, contents.outdated, contents.results, made_by)

    @property
    def models(self) -> list[str]:
        """Names of the language models that can be loaded, in the order of the table."""
        return [n for n in self.recipe.lm_rankers if n == ZERO_SHOT or self.adapter(n).is_dir()]

    def adapter(self, name: str) -> Path:
        """Return the folder of a stage's weights, which answer test examples and clients."""
        plan = self.plan
        is_first = plan.served is not None and name not in plan.served
        folder = plan.logs[0 if is_first else -1].folder
        return (folder / name if name == SFT else folder / ALIGN / name) / WEIGHTS

    @cached_property
    def plan(self) -> Plan:
        """The plan of this recipe on these data."""
        made_by = self.made_by
        # A copy with other data, as of a study, is another run, whose rankers are not those in memory.
        if made_by and made_by.inputs.data is self.data and made_by.recipe is self.recipe:
            return made_by
        return planned(self.recipe, self.data, self.folder)

    @property
    def for_new(self) -> str | None:
        """Name of the ranker to use in place of the default where the items that a user has are excluded.

        That is the best on validation examples whose target is new to the user (`Best.by_repeat`). None: the default
        answers these questions, too.
        """
        best = self.results.best
        of_new = best.by_repeat.get(NEW_TO_USER) if best else None
        return of_new.ranker if best and of_new and of_new.ranker != best.ranker else None

    def default(self, among: Collection[str] | None = None) -> str:
        """Return the ranker to use if the user names none: the best on validation examples, out of `among` if given.

        If the best one is not known, print a warning and return the last language model, else the last ranker.
        """
        best = self.results.best
        if best and (name := best.among(best.values if among is None else among)):
            return name
        known = self.plan.names or self.recipe.evaluate.baselines if among is None else [*among]
        last = next((n for n in reversed(known) if n in self.models), (known or [""])[-1])
        unranked = best.unranked.get(last) if best else None
        why = self.outdated or unranked or "no validation examples compared the rankers; run `prefrec run`"
        warn(escape(f"{self.folder}: using {last}, because the best ranker is not known: {why}"))
        return last

    def changed(self, name: str) -> list[str] | None:
        """Return the names of inputs that changed since a ranker was made; None: they were not recorded."""
        if name not in self.plan.names:
            return []
        changed: list[str] = []
        for stage in self.plan.stages([name]):
            fields = self.plan.changed(stage)
            if fields is None:
                return None
            changed += fields
        return changed

    def stage(self, name: str) -> RankerStage:
        """Return the finished stage of a ranker of this run, or of a baseline; errors are those of `Plan.open`."""
        stage = self.plan.open(name)
        if self.outdated and self.changed(name) is None:
            warn(f"{escape(name)} may have been made with another recipe than the run has now: {self.outdated}")
        return stage

    def states(self, name: str) -> list[dict[str, Any]]:
        """Return the content of `stage.json` of the data, and of all stages that a ranker depends on."""
        names = reached(self.recipe.needs, name) if name in self.plan.names else []
        folders = [stage.folder for stage in self.plan.stages(names) if stage.makes_files]
        return [read_state(folder) for folder in (self.folder / "data", *folders)]

    def check_unchanged(self, stage: RankerStage, states: list[dict[str, Any]]) -> None:
        """Raise DataError if the data or the ranker in the folder are not those that were opened as `stage`.

        Args:
            stage: that of the ranker.
            states: what `states` returned when it was opened.
        """
        reason = ""
        try:
            now = planned(self.recipe, self.data, self.folder).open(stage.name)
            is_same = (now.key, now.model, self.states(stage.name)) == (stage.key, stage.model, states)
        except (PrefrecError, OSError) as e:
            is_same, reason = False, f" ({e})"
        if not is_same:
            raise DataError(f"{self.folder} changed after {stage.name} was opened: open the run again{reason}")

    def ranker(self, name: str) -> LMRanker:
        """Load a language model of this run; errors are those of `stage`."""
        return lm_ranker(name, self.stage(name).weights, self.data, self.recipe.model)

    def predictions(self) -> pl.DataFrame:
        """Return the predictions of all rankers; raise DataError if there are none or they are out of date."""
        if self.results.predictions is None:
            why = "missing, damaged or of an evaluation that did not finish: evaluate again (`prefrec run`)"
            why = f"out of date: {self.outdated}" if self.outdated else why
            raise DataError(f"{self.folder}/{PREDICTIONS} is {why}")
        return self.results.predictions


def open_run(folder: Path) -> Run:
    """Return the run in `folder`, or the copy of one at an address such as `s3://bucket/runs/shop` (`local_run`).

    Raise DataError if it has no prepared data or cannot be read, ConfigError if its recipe is wrong.
    """
    folder = local_run(folder)
    contents = read_run(folder)
    if contents.data is None:
        reason = next((m for m in contents.missing if m.startswith("data")), "data is missing")
        raise DataError(f"{folder}: {reason}; run `prefrec run` with the same recipe to resume")
    return Run.of(contents, load_recipe(folder / "recipe.yaml"), contents.data)

"""The plan of a run: its stages in order, what each of them depends on, and whether its result is up to date."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from prefrec.data import PreparedData, prepared_digest
from prefrec.errors import ConfigError, DataError, did_you_mean
from prefrec.pipeline.update import start_stage
from prefrec.rankers.baselines import BASELINES
from prefrec.recipe import Recipe, asked_by, reached
from prefrec.runs.served import REFIT, read_served
from prefrec.runs.stage import damaged, read_state
from prefrec.sections import ALIGN, RANKERS, SFT, ZERO_SHOT, AlignSection
from prefrec.stages import stage_class
from prefrec.stages.alignment import AlignStage
from prefrec.stages.base import RankerStage
from prefrec.stages.baseline import BaselineStage
from prefrec.stages.inputs import RunInputs
from prefrec.stages.language_model import LMStage
from prefrec.stages.sft import SFTRefitStage, SFTStage

REFERENCES = "reference"
"""Folder of the log-probabilities of references, which alignments share."""


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe on its prepared data. To create a plan loads and trains nothing.

    With `refit`, a second plan has the same stages on training and validation interactions, or those that serve.

    Attributes:
        folder: of the run, or of its refit.
        start: initial weights of the first stage. Default: those of the run to update, or the base model.
        loaded: name → stage that replaces that of the recipe, such as one whose ranker a server has loaded. More may
            be added before the stages that query them are planned.
        first: for the plan of a refit, the one of the training log.
        served: names of the rankers that are refit. The others answer as they were made first. Default: all are.
    """

    recipe: Recipe
    inputs: RunInputs
    folder: Path
    start: RankerStage | None = None
    loaded: Mapping[str, RankerStage] = field(default_factory=dict)
    first: Plan | None = None
    served: Collection[str] | None = None
    _planned: dict[str, RankerStage] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def names(self) -> list[str]:
        """Names of the rankers, in the order of the table."""
        return [*self.recipe.needs]

    @cached_property
    def logs(self) -> list[Plan]:
        """This plan; with `refit`, that of the training log, and that of training and validation interactions."""
        if self.recipe.refit is None or self.first or self.inputs.data.validation_interactions.is_empty():
            return [self]
        # Loaded rankers answer test examples or clients, and are therefore those of the refit.
        first = replace(self, loaded={})
        return [first, replace(self, inputs=self.inputs.refit(), folder=self.folder / REFIT, first=first)]

    @property
    def is_open(self) -> bool:
        """True if only what serves is refit, and no evaluation has chosen yet what that is."""
        return self.served is not None and read_served(self.folder) is None

    @property
    def at_most(self) -> Plan:
        """This plan; while it `is_open`, with all rankers refit, because each of them may come to serve."""
        return replace(self, served=None) if self.is_open else self

    def stages(self, names: Sequence[str]) -> list[RankerStage]:
        """Return the stages of these rankers in the order in which they run: those of the refit come last."""
        return list(dict.fromkeys(plan.on_log(name) for plan in self.logs for name in names))

    def until(self, until: str) -> list[str]:
        """Return the names of a ranker, or of all in a section, with their dependencies, which come first."""
        return reached(self.recipe.needs, *stage_names(self.recipe, until))

    def stage(self, name: str) -> RankerStage:
        """Return the stage of this name, or that of a baseline, whose ranker answers test examples and clients.

        With `refit`, it has learnt validation interactions, too, and its `first` answers validation examples; but
        with `served`, the others are those that were made first.
        """
        return self.logs[-1].on_log(name)

    def used(self, *names: str) -> list[str]:
        """Return the rankers with all that they need, needs first, without what they have left out (`left_out`).

        Names of baselines are ignored.
        """
        first = self.logs[0]
        needs = {
            name: [need for need in of if need in self.recipe.needs and need not in first.on_log(name).left_out]
            for name, of in self.recipe.needs.items()
        }
        return reached(needs, *(name for name in names if name in needs))

    def queried(self, ranker: str) -> list[str]:
        """Return the rankers that a ranker queries and the ranker itself, each after those that it queries.

        Without baselines, and without what it has left out.
        """
        if ranker not in self.names:
            return []
        stage = self.stage(ranker)
        queried: list[str] = []
        for need in self.recipe.needs[ranker] if stage.queries else ():
            if need not in stage.left_out:
                queried += self.queried(need)
        return list(dict.fromkeys([*queried, ranker]))

    def open(self, name: str) -> RankerStage:
        """Return a finished stage, or that of a baseline.

        Raise DataError if it is missing or damaged, ConfigError if it was made with another recipe.
        """
        if name in self.loaded or name in BASELINES:
            return self.stage(name)
        if name not in self.names:
            raise self._missing(name)
        opened = self.stage(name)
        for need in self.recipe.needs[name] if opened.queries else ():
            self.open(need)
        for stage in self.stages([name]):
            if stage.makes_files:
                self._check(stage)
        return opened

    def stale(self) -> dict[str, str]:
        """Return label → reason of the stages that have to run."""
        return {stage.label: why for stage in self.stages(self.names) if (why := self.why(stage))}

    def why(self, stage: RankerStage) -> str:
        """Return why a stage has to run; "" if its result is up to date, or it has nothing to do."""
        if not stage.makes_files:
            return ""
        due = [need.label for need in self.needed(stage) if self.why(need)]
        return stage.why(due or self._inputs_of(stage))

    def changed(self, stage: RankerStage) -> list[str] | None:
        """Return the names of inputs that changed since a stage was made; None: they were not recorded."""
        return stage.changed(self._inputs_of(stage))

    def needed(self, stage: RankerStage) -> list[RankerStage]:
        """Return the stages that a stage depends on."""
        plan = self.logs[-1] if stage.first else self.logs[0]
        needs = [plan.on_log(name) for name in self.recipe.needs[stage.name] if name in self.names]
        return [stage.first, *needs] if stage.first else needs

    def end_evaluation(self) -> None:
        """Forget the scores of its examples, and with `refit` the rankers that only answer validation examples."""
        for plan in self.logs:
            plan.inputs.forget(rankers=plan is not self.logs[-1])
            for stage in plan._planned.values():
                stage.forget()

    def _inputs_of(self, stage: RankerStage) -> list[str]:
        return ["data", "seed", *self.recipe.needs[stage.name]]

    def on_log(self, name: str) -> RankerStage:
        """Return the stage of this name, or that of a baseline, on the log of this plan."""
        if name in self.loaded:
            return self.loaded[name]
        if self.first and self.served is not None and name in self.recipe.needs and name not in self.served:
            return self.first.on_log(name)
        if name not in self._planned:
            first = self.first.on_log(name) if self.first else None
            stage = self._planned[name] = self._plan(name, first)
            # Its errors, such as a server that does not answer, must come before any training, and in all processes.
            _ = stage.key
        return self._planned[name]

    def _plan(self, name: str, first: RankerStage | None) -> RankerStage:
        recipe = self.recipe
        inputs = self.inputs
        folder = stage_folder(self.recipe, self.folder, name)
        if name == ZERO_SHOT:
            return LMStage(name, None, inputs.data, recipe.model, first=first)
        if name == SFT and recipe.sft:
            start = self.start or start_stage(recipe, inputs.data, (self.first or self).folder)
            if first and (refit := recipe.sft_refit):
                return SFTRefitStage(inputs, recipe.sft, refit, folder, first, start)
            return SFTStage(inputs, recipe.sft, folder, start)
        if section := recipe.alignment(name):
            rankers = {setting: self.on_log(ranker) for setting, ranker in section.rankers.items()}
            references = self.folder / REFERENCES
            return AlignStage(inputs, section, folder, self._start(section), rankers, references, first)
        if name not in self.names:
            return BaselineStage(inputs, name, first)
        config = next(ranker for ranker in recipe.rankers if ranker.name == name)
        before = {need: self.on_log(need) for need in asked_by(config)}
        return stage_class(config.kind)(inputs, config, folder, before, first)

    def _start(self, align: AlignSection) -> RankerStage | None:
        """Return the stage of the model that an alignment starts from; None: the base model."""
        before = self.recipe.start_of(align)
        return self.on_log(before) if before else self.start

    def _check(self, stage: RankerStage) -> None:
        """Raise DataError or ConfigError if the result of a stage is missing, damaged or out of date."""
        name = stage.label
        weights = stage.weights
        changed = self.changed(stage)
        state = read_state(stage.folder)
        again = "run the recipe again (`prefrec run`)"
        if not stage.folder.is_dir() or not (weights is None or weights.is_dir()):
            raise self._missing(name)
        if changed and "key" in state:
            raise ConfigError(
                f"{self.folder}: {name} was made with another recipe ({', '.join(changed)}) than the one in this "
                f"folder: {again}, or restore the old recipe"
            )
        if state.get("finished") is False:
            raise DataError(f"{self.folder}: {name} is unfinished: {again}")
        if broken := damaged(stage.folder):
            raise DataError(f"{self.folder}: {name} is damaged ({', '.join(broken)}): {again}")

    def _missing(self, name: str) -> DataError:
        stages = [self.logs[0].on_log(known) for known in self.names]
        there: list[str] = []
        for stage in stages:
            if not stage.makes_files or read_state(stage.folder):
                there.append(stage.name)
        known = f"there are {', '.join(there) or 'none'}; baselines: {', '.join(BASELINES)}"
        near = did_you_mean(name, [*there, *BASELINES])
        return DataError(f"{self.folder}: no trained model {name!r}; {known}{near}")


def planned(recipe: Recipe, data: PreparedData, folder: Path) -> Plan:
    """Return the plan of a run on its prepared data; `folder` is the run's."""
    key = prepared_digest(folder / "data")
    size = recipe.evaluate.batch_size
    inputs = RunInputs(data, key, recipe.model, recipe.lora, recipe.seed, size)
    # As long as nothing is chosen, nothing is refit.
    served = read_served(folder) or () if recipe.refit and recipe.refit.rankers == "served" else None
    return Plan(recipe, inputs, folder, served=served)


def stage_names(recipe: Recipe, until: str) -> list[str]:
    """Return the names of the rankers of a section such as `align`, or the one name `until`."""
    sections = {SFT: [SFT] if recipe.sft else [], ALIGN: recipe.lm_rankers, RANKERS: [*recipe.needs]}
    return sections.get(until, [until])


def stage_folder(recipe: Recipe, folder: Path, name: str) -> Path:
    """Return the folder of a stage inside the folder of its run."""
    section = ALIGN if name in recipe.lm_rankers else RANKERS
    return folder / SFT if name == SFT else folder / section / name

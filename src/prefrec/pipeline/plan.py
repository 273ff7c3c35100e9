"""The plan of a run: its stages, what each of them depends on, and whether its result is up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from prefrec.console import say
from prefrec.data.refit import continued
from prefrec.errors import ConfigError, DataError, did_you_mean
from prefrec.pipeline.entry import (
    MADE_WITH,
    WEIGHTS,
    Entry,
    RunInputs,
    baseline_entry,
    by_content,
    lm_entry,
    refitted,
    reward_entry,
)
from prefrec.pipeline.kinds import ranker_kind
from prefrec.pipeline.recipe import (
    BASELINES,
    RANKERS,
    REWARD,
    SFT,
    ZERO_SHOT,
    AlignSection,
    Recipe,
    RefitSection,
    SFTSection,
    asked_by,
    reached,
)
from prefrec.pipeline.update import start_entry
from prefrec.runs.contents import REFIT
from prefrec.runs.stage import damaged, is_aside, is_finished, read_state, stage

ALIGN, REFERENCES = "align", "reference"


@dataclass(frozen=True)
class Step:
    """A stage of a run, and the ranker that it makes.

    Attributes:
        entry: the ranker. Without `make` the stage has nothing to do.
        folder: where the result is written.
        kind: `sft`, `align`, or the kind of a ranker.
        section: settings of the stage.
        needs: names of the stages and baselines that it depends on.
        queries: whether its ranker queries these when it scores.
        is_refit: whether it lets a ranker also learn validation interactions.
    """

    entry: Entry
    folder: Path
    kind: str = ""
    section: BaseModel | None = None
    needs: Sequence[str] = ()
    queries: bool = False
    is_refit: bool = False

    @property
    def name(self) -> str:
        """Of the stage: that of its ranker, or `sft refit`."""
        return f"{self.entry.name} {REFIT}" if self.is_refit else self.entry.name

    def run(self) -> Entry:
        """Run the stage unless its result is up to date; return its ranker."""
        entry, made_with = self.entry, {MADE_WITH: self.entry.inputs} if self.entry.inputs else {}
        if entry.make:
            make_once(self.folder, entry.key, self.name, entry.make, self.kind, self.settings, **made_with)
        return entry

    @property
    def settings(self) -> dict[str, Any]:
        """Settings as JSON."""
        return self.section.model_dump(mode="json") if self.section else {}

    def changed(self, due: Sequence[str] = ()) -> list[str] | None:
        """Return the dotted names of inputs that changed since it was made; None: they were not recorded.

        If only the settings were recorded and these are the same, it is one of the stages in `needs` that are `due`,
        or any other input.
        """
        state = read_state(self.folder)
        if self.entry.make is None or state.get("key") == self.entry.key:
            return []
        if self.entry.inputs:
            return _changed_inputs(state.get(MADE_WITH), self.entry.inputs)
        own = differences(state.get("config"), self.settings, self.entry.name)
        return own or list(due) or ["data", "seed", *self.needs]


@dataclass(frozen=True)
class Plan:
    """The stages of a recipe on its prepared data. To create a plan loads and trains nothing.

    With `refit`, a second plan has the same stages on training and validation interactions.

    Attributes:
        folder: of the run, or of its refit.
        start: initial weights of the first stage. Default: those of the run to update, or the base model.
        known: rankers that replace those of the same names, such as loaded ones.
        first: for the plan of a refit, the one of the training log.
    """

    recipe: Recipe
    inputs: RunInputs
    folder: Path
    start: Entry | None = None
    known: Mapping[str, Entry] = field(default_factory=dict)
    first: Plan | None = None
    _steps: dict[str, Step] = field(default_factory=dict)

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
        first = replace(self, known={}, _steps={}) if self.known else self
        return [first, Plan(self.recipe, self.inputs.refit(), self.folder / REFIT, self.start, self.known, first)]

    def with_known(self, rankers: Mapping[str, Entry]) -> Plan:
        """Return a copy in which these rankers replace those of the same names."""
        return Plan(self.recipe, self.inputs, self.folder, self.start, rankers, self.first)

    def run(self, until: str = RANKERS) -> list[Entry]:
        """Run a stage, or those of the section `until`, with all dependencies; return their rankers."""
        wanted = reached(self.recipe.needs, *stage_names(self.recipe, until))
        for step in self.steps(wanted):
            step.run()
        return [self.entry(name) for name in self.names if name in wanted]

    def open(self, name: str) -> Entry:
        """Return a finished ranker, or a baseline.

        Raise DataError if it is missing or damaged, ConfigError if it was made with another recipe.
        """
        if name in self.known or name in BASELINES:
            return self.entry(name)
        if name not in self.names:
            raise self._missing(name)
        step = self.logs[-1].step(name)
        for need in step.needs if step.queries else ():
            self.open(need)
        for made in self.steps([name]):
            if made.entry.make:
                self._check(made)
        return self.entry(name)

    def stale(self) -> dict[str, str]:
        """Return name → reason of the stages that have to run."""
        return {step.name: why for step in self.steps(self.names) if (why := self.explain(step))}

    def explain(self, step: Step) -> str:
        """Return why a stage has to run; "" if its result is up to date, or it has nothing to do."""
        if not step.entry.make:
            return ""
        due = [need.name for need in self.needed(step) if self.explain(need)]
        return why_due(step.folder, step.entry.key, step.changed(due))

    def needed(self, step: Step) -> list[Step]:
        """Return the stages that a stage depends on."""
        first, last = self.logs[0], self.logs[-1]
        before = [first.step(step.entry.name)] if step.is_refit else []
        return before + [(last if step.is_refit else first).step(name) for name in step.needs if name in self.names]

    def steps(self, names: Sequence[str]) -> list[Step]:
        """Return the stages of these rankers: on the training log, and then those of the refit."""
        return [plan.step(name) for plan in self.logs for name in names]

    def step(self, name: str) -> Step:
        """Return the stage of this name, on the log of this plan."""
        if name not in self._steps:
            self._steps[name] = self._plan(name)
        return self._steps[name]

    def entry(self, name: str) -> Entry:
        """Return the ranker of this name, made or not: a known one, a stage's, or a baseline.

        With `refit`, it has learnt validation interactions, too, and another one answers validation examples.
        """
        first, last = self.logs[0], self.logs[-1]
        return self._own(name) if first is last else refitted(last._own(name), first._own(name))

    def _own(self, name: str) -> Entry:
        """Return the ranker of this name that has learnt the log of this plan."""
        if name in self.known:
            return self.known[name]
        if align := self.recipe.alignment(name.removesuffix(REWARD)) if name.endswith(REWARD) else None:
            reference = self._start(align) or lm_entry(ZERO_SHOT, None, self.inputs.data, self.recipe.model)
            return reward_entry(name, self._own(align.name), reference, align.beta)
        return self.step(name).entry if name in self.names else baseline_entry(self.inputs, name)

    def _start(self, align: AlignSection) -> Entry | None:
        """Return the ranker that an alignment starts from, and its reference; None: the base model."""
        before = self.recipe.start_of(align)
        return self._own(before) if before else self.start

    def _plan(self, name: str) -> Step:
        recipe, inputs, needs, first = self.recipe, self.inputs, self.recipe.needs[name], self.first
        folder = stage_folder(recipe, self.folder, name)
        if name == ZERO_SHOT:
            return Step(lm_entry(name, None, inputs.data, recipe.model), folder)
        if name == SFT and recipe.sft:
            start = self.start or start_entry(recipe, inputs.data, (first or self).folder)
            if first and (refit := recipe.sft_refit):
                return sft_refit_step(inputs, recipe.sft, refit, folder, first._own(SFT), start)
            return sft_step(inputs, recipe.sft, folder, start)
        if section := recipe.alignment(name):
            miner = self._own(section.miner) if section.miner else None
            references, done = self.folder / REFERENCES, first._own(name) if first else None
            step = align_step(inputs, section, folder, self._start(section), miner, references, done)
            return replace(step, needs=needs, is_refit=first is not None)
        config = next(r for r in recipe.rankers if r.name == name)
        kind, needed = ranker_kind(config.kind), {need: self._own(need) for need in asked_by(config)}
        if first and kind.refit:
            entry = kind.refit(inputs, config, folder, needed, first._own(name))
        else:
            entry = kind.entry(inputs, config, folder, needed)
        return Step(entry, folder, config.kind, config, needs, kind.queries, first is not None)

    def _check(self, step: Step) -> None:
        """Raise DataError or ConfigError if the result of a stage is missing, damaged or out of date."""
        name, weights, changed = step.name, step.entry.weights, step.changed()
        state, again = read_state(step.folder), "run the recipe again (`prefrec run`)"
        if not step.folder.is_dir() or not (weights is None or weights.is_dir()):
            raise self._missing(name)
        if changed and "key" in state:
            raise ConfigError(
                f"{self.folder}: {name} was made with another recipe ({', '.join(changed)}) than the one in this "
                f"folder: {again}, or restore the old recipe"
            )
        if state.get("finished") is False:
            raise DataError(f"{self.folder}: {name} is unfinished: {again}")
        if broken := damaged(step.folder):
            raise DataError(f"{self.folder}: {name} is damaged ({', '.join(broken)}): {again}")

    def _missing(self, name: str) -> DataError:
        there = [n for n in self.names if not self.step(n).entry.make or read_state(self.step(n).folder)]
        known = f"there are {', '.join(there) or 'none'}; baselines: {', '.join(BASELINES)}"
        near = did_you_mean(name, [*there, *BASELINES])
        return DataError(f"{self.folder}: no trained model {name!r}; {known}{near}")


def stage_names(recipe: Recipe, until: str) -> list[str]:
    """Return the names of the rankers of a section such as `align`, or the one name `until`."""
    sections = {SFT: [SFT] if recipe.sft else [], ALIGN: recipe.lm_rankers, RANKERS: [*recipe.needs]}
    return sections.get(until, [until])


def stage_folder(recipe: Recipe, folder: Path, name: str) -> Path:
    """Return the folder of a stage inside the folder of its run."""
    section = ALIGN if name in recipe.lm_rankers else RANKERS
    return folder / SFT if name == SFT else folder / section / name


def sft_step(inputs: RunInputs, section: SFTSection, out: Path, start: Entry | None = None) -> Step:
    """Return the SFT stage, which starts from the weights of `start` or from the base and writes to `out`."""

    def train() -> Path:
        from prefrec.pipeline.train import train_sft  # here, because PEFT takes seconds to import

        return train_sft(inputs, section, out, start.weights if start else None)

    entry = _trained(inputs, SFT, out, start, {SFT: section.decisive()})
    return Step(replace(entry, make=train), out, SFT, section)


def sft_refit_step(
    inputs: RunInputs, section: SFTSection, refit: RefitSection, out: Path, first: Entry, start: Entry | None
) -> Step:
    """Return the stage in which SFT also learns validation interactions.

    It trains again, for the epochs that validation chose; with `refit.epochs`, the best weights go on for as many. No
    validation example is left to choose an epoch, so that the last one is kept.

    Args:
        inputs: of the refit.
        section: settings of SFT.
        refit: how to refit.
        out: folder of the stage.
        first: what SFT has made of the training log.
        start: ranker that SFT started from. Default: the base model.
    """
    fixed = section.model_copy(update={"eval_rows": 0})
    if refit.epochs is not None:
        fixed = fixed.model_copy(update={"epochs": refit.epochs, "skip_rows": 0})

    def train() -> Path:
        from prefrec.pipeline.train import chosen_epochs, train_sft  # here, because PEFT takes seconds to import

        if refit.epochs is not None:
            return train_sft(continued_inputs(inputs, refit), fixed, out, first.weights)
        epochs = chosen_epochs(first.weights) or section.epochs
        return train_sft(inputs, fixed.model_copy(update={"epochs": epochs}), out, start.weights if start else None)

    entry = _trained(inputs, SFT, out, first, {REFIT: refit.model_dump()})
    return Step(replace(entry, make=train), out, SFT, fixed, is_refit=True)


def continued_inputs(inputs: RunInputs, refit: RefitSection) -> RunInputs:
    """Return the inputs of a refit in which only new interactions, and a replay of old ones, are left to learn."""
    assert inputs.earlier is not None
    return replace(inputs, data=continued(inputs.earlier, inputs.data, refit.replay, inputs.seed))


def align_step(
    inputs: RunInputs,
    section: AlignSection,
    out: Path,
    start: Entry | None = None,
    miner: Entry | None = None,
    references: Path | None = None,
    before: Entry | None = None,
) -> Step:
    """Return the stage of an alignment.

    Args:
        inputs: shared inputs of the run.
        section: settings of the alignment.
        out: folder of the stage.
        start: ranker to start from. Default: the base model.
        miner: ranker that mines the negatives, if the section names one.
        references: folder for the reference's log-probabilities, which alignments can share. Default: `out`.
        before: for a refit, what the alignment has made of the training log. If validation chose its epoch, train
            as many.
    """
    weights = start.weights if start else None

    def train() -> Path:
        from prefrec.pipeline.train import chosen_epochs, train_align  # here, because PEFT takes seconds to import

        fixed = section
        if before:
            epochs = chosen_epochs(before.weights) or section.epochs
            fixed = section.model_copy(update={"epochs": epochs, "eval_rows": 0, "load_best_model_at_end": False})
        return train_align(inputs, fixed, weights, out, miner=miner, references=references)

    own = {f"{ALIGN}.{section.name}": section.decisive()} | ({f"{RANKERS}.{miner.name}": miner.key} if miner else {})
    own |= {REFIT: before.key} if before else {}
    entry = _trained(inputs, section.name, out, start, own)
    return Step(replace(entry, make=train), out, ALIGN, section)


def _trained(inputs: RunInputs, name: str, out: Path, start: Entry | None, own: dict[str, Any]) -> Entry:
    # With the start's settings recorded, a message can name those that changed.
    earlier = {"start": start.key, **start.settings} if start else {}
    return lm_entry(name, out / WEIGHTS, inputs.data, inputs.model, inputs.stage_inputs(**earlier | own))


def make_once(
    folder: Path, key: str, name: str, make: Callable[[], object], kind: str, settings: dict[str, Any], **more: Any
) -> None:
    """Print a stage's name and run it, unless `folder` holds the finished result with this key."""
    if is_finished(folder, key):
        say(f"[dim]{name}: unchanged[/dim]")
        return
    say(f"[bold]{name}[/bold]")
    with stage(folder, key, kind, settings, **more):
        make()


def why_due(folder: Path, key: str, changed: Sequence[str] | None) -> str:
    """Return why a stage has to run; "" if its result is up to date, in `folder` or set aside.

    Args:
        folder: of the stage.
        key: of the result that is wanted.
        changed: names of the inputs that differ if the folder has another key; None: they were not recorded.
    """
    state, broken = read_state(folder), damaged(folder)
    if is_aside(folder, key):
        return ""
    if not state:
        return "not made yet"
    if state.get("key") != key:
        return f"changed: {', '.join(changed)}" if changed else "made from other inputs, which were not recorded"
    if state.get("finished") is False:
        return "unfinished"
    return f"damaged: {', '.join(broken)}" if broken else ""


def _changed_inputs(recorded: Any, inputs: Mapping[str, Any]) -> list[str] | None:
    """Return the dotted names of inputs whose values differ from the recorded ones; None if none were recorded.

    A base model that is not found does not count as changed: it may have been moved.
    """
    if not isinstance(recorded, dict) or "digests" not in recorded:
        return None
    now = json.loads(json.dumps(inputs, default=str))
    if now["digests"]["name"] == now["model"]["name"]:
        now["digests"]["name"] = recorded["digests"]["name"]
    changed = differences(by_content(recorded), by_content(now))
    return [name for name in changed if name != "start"] or changed


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return the dotted names of fields that differ between two JSON values."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [name]
    fields = {**now, **before}
    inner = [differences(before.get(f), now.get(f), f"{name}.{f}".lstrip(".")) for f in fields]
    return [changed for names in inner for changed in names]

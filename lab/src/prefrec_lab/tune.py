"""Search fields of a recipe on validation examples."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from prefrec.console import say
from prefrec.errors import ConfigError, ModelError
from prefrec.evaluation import Interval
from prefrec.files import write_text
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe, dump_recipe, set_field
from prefrec.report.tables import Cell, Grid
from prefrec.report.wording import interval_ends, number
from prefrec.runs.lock import run_lock
from prefrec.runs.stage import stage_key

JOURNAL, BEST = "trials.log", "best.yaml"
"""Files of a search: all trials so far, and the recipe with the best values."""


@dataclass(frozen=True)
class SearchedField:
    """A dotted field of a recipe with the values to try: `choices`, or all numbers from `low` to `high`."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False

    @classmethod
    def parse(cls, text: str) -> SearchedField:
        """Return the field of `NAME=LOW..HIGH[:log]` or `NAME=A,B,C`; raise ConfigError if the text is neither."""
        name, _, values = text.partition("=")
        span, _, scale = values.partition(":")
        low, dots, high = span.partition("..")
        expected = f"--field {text!r}: expected NAME=LOW..HIGH, NAME=LOW..HIGH:log or NAME=A,B,C"
        if name and not dots and all(choices := [v.strip() for v in values.split(",")]):
            return cls(name, tuple(choices))
        try:
            ends = [int(v) for v in (low, high)] if (low + high).isdigit() else [float(v) for v in (low, high)]
        except ValueError:
            raise ConfigError(expected) from None
        if not name or scale not in ("", "log") or not ends[0] < ends[1] or (scale and ends[0] <= 0):
            raise ConfigError(f"{expected}, LOW below HIGH, and above 0 with log")
        return cls(name, (), ends[0], ends[1], bool(scale))

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, or the lowest and the highest value."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the value that the sampler chooses for a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if isinstance(self.low, int):
            return trial.suggest_int(self.name, self.low, int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


class _NoLock(JournalFileOpenLock):
    """No lock of its own: `run_lock` ends with its process, and optuna's would be waited for after a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        """Do nothing."""


class Search:
    """A search in a folder, which resumes an earlier one.

    Each trial is a run that is evaluated on validation examples. Only the best trial's folder is kept.

    Args:
        recipe: the recipe whose fields are searched.
        ranker: row of the table that is judged; None: the last language model.
        metric: of lists, `hr@K`, `ndcg@K` or `mrr`.
    """

    def __init__(
        self, recipe: Recipe, fields: Sequence[SearchedField], folder: Path, ranker: str | None, metric: str
    ) -> None:
        self.recipe, self.fields, self.folder, self.metric = recipe, fields, folder, metric
        self.ranker = ranker or (recipe.lm_rankers or [""])[-1]
        names = [f.name for f in fields]
        if not names or len(set(names)) < len(names):
            raise ConfigError(f"--field: name at least one field, and each once; got {', '.join(names) or 'none'}")
        for field in fields:
            for value in field.ends:
                self.recipe_with({field.name: value})

    def recipe_with(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe with these values of fields; raise ConfigError if it does not take them."""
        raw = self.recipe.model_dump(mode="json")
        for name, value in values.items():
            set_field(raw, f"{name}={value}")
        return checked_recipe(raw)

    def trial_recipe(self, values: dict[str, Any]) -> Recipe:
        """Return the recipe of a trial, which is evaluated on validation examples and the metric of the search."""
        raw = self.recipe_with(values).model_dump(mode="json")
        k = self.metric.partition("@")[2]
        raw["evaluate"] |= {"split": "validation", "full_rows": 0, "generate_rows": 0, "baselines": []}
        raw["evaluate"] |= {"ks": [int(k)]} if k.isdigit() else {}
        raw["evaluate"]["zero_shot"] &= not (self.recipe.sft or self.recipe.align)
        raw["refit"] = None  # which answers test examples only
        return checked_recipe(raw)

    def run(self, trials: int) -> optuna.Study:
        """Return the study after `trials` finished trials, including those of earlier calls.

        A trial whose loss is not finite has failed, and counts. Raise ConfigError if another process searches here,
        the folder holds a search over other fields, or no trial was finished.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with run_lock(self.folder):
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = self._study()
            about = {"key": stage_key(recipe=self.recipe.model_dump(mode="json"), of=[self.ranker, self.metric])}
            about["fields"] = json.dumps([f.ends for f in self.fields] + [f.name for f in self.fields])
            if study.user_attrs and study.user_attrs != about:
                raise ConfigError(
                    f"{self.folder} holds a search of another recipe or other fields; name another --out"
                )
            for name, value in about.items():
                study.set_user_attr(name, value)
            for trial in study.get_trials(states=[TrialState.RUNNING]):
                # Its folder is named by its values, so that the same values resume from its checkpoints.
                study.tell(trial.number, state=TrialState.FAIL)
                study.enqueue_trial(trial.params)
            # With the same seed a search that goes on would repeat its first draws.
            study.sampler = optuna.samplers.TPESampler(seed=self.recipe.seed + len(study.trials))
            while len(self.ended(study)) < trials:
                study.optimize(self._trial, n_trials=1, catch=(ModelError,))
            if not study.get_trials(states=[TrialState.COMPLETE]):
                raise ConfigError("no trial was finished: the loss was never finite; search lower learning rates")
            write_text(self.folder / BEST, dump_recipe(self.recipe_with(study.best_params)))
            return study

    def _study(self) -> optuna.Study:
        """Return the study in the folder, a new one if there is none; raise ConfigError if it is damaged."""
        journal = self.folder / JOURNAL
        try:
            storage = JournalStorage(JournalFileBackend(str(journal), lock_obj=_NoLock(str(journal))))
            return optuna.create_study(storage=storage, study_name="tune", direction="maximize", load_if_exists=True)
        except (ValueError, LookupError, TypeError) as e:  # optuna takes the lines as they are
            raise ConfigError(f"{journal} is damaged ({e}): delete it, or name another --out") from e

    @staticmethod
    def ended(study: optuna.Study) -> list[FrozenTrial]:
        """Return the trials that were finished or failed by themselves, the best first."""
        done = study.get_trials(states=[TrialState.COMPLETE])
        failed = [t for t in study.get_trials(states=[TrialState.FAIL]) if "failed" in t.user_attrs]
        return [*sorted(done, key=lambda t: -cast(float, t.value)), *failed]

    def _trial(self, trial: optuna.Trial) -> float:
        values = {field.name: field.suggest(trial) for field in self.fields}
        for other in trial.study.get_trials(states=[TrialState.COMPLETE]):
            if other.params == trial.params:
                trial.set_user_attr("interval", other.user_attrs["interval"])
                return cast(float, other.value)
        say(f"[bold]trial {trial.number}[/bold]: {', '.join(f'{name} {value}' for name, value in values.items())}")
        runs, recipe = self.folder / "trials", self.trial_recipe(values)
        folder = runs / stage_key(values=values)[:12]
        if not (folder / "data").exists() and (kept := next(runs.glob("*/data"), None)):
            shutil.copytree(kept, folder / "data")  # equal data are not prepared again
        try:
            evaluation = run_recipe(recipe, folder, until="evaluate").results.evaluation
        except ModelError as e:
            trial.set_user_attr("failed", str(e))
            say(f"trial {trial.number} failed: {e}")
            shutil.rmtree(folder)
            raise
        assert evaluation is not None, "the recipe was evaluated"
        try:
            found = evaluation.metrics[self.ranker][self.metric]
        except KeyError:
            there = f"{', '.join(evaluation.rankers)}; {', '.join(evaluation.measured)}"
            raise ConfigError(f"--ranker {self.ranker}, --metric {self.metric}: there are {there}") from None
        trial.set_user_attr("interval", found.to_json())
        done = trial.study.get_trials(states=[TrialState.COMPLETE])
        best = max((cast(float, t.value) for t in done), default=-math.inf)
        for run in runs.iterdir():
            if (run == folder) != (found.mean > best):
                shutil.rmtree(run)
        return found.mean

    def table(self, study: optuna.Study) -> Grid:
        """Return a row per trial, the best first."""
        rows = []
        for place, trial in enumerate(self.ended(study)):
            values = [Cell(_shown(trial.params[f.name])) for f in self.fields]
            if interval := trial.user_attrs.get("interval"):
                found = Interval.from_json(interval)
                score = Cell(number(found.mean), (interval_ends(found),), "best" if place == 0 else "")
            else:
                score = Cell("failed", style="weak")
            rows.append((str(trial.number), [*values, score], ""))
        return Grid([*(f.name for f in self.fields), self.metric.upper()], rows)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

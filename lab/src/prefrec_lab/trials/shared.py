"""What the declared trials share: their kept answers, the rule that judges differences, and their runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.evaluation import read_predictions
from prefrec.evaluation.intervals import paired_difference
from prefrec.files import read_json
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.score import predict_full
from prefrec.recipe import load_recipe
from prefrec_lab.findings import Share, Tested, judge
from prefrec_lab.ranks import coded
from prefrec_lab.results import RESULTS, markdown, save
from prefrec_lab.trials.rank_tables import signed

ANSWERS = RESULTS / "answers"
"""Folder of the answers that are kept, a row per ranker and example: TRIAL-SPLIT-SEED.parquet."""
RULES = ("popularity", "window co-occurrence")
"""Rankers that read no titles, beside the models of a trial; the first one ignores the user."""


class Answers:
    """The kept answers of all rankers to the same examples, with each of K seeds.

    Attributes:
        names: of the rankers.
        users: [B] users of the examples.
        targets: [B] targets of the examples.
        seeds: number of seeds K.
    """

    def __init__(self, frames: Sequence[pl.DataFrame]) -> None:
        self._frames = frames
        first = frames[0]
        self.names = first["ranker"].unique(maintain_order=True).to_list()
        own = first.filter(ranker=self.names[0])
        self.users, self.targets = own["user_id"].to_list(), own["target"].to_list()
        self.seeds = len(frames)

    @classmethod
    def to(cls, trial: str, split: str, **only: str) -> Answers:
        """Read the kept answers of a trial to a split, with all seeds; `only` names the value of a column."""
        frames = []
        for path in sorted(ANSWERS.glob(f"{trial}-{split}-*.parquet")):
            frame = pl.read_parquet(path)
            frames.append(frame.filter(**only) if only else frame)
        return cls(frames)

    @staticmethod
    def exist(trial: str, split: str) -> bool:
        """Return True if answers of a trial to a split are kept."""
        return any(ANSWERS.glob(f"{trial}-{split}-*.parquet"))

    def column(self, name: str, column: str) -> NDArray[Any]:
        """Return a column [K, B] of a ranker."""
        return np.stack([frame.filter(ranker=name)[column].to_numpy() for frame in self._frames])

    def gap(self, first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
        """Return the mean difference of two values [K, B] with its interval."""
        return gap(first, second, self.users, self.targets)

    def tested(self, name: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> Tested:
        """Return a declared difference of two values [K, B]."""
        return Tested(name, first, second, self.users, self.targets)


def keep_answers(answers: pl.DataFrame, trial: str, split: str, seed: int) -> None:
    """Write the answers of a seed with numbers in place of users and items."""
    path = ANSWERS / f"{trial}-{split}-{seed}.parquet"
    coded(answers).write_parquet(path, compression="zstd", compression_level=19)


def gap(first: NDArray[np.float64], second: NDArray[np.float64], users: Sequence[str], items: Sequence[str]) -> str:
    """Return the mean difference of two scores [K, B], over seeds and examples, with its interval."""
    return signed(paired_difference(first.mean(axis=0), second.mean(axis=0), users, items))


def seeds_in_words(count: int) -> str:
    """Return `1 seed` or `3 seeds`."""
    return "1 seed" if count == 1 else f"{count} seeds"


def declared_table(tested: Sequence[Tested], trial: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Return the table of a family: each difference with its p-values and what the trial's rule finds.

    The trial gives `level` and `equivalence`. Holm's correction is over the family.
    """
    margin = trial["equivalence"]
    rows = []
    for one, found in zip(tested, judge(tested, level=trial["level"], margin=Share(margin)), strict=True):
        p_values = (found.p, found.adjusted, found.adjusted_equivalent)
        rows.append([one.name, signed(found.difference), *(f"{value:.4f}" for value in p_values), found.word])
    columns = ["difference", "NDCG@10", "p", "p after Holm", f"p of ±{margin:.0%} after Holm", "finding"]
    return {"title": title, "columns": columns, "rows": rows}


def make_run(
    recipe: Path, folder: Path, changed: Mapping[str, Any], seed: int, changes: Sequence[str], until: str = "align"
) -> Run:
    """Make the models of a seed with the sections `changed` of a recipe, and return their run.

    `until` is the last stage, as of `prefrec run`.
    """
    raw: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    for section, change in changed.items():
        raw[section] = {**raw.get(section, {}), **change} if isinstance(change, dict) else change
    run_changed(recipe, {**raw, "seed": seed}, folder, changes, until=until)
    return open_run(folder)


def tell(found: Mapping[str, Any], result: Path | None) -> None:
    """Print the tables of a trial, and put its computed fields into the file of its result, if one is named."""
    for table in found["tables"]:
        sys.stdout.write(f"{table['title']}:\n\n{markdown(table)}\n\n")
    if result is not None:
        save({**(read_json(result) or {}), **found}, result)


def evenly_spread(examples: Sequence[RankingExample], most: int) -> list[RankingExample]:
    """Return at most so many of the examples, from the first to the last at equal distances."""
    kept = np.unique(np.linspace(0, len(examples) - 1, min(most, len(examples))).astype(int))
    return [examples[n] for n in kept.tolist()]


def run_changed(
    recipe: Path, raw: Mapping[str, Any], out: Path, changes: Sequence[str], until: str = "report"
) -> None:
    """Run `raw` in place of a recipe, whose paths are relative to its folder; `changes` are those of `--set`."""
    path = recipe.with_name(f".trial-{out.name}.yaml")
    path.write_text(yaml.safe_dump(dict(raw), sort_keys=False, allow_unicode=True), encoding="utf-8")
    try:
        run_recipe(load_recipe(path, changes), out, until=until)
    finally:
        path.unlink(missing_ok=True)


def whole_catalogue(folder: Path) -> pl.DataFrame:
    """Return a run's predictions of full ranking; those of trained rankers are kept in its folder."""
    run = open_run(folder)
    section = run.recipe.evaluate
    if section.full_rows == 0:
        return read_predictions(folder / "predictions.parquet").clear()
    baselines = run.plan.inputs.baselines.before(section.split, section.baselines)
    stages = [run.stage(name) for name in run.plan.names]
    cache = folder / "predictions" / "full_catalogue"
    return predict_full(run.data, section, baselines, stages, cache, seed=run.recipe.seed)

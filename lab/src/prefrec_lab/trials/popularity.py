"""Trial E4 (lab/protocol/e4.yaml): make the runs of a seed, measure them, and write lab/results/68-popularity.json.

    python -m prefrec_lab.trials.popularity RUNS --seed 0 --path lastfm=DATA --split validation   # writes no result
    python -m prefrec_lab.trials.popularity RUNS --seed 0 --path lastfm=DATA --split test          # once, at the end
    python -m prefrec_lab.trials.popularity RUNS-CONTROL --seed 0 --path lastfm=DATA --control  # the positive control

RUNS gets a run per data set. A run that was stopped goes on. `--path` names the folder of a data set, once for each.
All rankers rank the whole catalogue. An aligned model has two rivals, which change log π of SFT continued. One
subtracts λ·log popularity, with the λ at which its first ten items are as popular as those of the model. The other is
maximal marginal relevance, with the strength at which its items are spread as unequally. Both are set on validation
examples. Answers are kept in lab/results/answers, and the tables are made from those of all seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray
from scipy import sparse

from prefrec.console import say
from prefrec.data import RankingExample
from prefrec.evaluation import metrics_for
from prefrec.evaluation.by_user import gini
from prefrec.evaluation.metrics import target_ranks
from prefrec.pipeline.opened import Run
from prefrec.rankers.base import checked_scores
from prefrec.stages.blend import sampled
from prefrec_lab.findings import Tested
from prefrec_lab.results import PROTOCOLS, RESULTS, ROOT
from prefrec_lab.trials.rank_tables import TITLES
from prefrec_lab.trials.shared import (
    RULES,
    Answers,
    declared_table,
    evenly_spread,
    keep_answers,
    make_run,
    seeds_in_words,
    tell,
)

TRIAL, RECIPES = PROTOCOLS / "e4.yaml", ROOT / "recipes"
RESULT = RESULTS / "68-popularity.json"
K, POOL, STEPS = 10, 100, 30
"""Length of a list; how many items MMR chooses from; steps of a bisection."""
LAMBDAS = (-4.0, 4.0)
GAIN, POPULARITY, GINI, COVERAGE, SETTING = "ndcg@10", "popularity", "gini", "coverage", "setting"
"""Columns of the kept answers. All but the first describe all lists of a ranker, and are the same in each row."""
CONTROL = "control"
"""Name of the positive control's answers, in place of a split."""
Floats = NDArray[np.float32]
Gains = NDArray[np.float64]
Codes = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Log:
    """Counts and users of items in the training log, by item code.

    Attributes:
        counts: [I] training interactions.
        users: [U, I] columns of length 1; 0 where a user has not interacted with an item.
    """

    counts: NDArray[np.float64]
    users: sparse.csc_array

    @classmethod
    def of(cls, run: Run) -> Log:
        """Count the training interactions of a run."""
        code = {item: n for n, item in enumerate(run.data.catalogue.ids)}
        pairs = run.data.train_interactions["user_id", "item_id"]
        rows = pairs["user_id"].rank("dense").to_numpy().astype(np.int64) - 1
        columns = np.array([code[item] for item in pairs["item_id"]])
        shape = rows.max() + 1, len(code)
        common = sparse.csc_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        common.data[:] = 1
        lengths = np.sqrt(np.asarray(common.sum(axis=0)).ravel())
        weights = sparse.diags_array(1 / np.maximum(lengths, 1))
        return cls(np.bincount(columns, minlength=len(code)).astype(np.float64), sparse.csc_array(common @ weights))

    def describe(self, lists: Codes) -> dict[str, float]:
        """Return mean popularity, Gini index and coverage of the items in lists [B, K] of codes."""
        times = np.bincount(lists.ravel(), minlength=len(self.counts)).astype(np.float64)
        shown = self.counts[lists].mean()
        return {POPULARITY: float(shown), GINI: gini(times), COVERAGE: float((times > 0).mean())}


@dataclass(frozen=True, eq=False)
class Asked:
    """Examples of one split, with every model's scores of the items that the user has not seen.

    Attributes:
        log: of the training interactions.
        examples: [B] examples; the target is the first candidate.
        codes: [B, C] codes of the candidates; 0 where there is none.
        scores: model → [B, C]; −inf where there is no candidate.
    """

    log: Log
    examples: list[RankingExample]
    codes: Codes
    scores: dict[str, Floats]

    @cached_property
    def log_counts(self) -> Floats:
        """The log of 1 + training interactions of the candidates [B, C]."""
        return np.log1p(self.log.counts)[self.codes].astype(np.float32)

    def lists(self, scores: Floats, k: int = K) -> NDArray[np.int64]:
        """Return the places [B, k] of the candidates with the highest scores, best first."""
        best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
        return np.take_along_axis(best, order, axis=1)

    def describe(self, lists: NDArray[np.int64]) -> dict[str, float]:
        """Return mean popularity, Gini index and coverage of lists [B, K] of places."""
        return self.log.describe(np.take_along_axis(self.codes, lists, axis=1))

    def gains(self, scores: Floats) -> Gains:
        """Return NDCG@10 [B] of the targets; ties share the mean of their ranks' gains."""
        return metrics_for([K])[f"ndcg@{K}"](*target_ranks(scores, np.zeros(len(scores), dtype=int)))

    def answers(self, columns: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
        """Return a row per ranker and example; `columns` are those of each ranker, arrays [B] or single values."""
        ids = {"user_id": [e.user_id for e in self.examples], "target": [e.target for e in self.examples]}
        return pl.concat(pl.DataFrame({"ranker": name, **ids, **own}) for name, own in columns.items())

    def without_popularity(self, model: str, weight: float) -> Floats:
        """Return the scores [B, C] of a model minus `weight` times the log of popularity."""
        return self.scores[model] - np.float32(weight) * self.log_counts

    def mmr(self, model: str) -> Mmr:
        """Return what is needed to choose lists from the best items of a model by maximal marginal relevance."""
        pool = self.lists(self.scores[model], min(POOL, self.codes.shape[1]))
        relevance = np.take_along_axis(self.scores[model], pool, axis=1).astype(np.float64)
        # −inf, where a row has no further candidates, stays and is never chosen.
        lowest = np.where(np.isfinite(relevance), relevance, np.inf).min(axis=1, keepdims=True)
        relevance = (relevance - lowest) / np.maximum(relevance[:, :1] - lowest, 1e-12)
        alike = np.empty((*pool.shape, pool.shape[1]), dtype=np.float32)
        for n, codes in enumerate(np.take_along_axis(self.codes, pool, axis=1)):
            columns = self.log.users[:, codes]
            alike[n] = (columns.T @ columns).toarray()
        return Mmr(pool, relevance, alike)


@dataclass(frozen=True, eq=False)
class Mmr:
    """Maximal marginal relevance (Carbonell and Goldstein 1998) among the best items of a model.

    Attributes:
        pool: [B, P] places of the items, best first.
        relevance: [B, P] scores, from 1 to 0 in each row; −inf where there is no candidate.
        alike: [B, P, P] cosine similarity of the items by common users.
    """

    pool: NDArray[np.int64]
    relevance: NDArray[np.float64]
    alike: Floats

    def lists(self, strength: float) -> NDArray[np.int64]:
        """Return places [B, K]. Each next item has the highest (1 − s)·relevance − s·similarity to those before."""
        rows = np.arange(len(self.pool))
        nearest, free = np.zeros_like(self.relevance), np.ones(self.relevance.shape, dtype=bool)
        chosen = np.empty((len(self.pool), K), dtype=np.int64)
        for place in range(K):
            value = np.where(free, (1 - strength) * self.relevance - strength * nearest, -np.inf)
            chosen[:, place] = best = value.argmax(axis=1)
            free[rows, best] = False
            nearest = np.maximum(nearest, self.alike[rows, best])
        return np.take_along_axis(self.pool, chosen, axis=1)


def gains_of(lists: NDArray[np.int64]) -> Gains:
    """Return NDCG@10 [B] of lists [B, K] of places; the target is at place 0."""
    found = lists == 0
    return np.where(found.any(axis=1), 1 / np.log2(found.argmax(axis=1) + 2), 0.0)


def matched(goal: float, measure: Callable[[float], float], low: float, high: float) -> float:
    """Return the setting at which a decreasing measure equals `goal`, or the end that comes nearest."""
    for _ in range(STEPS):
        middle = (low + high) / 2
        if measure(middle) > goal:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def asked(run: Run, models: Sequence[str], split: str, most: int) -> Asked:
    """Return the scores of the models on at most so many examples of a split."""
    chosen = evenly_spread(run.data.split(split), most)
    rows = sampled(run.data, chosen, len(run.data.catalogue), np.random.default_rng(0))
    code = {item: n for n, item in enumerate(run.data.catalogue.ids)}
    codes = np.zeros((len(rows), max(len(e.candidates) for e in rows)), dtype=np.int64)
    for n, example in enumerate(rows):
        codes[n, : len(example.candidates)] = [code[item] for item in example.candidates]
    scores = {}
    for name in models:
        say(f"{run.folder.name}: {name} ranks {len(rows):,} {split} examples")
        found = checked_scores(run.stage(name).on(split).load(run.recipe.evaluate.batch_size), rows)
        padded = np.full(codes.shape, -np.inf, dtype=np.float32)
        padded[:, : found.shape[1]] = found
        scores[name] = padded
    return Asked(Log.of(run), rows, codes, scores)


@dataclass
class Measured:
    """Measurements of one ranker on a split: NDCG@10 [B], and popularity, Gini index and coverage of its lists."""

    gains: Gains
    of_lists: dict[str, float]
    setting: float | None = None


def rivals(control: str, arm: str, learn: Asked, one: Asked) -> dict[str, Measured]:
    """Return the two rivals of an arm on `one`, with λ and strength set on validation examples (`learn`)."""
    goal = learn.describe(learn.lists(learn.scores[arm]))

    def popularity(weight: float) -> float:
        return learn.describe(learn.lists(learn.without_popularity(control, weight)))[POPULARITY]

    diverse = learn.mmr(control)
    weight = matched(goal[POPULARITY], popularity, *LAMBDAS)
    strength = matched(goal[GINI], lambda s: learn.describe(diverse.lists(s))[GINI], 0.0, 1.0)
    scores, lists = one.without_popularity(control, weight), one.mmr(control).lists(strength)
    return {
        f"popularity as {arm}": Measured(one.gains(scores), one.describe(one.lists(scores)), weight),
        f"MMR as {arm}": Measured(gains_of(lists), one.describe(lists), strength),
    }


def answers_of(run: Run, trial: Mapping[str, Any], splits: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Return the answers to each split, of all models and of the rivals of all arms: a row per ranker and example."""
    models = [*RULES, "sft", *(arm["name"] for arm in trial["recipe"]["align"])]
    learn = asked(run, models, "validation", trial["examples"])
    found = {}
    for split in splits:
        one = learn if split == "validation" else asked(run, models, split, trial["examples"])
        rankers: dict[str, Measured] = {}
        for name, scores in one.scores.items():
            rankers[name] = Measured(one.gains(scores), one.describe(one.lists(scores)))
        for arms in trial["kinds"].values():
            for arm in arms:
                rankers |= rivals(trial["control"], arm, learn, one)
        columns = {}
        for name, own in rankers.items():
            setting = np.nan if own.setting is None else own.setting
            columns[name] = {GAIN: own.gains, **own.of_lists, SETTING: setting}
        found[split] = one.answers(columns)
    return found


def control_answers(run: Run, trial: Mapping[str, Any]) -> pl.DataFrame:
    """Return the answers of the positive control to validation examples: a row per model and example."""
    models = ["sft", *(arm["name"] for arm in trial["positive_control"]["align"])]
    one = asked(run, models, "validation", trial["examples"])
    return one.answers({name: {GAIN: one.gains(scores)} for name, scores in one.scores.items()})


def control_table(trial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table of the positive control."""
    rows = []
    for name in trial["sets"]:
        answers = Answers.to("e4", CONTROL, set=name)
        sft, more, aligned = (answers.column(ranker, GAIN) for ranker in ("sft", trial["control"], "uniform-1"))
        means = [f"{gains.mean():.4f}" for gains in (sft, more, aligned)]
        rows.append([TITLES[name], *means, answers.gap(aligned, sft), answers.gap(aligned, more)])
    columns = ["data", "sft", trial["control"], "uniform-1", "uniform-1 − sft", f"uniform-1 − {trial['control']}"]
    histories = trial["positive_control"]["sft"]["rows"]
    title = f"The positive control: SFT on {histories} histories, NDCG@10 on validation examples"
    return {"title": title, "columns": columns, "rows": rows}


def tested_arms(answers: Answers, trial: Mapping[str, Any]) -> list[str]:
    """Return, of each kind of negatives, the arm with the best NDCG@10 on validation examples over all seeds."""
    arms = []
    for names in trial["kinds"].values():
        arms.append(max(names, key=lambda name: answers.column(name, GAIN).mean()))
    return arms


def figures(answers: Answers, ranker: str) -> list[str]:
    """Return popularity, Gini index and coverage of a ranker's lists, and its setting; means over the seeds."""
    popularity, unequal, covered, setting = (
        float(answers.column(ranker, column).mean()) for column in (POPULARITY, GINI, COVERAGE, SETTING)
    )
    shown = "–" if np.isnan(setting) else f"{setting:.2f}"
    return [f"{popularity:.1f}", f"{unequal:.3f}", f"{covered:.1%}", shown]


def measured(trial: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the computed fields of the result, over all data sets and seeds."""
    families: dict[str, list[Tested]] = {"popularity": [], "MMR": []}
    tables, sizes = [], []
    for name in trial["sets"]:
        answers = Answers.to("e4", split, set=name)
        arms = tested_arms(Answers.to("e4", "validation", set=name), trial)
        gains = {ranker: answers.column(ranker, GAIN) for ranker in answers.names}
        compared = []
        for arm in arms:
            for rival, tested in families.items():
                other = f"{rival} as {arm}"
                tested.append(answers.tested(f"{name}: {arm} − {other}", gains[arm], gains[other]))
                compared.append(other)
        rows = []
        for ranker, own in gains.items():
            if " as " not in ranker or ranker in compared:
                rows.append([ranker, f"{own.mean():.4f}", *figures(answers, ranker)])
        columns = ["ranker", "NDCG@10", "mean popularity", "Gini index", "coverage", "λ or strength"]
        tables.append({"title": TITLES[name], "columns": columns, "rows": rows})
        sizes.append(f"{name} {len(answers.users):,}")
    judged = []
    for family, label in (
        ("popularity", "the rule with the same mean popularity"),
        ("MMR", "MMR with the same Gini index"),
    ):
        judged.append(declared_table(families[family], trial, f"Against {label}, NDCG@10 in full ranking"))
    seeds = seeds_in_words(answers.seeds)
    comparisons = sum(len(tested) for tested in families.values())
    n = f"{split} examples: {', '.join(sizes)}; {seeds}; {comparisons} comparisons in two families"
    controls = [control_table(trial)] if Answers.exist("e4", CONTROL) else []
    return {"n": n, "tables": [*judged, *tables, *controls]}


def main() -> None:
    """Make the runs of a seed, then print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="folder with a run per data set")
    parser.add_argument("--path", dest="paths", action="append", default=[], help="NAME=FOLDER of a data set")
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--control", action="store_true", help="the positive control, on validation examples")
    parser.add_argument("--seed", type=int, default=0, help="seed of the runs")
    arguments = parser.parse_args()
    trial: dict[str, Any] = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    paths = dict(one.partition("=")[::2] for one in arguments.paths)
    # λ and arms are chosen on validation examples, so these are answered in any case.
    splits = [CONTROL] if arguments.control else list(dict.fromkeys(["validation", arguments.split]))
    kept: dict[str, list[pl.DataFrame]] = {split: [] for split in splits}
    changed = trial["recipe"] | (trial["positive_control"] if arguments.control else {})
    for name, recipe in trial["sets"].items():
        changes = [f"data.path={paths[name]}"] if name in paths else []
        run = make_run(RECIPES / f"{recipe}.yaml", arguments.runs / name, changed, arguments.seed, changes)
        found = {CONTROL: control_answers(run, trial)} if arguments.control else answers_of(run, trial, splits)
        for split, answers in found.items():
            kept[split].append(answers.with_columns(set=pl.lit(name)))
    for split, frames in kept.items():
        keep_answers(pl.concat(frames), "e4", split, arguments.seed)
    if arguments.control:
        tell({"tables": [control_table(trial)]}, None)
        return
    tell(measured(trial, arguments.split), RESULT if arguments.split == "test" else None)


if __name__ == "__main__":
    main()

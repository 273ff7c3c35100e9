"""Compare the weights of a blend with LightGBM's LambdaRank on the same features and validation examples.

`python scripts/lambdarank.py NAME=RUN ...` reads finished runs of `scripts/trial.py` and writes the table of
lab/results/63-lambdarank.json. Both rankers are learnt without a fold of the examples, and rank that fold. Folds are
of users or of targets. Trees can learn which items the targets are; only folds of targets keep them from using it.
It needs `pip install lightgbm`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import experiments_page
import lightgbm
import numpy as np
from numpy.typing import NDArray
from rank_tables import TITLES, signed

from prefrec.data import RankingExample
from prefrec.evaluation import metrics_for, paired_difference
from prefrec.evaluation.metrics import target_ranks
from prefrec.files import read_json
from prefrec.pipeline.opened import open_run
from prefrec.rankers.base import checked_scores
from prefrec.rankers.blend import FOLDS, folds_of, scaled, unit_of
from prefrec.rankers.logit import Features, fit_logit
from prefrec.stages.blend import MOST_CANDIDATES, BlendStage, sampled

BLEND = "sequential-tower-sft"
"""The blend of all parts in lab/protocol/e5.yaml."""
LEAVES = (7, 31)
NEGATIVES = 500
"""Sampled negatives per example that trees are learnt from. They rank all candidates."""
MOST_TREES, PATIENCE, INNER_FOLDS = 300, 30, 5
SETTINGS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.05,
    "min_data_in_leaf": 50,
    "lambdarank_truncation_level": 20,
    "num_threads": 1,
    "deterministic": True,
    "seed": 0,
    "verbosity": -1,
}
RESULT = experiments_page.RESULTS / "63-lambdarank.json"

Scores = NDArray[np.float64]
Codes = NDArray[np.int64]


def features_of(folder: Path) -> tuple[Features, list[str], list[RankingExample]]:
    """Return the features [B, C, F] of validation examples that a run's blend was learnt from, and their names."""
    run = open_run(folder)
    stage = run.plan.logs[0].on_log(BLEND)
    assert isinstance(stage, BlendStage)
    data, rng = run.data, np.random.default_rng([run.recipe.seed, 6])
    examples = sampled(data, data.examples("validation", stage.config.rows), MOST_CANDIDATES, rng)
    parts, _ = stage.parts.rankers("validation", run.recipe.evaluate.batch_size)
    columns = []
    for part in parts:
        scores = checked_scores(part, examples)
        columns.append(scaled(scores, unit_of(scores))[..., None])
    times = stage.parts.times("validation")
    features = np.concatenate([*columns, times(examples)], axis=2)
    return features, [*(part.name for part in parts), *times.names], examples


def with_logit(features: Features, targets: Codes, names: Sequence[str], folds: Codes) -> Scores:
    """Return the utilities [B, C] of a conditional logit, learnt from the other folds."""
    scores = np.full(features.shape[:2], -np.inf)
    for fold in range(FOLDS):
        own = folds == fold
        scores[own] = fit_logit(features[~own], targets[~own], names).utility(features[own])
    return scores


def with_trees(features: Features, targets: Codes, groups: Sequence[str], folds: Codes, leaves: int) -> Scores:
    """Return the scores [B, C] of LambdaRank, learnt from the other folds, which also choose the number of trees."""
    scores, rng = np.full(features.shape[:2], -np.inf), np.random.default_rng(0)
    inner = folds_of([f"{group}#" for group in groups], INNER_FOLDS)
    for fold in range(FOLDS):
        learn = _lists(features, targets, np.flatnonzero((folds != fold) & (inner > 0)), rng)
        stop = _lists(features, targets, np.flatnonzero((folds != fold) & (inner == 0)), rng)
        trees = lightgbm.train(
            SETTINGS | {"num_leaves": leaves},
            learn,
            MOST_TREES,
            valid_sets=[stop.set_reference(learn)],
            callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
        )
        for row in np.flatnonzero(folds == fold):
            listed = np.flatnonzero(np.isfinite(features[row]).any(axis=1))
            scores[row, listed] = trees.predict(features[row, listed])
    return scores


def _lists(features: Features, targets: Codes, rows: Iterable[int], rng: np.random.Generator) -> lightgbm.Dataset:
    """Return lists of the target and sampled negatives in random order: LightGBM breaks ties by the order."""
    values, labels, sizes = [], [], []
    for row in rows:
        others = np.flatnonzero(np.isfinite(features[row]).any(axis=1))
        others = others[others != targets[row]]
        others = rng.choice(others, min(NEGATIVES, len(others)), replace=False)
        listed = rng.permutation(np.append(others, targets[row]))
        values.append(features[row, listed])
        labels.append(listed == targets[row])
        sizes.append(len(listed))
    return lightgbm.Dataset(np.concatenate(values), np.concatenate(labels).astype(float), group=sizes)


def ndcg(scores: Scores, targets: Codes) -> Scores:
    """Return NDCG@10 [B] of the targets; ties share the mean of their ranks' gains."""
    return metrics_for([10])["ndcg@10"](*target_ranks(scores, targets))


def compared(name: str, folder: Path) -> list[list[str]]:
    """Return the rows of a data set: a kind of folds each."""
    features, names, examples = features_of(folder)
    targets = np.array([e.target_index for e in examples])
    users, items = [e.user_id for e in examples], [e.target for e in examples]
    rows = []
    for kind, groups in (("users", users), ("targets", items)):
        folds = folds_of(groups, FOLDS)
        logit = ndcg(with_logit(features, targets, names, folds), targets)
        row = [TITLES[name], f"{len(examples):,}", kind, f"{logit.mean():.4f}"]
        for leaves in LEAVES:
            trees = ndcg(with_trees(features, targets, groups, folds, leaves), targets)
            row.append(f"{trees.mean():.4f}, {signed(paired_difference(trees, logit, users, items))}")
        rows.append(row)
    return rows


def main(runs: Sequence[str]) -> None:
    """Compare on each run, and write the table."""
    rows = [row for run in runs for row in compared(run.split("=")[0], Path(run.split("=", 1)[1]))]
    trees = [f"LambdaRank, {leaves} leaves; minus the logit" for leaves in LEAVES]
    columns = ["data", "validation examples", "folds of", "conditional logit", *trees]
    table = {"title": "NDCG@10 of validation examples, cross-fitted", "columns": columns, "rows": rows}
    found: dict[str, Any] = read_json(RESULT) or {}
    experiments_page.save(found | {"tables": [table]}, RESULT)


if __name__ == "__main__":
    main(sys.argv[1:])

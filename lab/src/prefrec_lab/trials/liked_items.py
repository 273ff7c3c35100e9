"""Trial E3 (lab/protocol/e3.yaml): make the run of a seed, measure it, and write lab/results/67-liked-items.json.

    python -m prefrec_lab.trials.liked_items RECIPE RUN --seed 0 --split validation   # prints the table alone
    python -m prefrec_lab.trials.liked_items RECIPE RUN --seed 0 --split test         # once, when all is settled

RECIPE is recipes/movielens-100k-ratings.yaml; RUN is the folder of the run. One that was stopped goes on. Each score
ranks the whole catalogue for two kinds of examples: the user rated the next item 5, or 1 or 2. Mixtures are
conditional logits, learnt on validation examples. With `--split validation` the users are halved, and the mixture for
one half is learnt on the other. Gains on test examples are kept in lab/results/answers, and the tables are made from
those of all seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from prefrec.console import say
from prefrec.data import PreparedData, RankingExample
from prefrec.data.feedback import centred_mean_scores
from prefrec.evaluation import metrics_for
from prefrec.evaluation.metrics import target_ranks
from prefrec.pipeline.opened import Run
from prefrec.rankers.base import checked_scores
from prefrec.rankers.blend import folds_of
from prefrec.rankers.logit import Logit, fit_logit, utility_by_fold
from prefrec.rankers.matrices import pad_scores
from prefrec.stages.blend import sampled
from prefrec_lab.results import PROTOCOLS, RESULTS
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

TRIAL = PROTOCOLS / "e3.yaml"
RESULT = RESULTS / "67-liked-items.json"
GAIN = "ndcg@10"
MEAN, SFT, REWARD, HALVES = "mean", "sft", " reward", 2
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Asked:
    """Examples of one split and one kind of target, with the scores of all models over the unseen catalogue.

    Attributes:
        examples: [B] examples; the target is the first candidate.
        scores: name → [B, C]; −inf where there is no candidate.
    """

    examples: list[RankingExample]
    scores: dict[str, Scores]

    def gains(self, scores: Scores) -> Scores:
        """Return NDCG@10 [B] of the targets; ties share the mean of their ranks' gains."""
        return metrics_for([10])["ndcg@10"](*target_ranks(scores, np.zeros(len(scores), dtype=int)))


def rated(data: PreparedData, split: str, least: float, most: float, rows: int) -> list[RankingExample]:
    """Return at most `rows` examples, evenly spread, whose target the user rated from `least` to `most`."""
    held_out = data.held_out_interactions
    assert held_out is not None
    ratings = {(user, item): rating for user, item, rating in held_out["user_id", "item_id", "rating"].iter_rows()}
    return evenly_spread([e for e in data.split(split) if least <= ratings[e.user_id, e.target] <= most], rows)


def asked(run: Run, models: Sequence[str], split: str, examples: Sequence[RankingExample]) -> Asked:
    """Return the scores of the rules and of the models, rewards of the models, and the user-centred item mean."""
    rows = sampled(run.data, examples, len(run.data.catalogue), np.random.default_rng(0))
    scores = {}
    for name in (*RULES, *models):
        say(f"{run.folder.name}: {name} ranks {len(rows):,} {split} examples")
        scores[name] = checked_scores(run.stage(name).on(split).load(run.recipe.evaluate.batch_size), rows)
    for name in models[1:]:
        # −inf − −inf is not a number, but there is no candidate either.
        reward = np.subtract(scores[name], scores[SFT], where=np.isfinite(scores[SFT]), out=scores[SFT].copy())
        scores[name + REWARD] = reward
    scores[MEAN] = pad_scores(centred_mean_scores(run.data.train_interactions, rows))
    return Asked(rows, scores)


def features(one: Asked, parts: Sequence[str]) -> NDArray[np.float32]:
    """Return the scores of the parts as features [B, C, F]; NaN where there is no candidate."""
    stacked = np.stack([one.scores[part] for part in parts], axis=2).astype(np.float32)
    # The sum of two parts with weights of opposite signs would be ∞ − ∞ there.
    return np.where(np.isfinite(stacked), stacked, np.float32("nan"))


def learnt(one: Asked, parts: Sequence[str]) -> Logit:
    """Return the weights of a mixture, from examples with liked targets."""
    return fit_logit(features(one, parts), np.zeros(len(one.examples), dtype=int), parts)


def ranked(run: Run, trial: Mapping[str, Any], split: str) -> pl.DataFrame:
    """Return NDCG@10 of every score on the examples of each kind: a row per kind of target, ranker and example."""
    models = [SFT, *(arm["name"] for arm in trial["recipe"]["align"])]
    bounds = {"liked": (trial["liked"], np.inf), "disliked": (-np.inf, trial["disliked"])}
    learn = asked(run, models, "validation", rated(run.data, "validation", *bounds["liked"], trial["examples"]))
    frames = []
    for kind, (least, most) in bounds.items():
        one = learn
        if (kind, split) != ("liked", "validation"):
            one = asked(run, models, split, rated(run.data, split, least, most, trial["examples"]))
        scores = {name: one.scores[name] for name in (MEAN, *RULES, *models)}
        for name, parts in trial["mixtures"].items():
            scores[name] = mixed(learn, one, parts, is_crossed=split == "validation")
        ids = {"user_id": [e.user_id for e in one.examples], "target": [e.target for e in one.examples]}
        for name, own in scores.items():
            frames.append(pl.DataFrame({"kind": kind, "ranker": name, **ids, GAIN: one.gains(own)}))
    return pl.concat(frames)


def mixed(learn: Asked, one: Asked, parts: Sequence[str], *, is_crossed: bool) -> Scores:
    """Return the utilities [B, C] of a mixture; `is_crossed`: by the users of the other half."""
    if not is_crossed:
        return learnt(learn, parts).utility(features(one, parts))
    of_learn, of_one = (folds_of([e.user_id for e in each.examples], HALVES) for each in (learn, one))
    logits = []
    for half in range(HALVES):
        kept = np.flatnonzero(of_learn != half)
        some = Asked([learn.examples[n] for n in kept.tolist()], {p: learn.scores[p][kept] for p in parts})
        logits.append(learnt(some, parts))
    return utility_by_fold(logits, features(one, parts), of_one)


def measured(liked: Answers, disliked: Answers, trial: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Return the computed fields of the result, over all seeds."""
    gains = {name: liked.column(name, GAIN) for name in liked.names}
    rows = []
    for name, own in gains.items():
        row = [name, f"{own.mean():.4f}", f"{disliked.column(name, GAIN).mean():.4f}"]
        row.append("–" if name == SFT else liked.gap(own, gains[SFT]))
        rows.append(row)
    declared = [liked.tested(f"{a} − {b}", gains[a], gains[b]) for a, b in trial["differences"]]
    counts = f"{len(liked.users):,} with a liked and {len(disliked.users):,} with a disliked"
    return {
        "n": f"{split} examples: {counts} target; {seeds_in_words(liked.seeds)}; {len(declared)} comparisons",
        "tables": [
            {
                "title": "NDCG@10 in full ranking",
                "columns": ["score", "liked targets", "disliked targets", "liked targets: minus sft"],
                "rows": rows,
            },
            declared_table(declared, trial, "The declared differences, liked targets"),
        ],
    }


def main() -> None:
    """Make the run of a seed, then print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], help="field=value, as for `prefrec run`"
    )
    arguments = parser.parse_args()
    trial: dict[str, Any] = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    run = make_run(arguments.recipe, arguments.run, trial["recipe"], arguments.seed, arguments.changes)
    answers = ranked(run, trial, arguments.split)
    liked, disliked = (Answers([answers.filter(kind=kind)]) for kind in ("liked", "disliked"))
    if arguments.split == "test":
        keep_answers(answers, "e3", "test", arguments.seed)
        liked, disliked = (Answers.to("e3", "test", kind=kind) for kind in ("liked", "disliked"))
    tell(measured(liked, disliked, trial, arguments.split), RESULT if arguments.split == "test" else None)


if __name__ == "__main__":
    main()

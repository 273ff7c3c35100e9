"""Trial E1 at the paper's dose (lab/protocol/e1.yaml): train a seed, keep its answers, write 74-dose.json.

    python -m prefrec_lab.trials.dose RUN --model items --seed 1 --split validation    # trains, then answers
    python -m prefrec_lab.trials.dose RUN --model items --seed 1 --split test          # once
    python -m prefrec_lab.trials.dose --table                                          # the result, from all answers

A run that was stopped is resumed. The first seed trains all arms of the declaration, and its validation answers
choose the learning rates; other seeds train the chosen arms. Answers are kept in lab/results/answers.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from prefrec.console import say
from prefrec.data import Candidates, Queries, Query, seen_items
from prefrec.evaluation import metrics_for
from prefrec.evaluation.metrics import target_ranks
from prefrec.pipeline.opened import Run
from prefrec.rankers.base import checked_scores
from prefrec.sections import SFT
from prefrec_lab.results import PROTOCOLS, RESULTS, ROOT
from prefrec_lab.trials.rank_tables import divergences
from prefrec_lab.trials.shared import (
    ANSWERS,
    RULES,
    Answers,
    declared_table,
    evenly_spread,
    keep_answers,
    make_run,
    seeds_in_words,
    tell,
)

TRIAL, RECIPES = PROTOCOLS / "e1.yaml", ROOT / "recipes"
RESULT = RESULTS / "74-dose.json"
POPULAR = "sft + popularity"
"""The rule without a method: SFT with λ·log(1 + training interactions) added."""
LISTED, FULL, HIT, MOVED, FIRST, LAMBDA = "ndcg@10", "full ndcg@10", "hr@1", "kl", "first differs", "lambda"
"""Columns of the kept answers. The last three compare an arm with SFT, and describe the rule."""
Scores = NDArray[np.float64]


def arm_sections(trial: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the sections of arms, whose names are OBJECTIVE-RATE."""
    sections = []
    for name in names:
        objective = next(own for own in trial["objectives"] if name.startswith(f"{own}-"))
        loss, rate = trial["objectives"][objective], float(name.removeprefix(f"{objective}-"))
        sections.append({**trial["arm"], "name": name, "loss": loss, "learning_rate": rate})
    return sections


def answers_name(model: str) -> str:
    """Return how the files of a model's answers are named."""
    return f"dose-{model}"


def chosen_arms(trial: Mapping[str, Any], model: str) -> dict[str, str]:
    """Return objective → the arm with the highest NDCG@10 on validation examples with the first seed."""
    seed, arms = trial["models"][model]["seeds"][0], trial["models"][model]["arms"]
    answers = pl.read_parquet(ANSWERS / f"{answers_name(model)}-validation-{seed}.parquet")
    means = dict(answers.group_by("ranker").agg(pl.col(LISTED).mean()).iter_rows())
    best = {}
    for objective in trial["objectives"]:
        own = [arm for arm in arms if arm.startswith(f"{objective}-") and arm in means]
        if own:
            best[objective] = max(own, key=means.__getitem__)
    return best


class Asked:
    """Examples of a split, with what all rankers are asked about them.

    Args:
        run: with the models.
        split: of the examples.
        most: number of examples, spread over the split. Default: all.
    """

    def __init__(self, run: Run, split: str, most: int | None = None) -> None:
        rows = run.data.split(split)
        self.run, self.split = run, split
        self.examples = rows if most is None else evenly_spread(rows, most)
        ids, index = run.data.catalogue.ids, run.data.catalogue.index
        self._shared = Candidates(ids)
        self._codes = np.array([[index[item] for item in e.target_first] for e in self.examples])
        counts = dict(run.data.train_interactions.group_by("item_id").len().iter_rows())
        self.popularity = np.log1p([counts.get(item, 0) for item in ids])
        unseen = np.ones((len(self.examples), len(ids)), dtype=np.bool_)
        for own, seen in zip(unseen, seen_items(run.data, self.examples), strict=True):
            own[[index[item] for item in seen]] = False
        # The target of a repeat was seen, and must be found all the same.
        unseen[np.arange(len(unseen)), self._codes[:, 0]] = True
        self._unseen = unseen

    def whole(self, name: str) -> Scores:
        """Return the scores [B, I] of a ranker for all items of the catalogue."""
        queries = [Query(e.history, self._shared.ids, e.time, e.history_times, e.user_id) for e in self.examples]
        return checked_scores(self._ranker(name), Queries(queries, self._shared))

    def listed(self, name: str) -> Scores:
        """Return the scores [B, C] of a ranker for the candidates, the target first."""
        rows = [e.among(e.target_first) for e in self.examples]
        return checked_scores(self._ranker(name), rows)

    def _ranker(self, name: str) -> Any:
        say(f"{self.run.folder.name}: {name} ranks {len(self.examples):,} {self.split} examples")
        return self.run.stage(name).on(self.split).load(self.run.recipe.evaluate.batch_size)

    def among(self, scores: Scores) -> Scores:
        """Return those of the scores [B, I] that are of candidates [B, C]."""
        return np.take_along_axis(scores, self._codes, axis=1)

    def full(self, scores: Scores) -> Scores:
        """Return NDCG@10 [B] of the targets among all items that the user has not seen."""
        return gains(np.where(self._unseen, scores, -np.inf), self._codes[:, 0])

    def popular(self, scores: Scores, weight: float) -> Scores:
        """Return the scores [B, I] with a weight times the log of popularity."""
        return scores + weight * self.popularity


def gains(scores: Scores, places: NDArray[np.int64]) -> Scores:
    """Return NDCG@10 [B] of the targets at these places of scores [B, C]."""
    found: Scores = metrics_for([10])[LISTED](*target_ranks(scores.astype(np.float32), places))
    return found


def columns(listed: Scores, sft: Scores) -> dict[str, Scores]:
    """Return what is kept of a ranker's scores [B, C] of the candidates, the target first; `sft` are those of SFT."""
    first = np.zeros(len(listed), dtype=np.int64)
    hits: Scores = metrics_for([1])[HIT](*target_ranks(listed.astype(np.float32), first))
    differs = (listed.argmax(axis=1) != sft.argmax(axis=1)).astype(np.float64)
    return {LISTED: gains(listed, first), HIT: hits, MOVED: divergences(sft, listed), FIRST: differs}


def answered(asked: Asked, model: str, arms: Sequence[str], weight: float) -> pl.DataFrame:
    """Return the answers of rules, SFT and arms: a row per ranker and example.

    Args:
        asked: the examples.
        model: `items`, which ranks the whole catalogue, or `titles`, which ranks the candidates.
        arms: that are trained.
        weight: λ of `POPULAR`; unused by `titles`.
    """
    ids = {"user_id": [e.user_id for e in asked.examples], "target": [e.target for e in asked.examples]}
    frames: list[pl.DataFrame] = []
    unknown = np.full(len(asked.examples), np.nan)

    def keep(name: str, listed: Scores, full: Scores, setting: float = np.nan) -> None:
        own = {**columns(listed, sft), FULL: full}
        frames.append(pl.DataFrame({"ranker": name, **ids, **own, LAMBDA: setting}))

    sft_whole = asked.whole(SFT) if model == "items" else None
    sft = asked.listed(SFT) if sft_whole is None else asked.among(sft_whole)
    for name in (*RULES, SFT, *arms):
        if sft_whole is None:
            keep(name, sft if name == SFT else asked.listed(name), unknown)
        else:
            scores = sft_whole if name == SFT else asked.whole(name)
            keep(name, asked.among(scores), asked.full(scores))
    if sft_whole is not None:
        scores = asked.popular(sft_whole, weight)
        keep(POPULAR, asked.among(scores), asked.full(scores), weight)
    return pl.concat(frames)


def best_weight(asked: Asked, lambdas: Sequence[float]) -> float:
    """Return the λ of `POPULAR` with the highest NDCG@10 among the candidates."""
    scores = asked.whole(SFT)
    first = np.zeros(len(scores), dtype=np.int64)
    means = [gains(asked.among(asked.popular(scores, own)), first).mean() for own in lambdas]
    return float(lambdas[int(np.argmax(means))])


def measure(folder: Path, model: str, seed: int, split: str, left_out: Sequence[str]) -> None:
    """Train what is missing of a seed, and keep its answers to a split."""
    trial = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    of_model = trial["models"][model]
    arms = list(of_model["arms"] if seed == of_model["seeds"][0] else chosen_arms(trial, model).values())
    arms = [arm for arm in arms if arm not in left_out]
    sections = {**trial["sections"], **of_model["sections"], "align": arm_sections(trial, arms)}
    run = make_run(RECIPES / f"{trial['recipe']}.yaml", folder, sections, seed, [])
    weight = 0.0
    if model == "items":
        weight = best_weight(Asked(run, "validation"), trial["lambdas"])
    answers = answered(Asked(run, split, of_model["examples"][split]), model, arms, weight)
    keep_answers(answers, answers_name(model), split, seed)
    means = answers.group_by("ranker", maintain_order=True).agg(pl.col(LISTED, HIT, FULL, MOVED, FIRST).mean())
    for row in means.iter_rows():
        say(", ".join(own if isinstance(own, str) else f"{own:.4f}" for own in row))


def result() -> dict[str, Any]:
    """Return the computed fields of the result, from the kept answers."""
    trial = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    tables = []
    for model in trial["models"]:
        for split in ("test", "validation"):
            if Answers.exist(answers_name(model), split):
                tables.append(arms_table(model, split))
    for family, pairs in trial["families"].items():
        model = "titles" if family == "titles" else "items"
        if Answers.exist(answers_name(model), "test"):
            tables.append(family_table(trial, family, model, pairs))
    return {"tables": tables}


def arms_table(model: str, split: str) -> dict[str, Any]:
    """Return the means of all rankers of a model, over the seeds that have an arm."""
    answers = Answers.to(answers_name(model), split)
    frame = pl.concat(
        pl.read_parquet(path) for path in sorted(ANSWERS.glob(f"{answers_name(model)}-{split}-*.parquet"))
    )
    heads = {LISTED: "NDCG@10", HIT: "HR@1", FULL: "NDCG@10, full ranking", FIRST: "first item differs", MOVED: "KL"}
    if model == "titles":
        del heads[FULL]
    rows = []
    for (name,), own in frame.group_by("ranker", maintain_order=True):
        values = {column: float(np.mean(own[column].to_numpy())) for column in heads}
        compared = name not in (*RULES, SFT)
        cells = []
        for column, value in values.items():
            if column in (FIRST, MOVED) and not compared:
                cells.append("–")
            else:
                cells.append(f"{value:.1%}" if column == FIRST else f"{value:.4f}")
        rows.append([str(name), str(len(own) // len(answers.users)), *cells])
    title = f"{model}, {len(answers.users):,} {split} examples, {seeds_in_words(answers.seeds)}"
    return {"title": title, "columns": ["ranker", "seeds", *heads.values()], "rows": rows}


def family_table(trial: Mapping[str, Any], family: str, model: str, pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the table of a declared family."""
    answers, chosen = Answers.to(answers_name(model), "test"), chosen_arms(trial, model)
    column = FULL if family == "full" else LISTED
    tested = []
    for first, second in pairs:
        values = (answers.column(chosen.get(name, name), column) for name in (first, second))
        tested.append(answers.tested(f"{first} − {second}", *values))
    where = {"listed": "among 20 candidates", "full": "in full ranking", "titles": "titles, among 20 candidates"}
    return declared_table(tested, trial, f"The declared differences: {where[family]}")


def main() -> None:
    """Train and answer, or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, help="folder of the run")
    parser.add_argument("--model", choices=["items", "titles"], default="items")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--split", choices=["validation", "test"], default="validation")
    parser.add_argument("--left-out", nargs="*", default=[], metavar="ARM", help="arms that are not trained")
    parser.add_argument("--table", action="store_true", help="write the result from the kept answers")
    arguments = parser.parse_args()
    if arguments.table:
        tell(result(), RESULT)
    elif arguments.run is None:
        parser.error("name the folder of the run, or give --table")
    else:
        measure(arguments.run, arguments.model, arguments.seed, arguments.split, arguments.left_out)


if __name__ == "__main__":
    main()

"""Trial E1: keep the answers of a run of `prefrec lab study budget`, and write the tables of lab/results/40.

    python scripts/budget_answers.py [RUN] [--test EXAMPLES]

RUN is the folder of one budget, with its arms. Its answers go to lab/results/answers/e1-SPLIT-USERS.parquet, without
titles, or to e1-SPLIT-USERS-EXAMPLES.parquet if its arms do not have the study's dose. The tables are computed from
all such files. A control is beside the arms: SFT also answers validation
examples with the history of another user. What it gets then, it knows without the user.

--test: the SFT model and the arms that are best on the validation examples then answer so many test examples, in
RUN-test.

questions-QUESTIONS-LAYERS.parquet and listed-LAYERS.parquet are of the first plan, with a list of candidates in the
prompt. The code that made them is at the commits that experiment 40 names.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import experiments_page
import numpy as np
import polars as pl
from rank_tables import divergences, shown, signed
from trial import ANSWERS, tell

from prefrec.data import RankingExample
from prefrec.evaluation import metrics_for, predict
from prefrec.evaluation.intervals import Means, holm, mean_interval
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import checked_recipe
from prefrec.sections import ALIGN, SFT
from prefrec_lab.ranks import coded
from prefrec_lab.studies.budget import CONTROL, DOSE, EQUIVALENT, is_equivalent, name_of

RESULT = experiments_page.RESULTS / "40-paper-protocol.json"
SWAPPED = "sft, histories of other users"
GENERATED, VALID, LIKELY, NDCG, MOVED = "gen_hr@1", "valid_ratio", "hr@1", "ndcg@10", "kl"
RANKED = {LIKELY: "HR@1", NDCG: "NDCG@10", MOVED: "KL to SFT"}
ASKED = {GENERATED: "HR@1, generated", VALID: "valid ratio", LIKELY: "HR@1 by likelihood", NDCG: "NDCG@10"}
LEVEL = 0.05
OURS, MORE, SOFTMAX, DPO = "S-DPO", "SFT continued", "softmax", "DPO"
OBJECTIVES = {OURS: "s-dpo", SOFTMAX: "softmax", DPO: "dpo", MORE: CONTROL}
"""Name of an objective → how the names of its arms begin."""

KNOWN = {
    "SFT − popularity": "popularity",
    "SFT − window co-occurrence": "window co-occurrence",
    "SFT − histories of other users": SWAPPED,
}
"""Differences that tell whether the trial has left chance → what SFT is compared with."""


def swapped(rows: Sequence[RankingExample]) -> list[RankingExample]:
    """Return the examples with the history of the next user: of the first example after those of the own user."""
    found = []
    for at, own in enumerate(rows):
        later = (*rows[at + 1 :], *rows[:at])
        other = next(e for e in later if e.user_id != own.user_id)
        found.append(replace(own, history=other.history))
    return found


def answers_of(run: Run, split: str) -> Path:
    """Return the file of a run's answers."""
    assert run.recipe.sft is not None
    name, rows = name_of(run.recipe.sft.rows), run.recipe.align[0].rows
    return ANSWERS / f"e1-{split}-{name if rows == DOSE.rows else f'{name}-{rows}'}.parquet"


def budget_of(path: Path) -> str:
    """Return what a file of answers is about: `200 histories`, or `all histories, 1,000 examples an arm`."""
    _, _, users, *dose = path.stem.split("-")
    return f"{users} histories" + "".join(f", {int(rows):,} examples an arm" for rows in dose)


def keep(run: Run) -> Path:
    """Write the answers of a run, a row per ranker and example, and return their file."""
    section = run.recipe.evaluate
    answers, models = run.predictions(), list(run.recipe.lm_rankers)
    if section.split == "validation":
        rows = swapped(run.data.examples(section.split, section.rows))
        control = predict(run.stage(SFT).load(section.batch_size), rows, run.data.catalogue, generate=False)
        answers = pl.concat([answers, control.with_columns(ranker=pl.lit(SWAPPED))], how="diagonal_relaxed")
        models.append(SWAPPED)
    scored = metrics_for([1, 10])
    frames = []
    for (name,), own in coded(answers).group_by("ranker", maintain_order=True):
        values = {column: scored[column](*ranks_of(own)) for column in (LIKELY, NDCG)}
        values[MOVED] = divergence(answers, name) if name in models else np.full(len(own), np.nan)
        frames.append(own.select("ranker", "row", "user_id", "target").with_columns(**values))
    path = answers_of(run, section.split)
    pl.concat(frames).write_parquet(path, compression="zstd", compression_level=19)
    return path


def divergence(answers: pl.DataFrame, name: str) -> np.ndarray:
    """Return KL(SFT ‖ model) of each example over its candidates, in nats: how far an arm has moved.

    Args:
        answers: with the log-probabilities of the candidates as scores, as many for each example.
        name: of the model.
    """
    sft, model = (np.stack(answers.filter(ranker=n)["scores"].to_list()) for n in (SFT, name))
    return divergences(sft, model)


def listing(effects: pl.DataFrame) -> dict[str, Any]:
    """Return the table of `listed`."""
    rows = []
    for (name,), own in effects.group_by("model", maintain_order=True):
        rows.append([name, signed(mean_interval(own["added"].to_numpy(), own["user_id"].to_list()))])
    title = f"What listing a title adds to its log-probability, {effects['row'].n_unique()} validation examples"
    return {"title": title, "columns": ["model", "nats"], "rows": rows}


def best_arms(answers: pl.DataFrame) -> dict[str, str]:
    """Return the best arm of each objective by HR@1; a tie goes to NDCG@10."""
    means = answers.group_by("ranker", maintain_order=True).agg(pl.col(LIKELY, NDCG).mean())
    best = {}
    for objective, begin in OBJECTIVES.items():
        arms = means.filter(pl.col("ranker").str.starts_with(begin))
        if len(arms):
            best[objective] = arms.sort(LIKELY, NDCG, descending=True)["ranker"][0]
    return best


def answer_test(run: Run, examples: int) -> Run:
    """Answer test examples with the SFT model and the arms that are best on validation, in a copy of the run."""
    chosen = [*best_arms(pl.read_parquet(answers_of(run, "validation"))).values()]
    folder = run.folder.with_name(f"{run.folder.name}-test")
    for name in ("data", SFT, *(f"{ALIGN}/{arm}" for arm in chosen)):
        shutil.copytree(run.folder / name, folder / name, dirs_exist_ok=True)
    raw = run.recipe.model_dump(mode="json")
    raw["align"] = [arm for arm in raw["align"] if arm["name"] in chosen]
    raw["evaluate"] |= {"split": "test", "rows": examples}
    return run_recipe(checked_recipe(raw), folder, until="evaluate")


def answered(path: Path) -> pl.DataFrame:
    """Return a file of answers with its rankers in order, without the random one."""
    return pl.read_parquet(path).filter(pl.col("ranker") != "random")


def means_of(answers: pl.DataFrame) -> Means:
    """Return the means of (ranker, quantity)."""
    first = answers.filter(ranker=SFT)
    columns = {}
    for (name,), own in answers.group_by("ranker", maintain_order=True):
        assert own["row"].equals(first["row"])
        for quantity in {GENERATED, VALID, LIKELY, NDCG, MOVED} & {*own.columns}:
            if own[quantity].is_not_nan().all():
                columns[name, quantity] = own[quantity].to_numpy()
    return Means(columns, first["user_id"].to_list(), first["target"].to_list())


def ranked(means: Means, title: str, head: dict[str, str]) -> dict[str, Any]:
    """Return the table of all rankers.

    Args:
        means: those of (ranker, quantity).
        title: of the table.
        head: quantity → heading of its column.
    """
    rows = []
    for name in dict.fromkeys(ranker for ranker, _ in means.values):
        row = [name]
        for quantity in head:
            value = means.mean((name, quantity)) if (name, quantity) in means.values else None
            row.append("–" if value is None else f"{value.mean:.3f}" if quantity == MOVED else shown(value))
        rows.append(row)
    return {"title": title, "columns": ["model", *head.values()], "rows": rows}


def known(means: Means, title: str) -> dict[str, Any]:
    """Return the table of what SFT adds to rules."""
    rows = []
    for name, against in KNOWN.items():
        if (against, LIKELY) in means.values:
            gaps = (means.difference((SFT, quantity), (against, quantity)) for quantity in (LIKELY, NDCG))
            rows.append([name, *(signed(gap) for gap in gaps)])
    return {"title": title, "columns": ["difference", "HR@1", "NDCG@10"], "rows": rows}


def declared(families: Sequence[Sequence[tuple[Path, str]]], title: str) -> dict[str, Any]:
    """Return the table of declared differences, with Holm's correction over each family.

    Args:
        families: the differences of a family, each with the answers to be compared and the objective with which
            S-DPO is compared.
        title: of the table.
    """
    rows: list[list[Any]] = []
    for family in families:
        gaps = {}
        for path, other in family:
            _, _, budget = path.stem.split("-", 2)
            best = best_arms(answered(ANSWERS / f"e1-validation-{budget}.parquet"))
            means = means_of(answered(path))
            pair = best[OURS], best[other]
            one, two = (means.difference((pair[0], q), (pair[1], q)) for q in (LIKELY, NDCG))
            gaps[f"{budget_of(path)}: {OURS} − {other}"] = (*pair, one, two)
        corrected = holm([gap[2].p_value for gap in gaps.values()])
        for (name, (*pair, one, two)), p in zip(gaps.items(), corrected, strict=True):
            finding = "above" if one.low > 0 else "below"
            finding = f"{finding} 0" if p < LEVEL else "equivalent" if is_equivalent(one) else "open"
            rows.append([name, *pair, signed(one), f"{one.p_value:.3f}", f"{p:.3f}", finding, signed(two)])
    columns = ["difference", "first", "second", "HR@1", "p", "p after Holm", f"finding (±{EQUIVALENT:g})", "NDCG@10"]
    return {"title": title, "columns": columns, "rows": rows}


def tables_of(files: Sequence[Path], split: str) -> list[dict[str, Any]]:
    """Return the tables of each file of answers: of all rankers, and of what SFT adds to rules."""
    found = []
    for path in files:
        answers = answered(path)
        means = means_of(answers)
        title = f"SFT on {budget_of(path)}, {answers['row'].n_unique():,} {split} examples"
        found += [ranked(means, title, RANKED), known(means, f"{title}: against rules")]
    return found


def all_tables() -> list[dict[str, Any]]:
    """Return the tables of all files of answers: the study's dose, the first plan, and then the larger dose.

    The study's families are over its budgets; that of the larger dose is over the objectives.
    """
    found, larger = [], []
    for split in ("test", "validation"):
        title = f"The declared differences, {split} examples"
        files = sorted(ANSWERS.glob(f"e1-{split}-*.parquet"), reverse=True)
        of_study = [path for path in files if path.stem.count("-") == 2]
        if of_study:
            families = [[(path, other) for path in of_study] for other in (MORE, SOFTMAX)]
            found.append(declared(families, title))
        found += tables_of(of_study, split)
        for path in files:
            if path not in of_study:
                larger.append(declared([[(path, other) for other in (MORE, SOFTMAX, DPO)]], f"{title}, larger dose"))
                larger += tables_of([path], split)
    for path in sorted(ANSWERS.glob("questions-*.parquet")):
        answers = answered(path)
        _, rows, layers = path.stem.split("-")
        title = f"A list in the prompt: SFT of {int(rows):,} questions, {layers} layers"
        title = f"{title}, {answers['row'].n_unique():,} validation examples"
        means = means_of(answers)
        found += [ranked(means, title, ASKED), known(means, f"{title}: against rules")]
    found += [listing(pl.read_parquet(path)) for path in sorted(ANSWERS.glob("listed-*.parquet"))]
    return found + larger


def main() -> None:
    """Keep the answers of a run, if one is named, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--test", type=int, metavar="EXAMPLES")
    arguments = parser.parse_args()
    if arguments.run:
        run = open_run(arguments.run)
        keep(run)
        if arguments.test:
            keep(answer_test(run, arguments.test))
    tell({"tables": all_tables()}, RESULT)


if __name__ == "__main__":
    main()

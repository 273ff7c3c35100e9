"""Trial E1: keep the answers of a run of `prefrec lab study budget`, and write the tables of lab/results/40.

    python -m prefrec_lab.trials.budget_answers [RUN] [--test EXAMPLES]

RUN is the folder of one budget, with its arms. Its answers go to lab/results/answers, without titles, to
e1-DATA-SPLIT-USERS-EXAMPLES-SEED.parquet: USERS is the number of users on whose histories SFT was trained, EXAMPLES
that of the examples that each arm was trained on. The tables are computed from all such files. A control is beside
the arms: SFT also answers validation examples with the history of another user. What it gets then, it knows without
the user.

--test: the SFT model and the arms that are best on the validation examples then answer so many test examples, in
RUN-test. The first seed chooses these arms, so a run of another seed has no others, and answers test examples alone.

questions-QUESTIONS-LAYERS.parquet and listed-LAYERS.parquet are of the first plan, with a list of candidates in the
prompt. The code that made them is at the commits that experiment 40 names.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import RankingExample
from prefrec.evaluation import metrics_for, predict
from prefrec.evaluation.intervals import Means, mean_interval
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import checked_recipe
from prefrec.sections import ALIGN, SFT
from prefrec_lab.findings import Tested, judge
from prefrec_lab.ranks import coded
from prefrec_lab.results import RESULTS
from prefrec_lab.studies.budget import CONTROL, DOSE, MARGIN, name_of
from prefrec_lab.trials.rank_tables import divergences, shown, signed
from prefrec_lab.trials.shared import ANSWERS, seeds_in_words, tell

RESULT = RESULTS / "40-paper-protocol.json"
SWAPPED = "sft, histories of other users"
GENERATED, VALID, LIKELY, NDCG, MOVED = "gen_hr@1", "valid_ratio", "hr@1", "ndcg@10", "kl"
RANKED = {LIKELY: "HR@1", NDCG: "NDCG@10", MOVED: "KL to SFT"}
ASKED = {GENERATED: "HR@1, generated", VALID: "valid ratio", LIKELY: "HR@1 by likelihood", NDCG: "NDCG@10"}
LEVEL = 0.05
STUDY_DATA, OTHER_DATA = "movielens", {"lastfm": "LastFM"}
"""The data set of the study in names of files; other data sets, with their names in titles."""

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
        found.append(replace(own, history=other.history, history_times=other.history_times))
    return found


def answers_of(run: Run, split: str) -> Path:
    """Return the file of a run's answers."""
    assert run.recipe.sft is not None
    data, users, rows = run.recipe.data.source, name_of(run.recipe.sft.rows), run.recipe.align[0].rows
    return ANSWERS / f"e1-{data.split('-')[0]}-{split}-{users}-{rows}-{run.recipe.seed}.parquet"


@dataclass(frozen=True, order=True)
class Budget:
    """What the runs of all seeds have in common.

    Attributes:
        data: the data set, as in names of files.
        users: number of users whose histories SFT reads, in words.
        rows: number of examples that each arm reads.
    """

    data: str
    users: str
    rows: int

    def __str__(self) -> str:
        """`200 histories`, or `all histories, 1,000 examples an arm` if that is not the study's dose."""
        dose = "" if self.of_study else f", {self.rows:,} examples an arm"
        return f"{self.users} histories{dose}"

    @property
    def of_study(self) -> bool:
        """Whether the arms have the study's dose."""
        return self.rows == DOSE.rows

    def answers(self, split: str) -> list[pl.DataFrame]:
        """Read the answers to a split, a frame for each seed, without the random ranker."""
        paths = sorted(ANSWERS.glob(f"e1-{self.data}-{split}-{self.users}-{self.rows}-*.parquet"))
        return [pl.read_parquet(path).filter(pl.col("ranker") != "random") for path in paths]


def budgets_of(data: str, split: str) -> list[Budget]:
    """Return the budgets of a data set with answers to a split, that of all histories first."""
    found = set()
    for path in ANSWERS.glob(f"e1-{data}-{split}-*.parquet"):
        _, _, _, users, rows, _ = path.stem.split("-")
        found.add(Budget(data, users, int(rows)))
    return sorted(found, reverse=True)


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


def means_of(seeds: Sequence[pl.DataFrame]) -> Means:
    """Return the means of (ranker, quantity); an example's value is its mean over the seeds."""
    first = seeds[0].filter(ranker=SFT)
    columns = {}
    for name in seeds[0]["ranker"].unique(maintain_order=True).to_list():
        for quantity in {GENERATED, VALID, LIKELY, NDCG, MOVED} & {*seeds[0].columns}:
            values = by_seed(seeds, name, quantity)
            if np.isfinite(values).all():
                columns[name, quantity] = values.mean(axis=0)
    return Means(columns, first["user_id"].to_list(), first["target"].to_list())


def by_seed(seeds: Sequence[pl.DataFrame], ranker: str, quantity: str) -> NDArray[np.float64]:
    """Return the values [K, B] of a ranker with each of K seeds, which have answered the same B examples."""
    values = []
    for answers in seeds:
        own = answers.filter(ranker=ranker)
        assert own["row", "user_id", "target"].equals(seeds[0].filter(ranker=SFT)["row", "user_id", "target"])
        values.append(own[quantity].to_numpy())
    return np.stack(values).astype(np.float64)


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


def declared(families: Sequence[Sequence[tuple[Budget, str]]], split: str, title: str) -> dict[str, Any]:
    """Return the table of declared differences, with Holm's correction over each family.

    Args:
        families: the differences of a family, each with its budget and the objective with which S-DPO is compared.
        split: of the examples that are compared. The first seed's validation examples choose the arms.
        title: of the table.
    """
    rows: list[list[Any]] = []
    for family in families:
        tested, names, gains = [], [], []
        for budget, other in family:
            best = best_arms(budget.answers("validation")[0])
            first, second = best[OURS], best[other]
            seeds = budget.answers(split)
            names.append([f"{budget}: {OURS} − {other}", first, second])
            gains.append(means_of(seeds).difference((first, NDCG), (second, NDCG)))
            rows_of = seeds[0].filter(ranker=first)
            users, items = rows_of["user_id"].to_list(), rows_of["target"].to_list()
            ours, theirs = (by_seed(seeds, name, LIKELY) for name in (first, second))
            tested.append(Tested(other, ours, theirs, users, items))
        for name, of_ndcg, one in zip(names, gains, judge(tested, level=LEVEL, margin=MARGIN), strict=True):
            finding = f"{one.word} 0" if one.word in ("above", "below") else one.word
            p_values = (f"{one.p:.3f}", f"{one.adjusted:.3f}")
            rows.append([*name, signed(one.difference), *p_values, finding, signed(of_ndcg)])
    columns = [
        "difference",
        "first",
        "second",
        "HR@1",
        "p",
        "p after Holm",
        f"finding (±{MARGIN.width:g})",
        "NDCG@10",
    ]
    return {"title": title, "columns": columns, "rows": rows}


def of_data(data: str) -> str:
    """Return the end of a title, which names the data set if it is not that of the study."""
    return f", {OTHER_DATA[data]}" if data in OTHER_DATA else ""


def tables_of(budgets: Sequence[Budget], split: str) -> list[dict[str, Any]]:
    """Return the tables of each budget: of all rankers, and of what SFT adds to rules."""
    found = []
    for budget in budgets:
        seeds = budget.answers(split)
        means = means_of(seeds)
        title = f"SFT on {budget}, {seeds[0]['row'].n_unique():,} {split} examples{of_data(budget.data)}"
        if len(seeds) > 1:
            title += f", {seeds_in_words(len(seeds))}"
        found += [ranked(means, title, RANKED), known(means, f"{title}: against rules")]
    return found


def tables_of_data(data: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tables of a data set: those of the study's dose, and those of the larger dose.

    The families of the study's dose are over its budgets; that of the larger dose is over the objectives.
    """
    usual, larger = [], []
    for split in ("test", "validation"):
        title = f"The declared differences, {split} examples{of_data(data)}"
        budgets = budgets_of(data, split)
        of_study = [budget for budget in budgets if budget.of_study]
        if of_study:
            families = [[(budget, other) for budget in of_study] for other in (MORE, SOFTMAX)]
            usual += [declared(families, split, title), *tables_of(of_study, split)]
        for budget in budgets:
            if not budget.of_study:
                family = [(budget, other) for other in (MORE, SOFTMAX, DPO)]
                larger += [declared([family], split, f"{title}, larger dose"), *tables_of([budget], split)]
    return usual, larger


def all_tables() -> list[dict[str, Any]]:
    """Return all tables: of the study's dose, of the first plan, of the larger dose, and of other data."""
    found, larger = tables_of_data(STUDY_DATA)
    for path in sorted(ANSWERS.glob("questions-*.parquet")):
        answers = pl.read_parquet(path).filter(pl.col("ranker") != "random")
        _, rows, layers = path.stem.split("-")
        title = f"A list in the prompt: SFT of {int(rows):,} questions, {layers} layers"
        title = f"{title}, {answers['row'].n_unique():,} validation examples"
        means = means_of([answers])
        found += [ranked(means, title, ASKED), known(means, f"{title}: against rules")]
    found += [listing(pl.read_parquet(path)) for path in sorted(ANSWERS.glob("listed-*.parquet"))]
    found += larger
    for data in OTHER_DATA:
        usual, larger = tables_of_data(data)
        found += [*usual, *larger]
    return found


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

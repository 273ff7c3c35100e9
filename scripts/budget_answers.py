"""Trial E1: keep the answers of a run of `prefrec lab study budget`, and write the tables of lab/results/40.

    python scripts/budget_answers.py [RUN] [--test EXAMPLES]

RUN is the folder of one budget, with all arms. Its answers go to lab/results/answers/e1-SPLIT-ROWS-LAYERS.parquet,
without titles, and the tables are computed from all such files. Three controls are beside the arms. The model that
SFT starts from answers without a list in its prompt: what it gets then comes from the histories alone. The SFT model
also answers validation examples with the history of another user: what it gets then, it knows without the user. And
listed-LAYERS.parquet says how much more probable a title is if the prompt lists it, for SFT and for base models.

--test: the SFT model and the arms that are best on the validation examples then answer so many test examples, in
RUN-test.
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
from rank_tables import signed
from scipy.special import log_softmax
from trial import tell

from prefrec.data import RankingExample
from prefrec.evaluation import Interval, metrics_for, predict
from prefrec.evaluation.evaluate import text_values
from prefrec.evaluation.intervals import Means, mean_interval
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import checked_recipe
from prefrec.sections import ALIGN, ModelSection
from prefrec.stages.language_model import lm_ranker
from prefrec_lab.ranks import coded
from prefrec_lab.studies.budget import BUDGET, CONTROL, SEQUENCES
from prefrec_lab.study_tools.carry_out import base_recipe

RESULT = experiments_page.RESULTS / "40-paper-protocol.json"
ANSWERS = experiments_page.RESULTS / "answers"
SFT, SWAPPED, START = "sft", "sft, histories of other users", "before sft, no list in the prompt"
GENERATED, VALID, LIKELY, NDCG, MOVED = "gen_hr@1", "valid_ratio", "hr@1", "ndcg@10", "kl"
LISTED_ROWS, OF_LIST = 60, 8
OURS = "S-DPO"
OBJECTIVES = {OURS: "s-dpo", "softmax": "softmax", "DPO": "dpo", "SFT continued": CONTROL}
"""Name of an objective → how the names of its arms begin."""

KNOWN = {
    "SFT − popularity": "popularity",
    "SFT − window co-occurrence": "window co-occurrence",
    "SFT − before SFT": START,
    "SFT − histories of other users": SWAPPED,
}
"""Differences that tell whether the trial has left chance → what SFT is compared with."""


def layers_of(section: ModelSection) -> str:
    """Return how many layers of the base a model has."""
    return str(section.layers or "all")


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
    return ANSWERS / f"e1-{split}-{run.recipe.sft.rows}-{layers_of(run.recipe.model)}.parquet"


def keep(run: Run) -> Path:
    """Write the answers of a run, a row per ranker and example, and return their file."""
    section = run.recipe.evaluate
    rows = run.data.examples(section.split, section.rows)
    controls = {START: (open_run(run.folder.parent / SEQUENCES), rows)}
    if section.split == "validation":
        controls[SWAPPED] = (run, swapped(rows))
    answered = [run.predictions()]
    for name, (of, asked) in controls.items():
        model = of.stage(SFT).load(section.batch_size)
        own = predict(model, asked, run.data.catalogue, generate=False)
        answered.append(own.with_columns(ranker=pl.lit(name)))
    answers = pl.concat(answered, how="diagonal_relaxed")
    frames = []
    for (name,), own in coded(answers).group_by("ranker", maintain_order=True):
        texts = text_values(answers.filter(ranker=name))
        values = {column: texts.get(column, np.full(len(own), np.nan)) for column in (GENERATED, VALID)}
        scored = metrics_for([1, 10])
        values |= {column: scored[column](*ranks_of(own)) for column in (LIKELY, NDCG)}
        is_model = name in (*controls, *run.recipe.lm_rankers)
        values[MOVED] = divergence(answers, name) if is_model else np.full(len(own), np.nan)
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
    sft, model = (log_softmax(np.stack(answers.filter(ranker=n)["scores"].to_list()), axis=1) for n in (SFT, name))
    return (np.exp(sft) * (sft - model)).sum(axis=1)


def listed(run: Run) -> Path:
    """Write how much higher the log-probability of titles is if the prompt lists them, and return the file.

    A model scores eight titles of an example's own list and eight of another example's list, once with the first list
    in the prompt and once with the second. So the popularity of titles cancels out.
    """
    titles, section = run.data.catalogue.titles, run.recipe.model
    rows = run.data.examples("validation", LISTED_ROWS)
    models = {f"SFT, {layers_of(section)} layers": run.stage(SFT).load(8)}
    # SFT may start from a model that has learnt the histories, which is not the base.
    for layers in dict.fromkeys((section.layers, None)):
        base = section.model_copy(update={"name": base_recipe(BUDGET).model.name, "layers": layers})
        models[f"base, {layers_of(base)} layers"] = lm_ranker("base", None, run.data, base, 8)
    frames = []
    for name, model in models.items():
        asked = []
        for at, example in enumerate(rows):
            other = rows[(at + len(rows) // 2) % len(rows)]
            known = {*example.candidates, *example.history}
            lists = [*example.candidates], [c for c in other.candidates if c not in known]
            own, foreign = ([titles[c] for c in items] for items in lists)
            history = [titles[item] for item in example.history]
            for shown_titles in (own, foreign):
                prompt = model.template.render(history, shown_titles)
                asked.append(model.encoder.encode_text(prompt, own[:OF_LIST] + foreign[:OF_LIST]))
        # [B, list in the prompt, list of the title, title]
        logps = model.score_sets(asked).reshape(len(rows), 2, 2, OF_LIST)
        added = np.stack([logps[:, 0, 0] - logps[:, 1, 0], logps[:, 1, 1] - logps[:, 0, 1]]).mean(axis=(0, 2))
        users = pl.Series("user_id", [e.user_id for e in rows]).rank("dense").cast(pl.String)
        frames.append(pl.DataFrame({"model": name, "row": range(len(rows)), "user_id": users, "added": added}))
    path = ANSWERS / f"listed-{layers_of(section)}.parquet"
    pl.concat(frames).write_parquet(path, compression="zstd", compression_level=19)
    return path


def listing(effects: pl.DataFrame) -> dict[str, Any]:
    """Return the table of `listed`."""
    rows = []
    for (name,), own in effects.group_by("model", maintain_order=True):
        rows.append([name, signed(mean_interval(own["added"].to_numpy(), own["user_id"].to_list()))])
    title = f"What listing a title adds to its log-probability, {effects['row'].n_unique()} validation examples"
    return {"title": title, "columns": ["model", "nats"], "rows": rows}


def best_arms(answers: pl.DataFrame) -> dict[str, str]:
    """Return the best arm of each objective by HR@1 generated; a tie goes to NDCG@10."""
    means = answers.group_by("ranker", maintain_order=True).agg(pl.col(GENERATED, NDCG).mean())
    best = {}
    for objective, begin in OBJECTIVES.items():
        arms = means.filter(pl.col("ranker").str.starts_with(begin))
        if len(arms):
            best[objective] = arms.sort(GENERATED, NDCG, descending=True)["ranker"][0]
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


def tables(answers: pl.DataFrame, title: str, best: dict[str, str]) -> list[dict[str, Any]]:
    """Return the table of all rankers, and that of differences.

    Args:
        answers: what `keep` has written.
        title: of the tables.
        best: objective → its arm that is compared with those of others.
    """
    names = answers["ranker"].unique(maintain_order=True).to_list()
    first = answers.filter(ranker=SFT)
    columns = {}
    for name in names:
        own = answers.filter(ranker=name)
        assert own["row"].equals(first["row"])
        for quantity in {GENERATED, VALID, LIKELY, NDCG, MOVED} & {*own.columns}:
            if own[quantity].is_not_nan().all():
                columns[name, quantity] = own[quantity].to_numpy()
    means = Means(columns, first["user_id"].to_list(), first["target"].to_list())

    def mean(name: str, quantity: str) -> str:
        return shown(means.mean((name, quantity))) if (name, quantity) in columns else "–"

    def gap(name: str, against: str, quantity: str) -> str:
        if name == against or not {(name, quantity), (against, quantity)} <= columns.keys():
            return "–"
        return signed(means.difference((name, quantity), (against, quantity)))

    def dose(name: str) -> str:
        return f"{columns[name, MOVED].mean():.3f}" if (name, MOVED) in columns else "–"

    rows = [
        [name, *(mean(name, q) for q in (GENERATED, VALID, LIKELY, NDCG)), gap(name, SFT, GENERATED), dose(name)]
        for name in names
        if name != "random"
    ]
    head = ["model", "HR@1, generated", "valid ratio", "HR@1 by likelihood", "NDCG@10", "generated − SFT", "KL"]
    pairs = [(name, SFT, against) for name, against in KNOWN.items() if against in names]
    for other in ("SFT continued", "softmax", "DPO"):
        if OURS in best and other in best:
            pairs.append((f"{OURS} − {other}", best[OURS], best[other]))
    compared = [[name, one, two, *(gap(one, two, q) for q in (GENERATED, LIKELY, NDCG))] for name, one, two in pairs]
    columns_of = ["difference", "first", "second", "HR@1, generated", "HR@1 by likelihood", "NDCG@10"]
    return [
        {"title": title, "columns": head, "rows": rows},
        {"title": f"{title}: differences", "columns": columns_of, "rows": compared},
    ]


def shown(value: Interval) -> str:
    """Return a mean with its interval."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def main() -> None:
    """Keep the answers of a run, if one is named, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--test", type=int, metavar="EXAMPLES")
    arguments = parser.parse_args()
    if arguments.run:
        run = open_run(arguments.run)
        keep(run)
        listed(run)
        if arguments.test:
            keep(answer_test(run, arguments.test))
    found = []
    for path in sorted(ANSWERS.glob("e1-*.parquet")):
        answers = pl.read_parquet(path)
        _, split, rows, layers = path.stem.split("-")
        count = answers["row"].n_unique()
        best = best_arms(pl.read_parquet(path.with_name(path.name.replace(split, "validation"))))
        found += tables(answers, f"SFT of {int(rows):,} rows, {layers} layers, {count:,} {split} examples", best)
    found += [listing(pl.read_parquet(path)) for path in sorted(ANSWERS.glob("listed-*.parquet"))]
    tell({"tables": found}, RESULT)


if __name__ == "__main__":
    main()

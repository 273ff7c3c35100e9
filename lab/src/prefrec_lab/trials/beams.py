"""Trial E2 (lab/protocol/e2.yaml): train its arms, answer by beams and exactly, and write lab/results/70-beams.json.

    python -m prefrec_lab.trials.beams RUN --set data.path=DATA --split validation    # prints, and writes no result
    python -m prefrec_lab.trials.beams RUN --set data.path=DATA --split test          # once, when all is settled

RUN is the folder of a run, whose SFT model all arms start from; RUN/beams gets the arms. What is trained or answered
already is left as it is. With `--arms`, only these are trained and answered, so that two processes can share the
work. Answers are kept in lab/results/answers, without titles, and tables are made from those of all seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from prefrec import training
from prefrec.console import say, track
from prefrec.data import PreparedData, RankingExample, examples_to_frame, frame_to_examples
from prefrec.data.parquet import read_parquet
from prefrec.data.rows import take
from prefrec.data.seen import seen_items
from prefrec.evaluation.metrics import hit_rate, ndcg, target_ranks
from prefrec.files import write_whole
from prefrec.pipeline.opened import Run, open_run
from prefrec.prompts import load_template
from prefrec.rankers import CatalogueRanker
from prefrec.rankers.base import checked_scores
from prefrec.rankers.lm import LMRanker
from prefrec.sections import SFT, ModelSection
from prefrec.stages.base import WEIGHTS
from prefrec.stages.blend import sampled
from prefrec.stages.encoders import prompt_encoder
from prefrec.stages.language_model import lm_ranker
from prefrec.stages.train import catalogue_softmax, load_start, train_to_weights, trained_items
from prefrec.training.negatives import resample_negatives
from prefrec_lab.beams import Titles
from prefrec_lab.results import PROTOCOLS, RESULTS
from prefrec_lab.trials.budget_answers import swapped
from prefrec_lab.trials.shared import (
    RULES,
    Answers,
    declared_table,
    evenly_spread,
    keep_answers,
    run_changed,
    seeds_in_words,
    tell,
)

TRIAL = PROTOCOLS / "e2.yaml"
RESULT = RESULTS / "70-beams.json"
SWAPPED = "sft, histories of other users"
MASKED = "sft, masked answers"
LAST = 1 << 30
"""Rank of a target that was not found, beyond all cut-offs."""
EXACT, KEPT, LOGP = "exact", "kept", "logp"
Settings = Mapping[str, Any]


def named(name: str, arm: Settings, rate: float) -> tuple[str, dict[str, Any]]:
    """Return the name of an arm with a learning rate, and its settings."""
    return f"{name}-{rate:.0e}".replace("e-0", "e-"), {**arm, "learning_rate": rate}


def tuned_arms(trial: Settings) -> dict[str, dict[str, Any]]:
    """Return the arms that have each learning rate: name → settings."""
    tuned = [(name, arm) for name, arm in trial["arms"].items() if "rate_of" not in arm]
    return dict(named(name, arm, rate) for name, arm in tuned for rate in trial["learning_rates"])


def chosen_arms(trial: Settings, validation: Answers) -> dict[str, dict[str, Any]]:
    """Return all arms with the learning rate that was best on validation examples: name → settings."""
    found = {}
    for name, arm in trial["arms"].items():
        tuned = arm.get("rate_of", name)

        def gain(rate: float, tuned: str = tuned) -> float:
            return float(gains(validation.column(named(tuned, {}, rate)[0], EXACT)).mean())

        with_rate, settings = named(name, arm, max(trial["learning_rates"], key=gain))
        found[with_rate] = settings
    return found


def model_of(run: Run, arm: Settings) -> ModelSection:
    """Return the settings of an arm's model: those of the run, except for the objective."""
    return run.recipe.model.model_copy(update={"objective": arm.get("objective", run.recipe.model.objective)})


def with_beams(run: Run, rows: Sequence[RankingExample], width: int) -> list[RankingExample]:
    """Return training examples with the target and what `width` beams of the SFT model find, the best first.

    The target and all items that the user has in the training log are left out of the search.
    """
    path = run.folder / "beams" / "beams.parquet"
    if not path.is_file():
        ranker = CatalogueRanker(lm_ranker(SFT, run.adapter(SFT), run.data, run.recipe.model))
        found = []
        for row, seen in zip(track(rows, "beams of training examples"), seen_items(run.data, rows), strict=True):
            titles = Titles(*ranker.reader(row.history, seen | {row.target}))
            items = [run.data.catalogue.ids[item] for item in titles.beams(width)]
            found.append(replace(row, candidates=(row.target, *items)))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, examples_to_frame(found).write_parquet)
    return frame_to_examples(read_parquet(path))


def training_examples(run: Run, trial: Settings, arm: Settings) -> list[RankingExample]:
    """Return the training examples of an arm with its negatives, the target first."""
    data, seed, count = run.data, run.recipe.seed, trial["negatives"]
    order = np.random.default_rng((seed, 1)).permutation(len(data.train))
    rows = take(data.train, order[: trial["examples"]])
    kind = arm.get("negatives")
    if kind not in ("beams", "hardest"):
        # SFT does not read negatives, but the trainer of preferences asks for one.
        return resample_negatives(rows, data, "uniform", seed=seed, size=1 + (count if kind else 1))
    examples = []
    for number, row in enumerate(with_beams(run, rows, trial["width"])):
        target, *beams = row.candidates
        negatives = beams[:count]
        if kind == "beams":
            places = np.random.default_rng((seed, 2, number)).permutation(len(beams))[:count]
            negatives = [beams[place] for place in places.tolist()]
        examples.append(replace(row, candidates=(target, *negatives)))
    return examples


def train(run: Run, trial: Settings, arm: Settings, out: Path) -> None:
    """Train an arm from the SFT model."""
    data, model = run.data, model_of(run, arm)
    rows = training_examples(run, trial, arm)
    encoder = prompt_encoder(model, data.catalogue)
    template = load_template(model.templates[0], domain=data.domain)
    sets = training.encode_examples(rows, data.catalogue, [template], encoder, answers="target-first")
    competing = {*trained_items(data)}
    for row in rows:
        competing.update(row.candidates)
    in_order = [item for item in data.catalogue.ids if item in competing]
    within = catalogue_softmax(data, model, encoder, in_order)
    config = training.SoftmaxDPOConfig(
        str(out),
        loss_type=arm["loss_type"],
        loss_weights=arm.get("loss_weights"),
        learning_rate=arm["learning_rate"],
        seed=run.recipe.seed,
        max_length=model.max_length,
        use_cpu=True,
        save_strategy="no",
        logging_steps=5,
        **trial["trainer"],
    )
    start = load_start(run.plan.inputs, run.adapter(SFT))
    preferences = training.PreferenceDataset(sets, seed=run.recipe.seed).encoded_by(encoder, within)
    trainer = training.SoftmaxDPOTrainer(start, args=config, train_dataset=preferences)
    train_to_weights(trainer, out)


def answer(lm: LMRanker, data: PreparedData, rows: Sequence[RankingExample], trial: Settings) -> pl.DataFrame:
    """Return the rank of each target by beams of each width and exactly; 0 where it is not found.

    The column `kept` has the number of steps for which the beam search of the trial's width kept the target's prefix,
    `depth` that of its tokens, and `logp` the log-probability of its title in nats.
    """
    ranker, answers = CatalogueRanker(lm), []
    for row, seen in zip(track(rows, f"{lm.name}: answering"), seen_items(data, rows), strict=True):
        titles = Titles(*ranker.reader(row.history, seen - {row.target}))
        target = lm.catalogue.index[row.target]
        found = {EXACT: titles.best(trial["found"])}
        found |= {f"{width} beams": titles.beams(width) for width in trial["widths"]}
        ranks = {}
        for name, items in found.items():
            ranks[name] = 1 + items.index(target) if target in items else 0
        depth = int(titles.trie.depths[titles.trie.terminals[target]])
        path = {KEPT: titles.survival(target, trial["width"]), "depth": depth, LOGP: titles.logp(target)}
        answers.append({"user_id": row.user_id, "target": row.target, **ranks, **path})
    return pl.DataFrame(answers)


def answer_by_rule(run: Run, name: str, rows: Sequence[RankingExample], trial: Settings) -> pl.DataFrame:
    """Return the rank of each target by a baseline; 0 where it is not among the first `found`.

    In a tie the target has the middle of the ranks.
    """
    asked = sampled(run.data, rows, len(run.data.catalogue), np.random.default_rng(0))
    # Before validation examples: the language models have not read those either.
    scores = checked_scores(run.plan.inputs.baseline(name, "validation"), asked)
    ranks, tied = target_ranks(scores, np.zeros(len(asked), dtype=int))
    places = ranks + tied // 2
    places = np.where(places <= trial["found"], places, 0)
    ids = {"user_id": [row.user_id for row in rows], "target": [row.target for row in rows]}
    return pl.DataFrame({**ids, EXACT: places})


def carry_out(run: Run, trial: Settings, split: str, names: Sequence[str], arms: Mapping[str, Settings]) -> None:
    """Train the models with these names, where they are not, and let all answer a split, where they did not."""
    rows = evenly_spread(run.data.split(split), trial[split])
    for name in names:
        out = run.folder / "beams" / name
        weights = out / WEIGHTS if name in arms else run.adapter(SFT)
        answered = out / f"{split}.parquet"
        if not weights.is_dir():
            say(f"{name}: training")
            train(run, trial, arms[name], out)
        if answered.is_file():
            continue
        out.mkdir(parents=True, exist_ok=True)
        if name in RULES:
            answers = answer_by_rule(run, name, rows, trial)
        else:
            settings = {"objective": "catalogue"} if name == MASKED else arms.get(name, {})
            lm = lm_ranker(name, weights, run.data, model_of(run, settings))
            asked = swapped(rows) if name == SWAPPED else rows
            answers = answer(lm, run.data, asked, trial)
        write_whole(answered, answers.write_parquet)


def keep(run: Run, split: str, names: Sequence[str]) -> None:
    """Write the answers of all rankers of a run, without ids, beside those of other seeds."""
    frames = []
    for name in names:
        answers = pl.read_parquet(run.folder / "beams" / name / f"{split}.parquet")
        frames.append(answers.with_columns(ranker=pl.lit(name), row=pl.int_range(pl.len())))
    keep_answers(pl.concat(frames, how="diagonal"), "e2", split, run.recipe.seed)


def gains(ranks: NDArray[np.int64], k: int = 10) -> NDArray[np.float64]:
    """Return NDCG@k of targets with these ranks, 0 for one that was not found."""
    return ndcg(np.where(ranks > 0, ranks, LAST), k)


def hits(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """Return 1 where the target is among the first k, else 0."""
    return hit_rate(np.where(ranks > 0, ranks, LAST), k)


def dose_table(answers: Answers, names: Collection[str]) -> dict[str, Any]:
    """Return how far each arm has moved from SFT, in the log-probability of the target's title."""
    before = answers.column(SFT, LOGP)
    rows = []
    for name in names:
        after = answers.column(name, LOGP)
        rows.append([name, answers.gap(after, before), f"{np.abs(after - before).mean():.3f}"])
    columns = ["arm", "log p of the target, in nats", "mean absolute change"]
    return {"title": "Each arm − SFT", "columns": columns, "rows": rows}


def known_table(answers: Answers) -> dict[str, Any]:
    """Return what SFT adds to rules, and to itself with the histories of other users."""
    own = gains(answers.column(SFT, EXACT))
    others = [name for name in (*RULES, SWAPPED) if name in answers.names]
    rows = [[f"{SFT} − {name}", answers.gap(own, gains(answers.column(name, EXACT)))] for name in others]
    return {"title": "SFT − rules, exact ranking", "columns": ["difference", "NDCG@10"], "rows": rows}


def means_table(answers: Answers, trial: Settings, title: str) -> dict[str, Any]:
    """Return the table of all rankers, by beams and exactly."""
    beams = f"{trial['width']} beams"
    narrow, wide = (f"{width} beams" for width in (min(trial["widths"]), max(trial["widths"])))
    columns = [(f"NDCG@10, {beams}", beams, gains), ("NDCG@10, exact", EXACT, gains)]
    for k, by in ((1, narrow), (10, beams), (50, wide)):
        for column in (by, EXACT):
            columns.append((f"HR@{k}, {column}", column, lambda ranks, k=k: hits(ranks, k)))
    rows = []
    for name in answers.names:
        row = [name]
        for _, column, metric in columns:
            known = name not in RULES or column == EXACT
            row.append(f"{metric(answers.column(name, column)).mean():.4f}" if known else "–")
        rows.append(row)
    return {"title": title, "columns": ["ranker", *(heading for heading, _, _ in columns)], "rows": rows}


def lost_table(answers: Answers, names: Sequence[str], trial: Settings) -> dict[str, Any]:
    """Return what beam search loses of what exact ranking by the same model finds, and how long it keeps a target."""
    beams = f"{trial['width']} beams"
    rows = []
    for name in names:
        exact, searched = (answers.column(name, by) for by in (EXACT, beams))
        kept, depth = answers.column(name, KEPT), answers.column(name, "depth")
        survived = [f"{(kept >= np.minimum(step, depth)).mean():.3f}" for step in (1, 2, 3)]
        gaps = (answers.gap(metric(searched), metric(exact)) for metric in (gains, lambda ranks: hits(ranks, 10)))
        rows.append([name, *gaps, *survived, f"{(kept >= depth).mean():.3f}"])
    columns = ["model", "NDCG@10", "HR@10"]
    columns += [f"prefix kept for {step}" for step in ("1 step", "2 steps", "3 steps", "all")]
    return {"title": f"{beams} − exact ranking by the same model", "columns": columns, "rows": rows}


def apart_table(answers: Answers, names: Sequence[str], trial: Settings) -> dict[str, Any]:
    """Return how often a target is among the first ten of one search alone, and the difference from SFT."""
    beams = f"{trial['width']} beams"

    def only(name: str, found: str, missed: str) -> NDArray[np.float64]:
        return hits(answers.column(name, found), 10) * (1 - hits(answers.column(name, missed), 10))

    rows = []
    for name in names:
        row = [name]
        for pair in ((EXACT, beams), (beams, EXACT)):
            own, before = only(name, *pair), only(SFT, *pair)
            row += [f"{own.mean():.4f}", "–" if name == SFT else answers.gap(own, before)]
        rows.append(row)
    columns = ["model"]
    for by in (EXACT, beams):
        columns += [f"{by} alone", f"{by} alone: minus sft"]
    title = f"Targets among the first ten in exact ranking alone, and by {beams} alone"
    return {"title": title, "columns": columns, "rows": rows}


def measured(trial: Settings, split: str, arms: Collection[str]) -> dict[str, Any]:
    """Return the computed fields of the result.

    Args:
        trial: the plan.
        split: of the examples.
        arms: names of the arms with their learning rates, the control first.
    """
    answers = Answers.to("e2", split)
    # An arm has the name of the plan, followed by its learning rate.
    names = {name.rsplit("-", 2)[0]: name for name in arms}
    pairs = [(names[a], names[b]) for a, b in trial["differences"] if a in names]
    beams = f"{trial['width']} beams"
    tables = []
    for by in (beams, EXACT):
        tested = []
        for first, second in pairs:
            values = (gains(answers.column(name, by)) for name in (first, second))
            tested.append(answers.tested(f"{first} − {second}", *values))
        tables.append(declared_table(tested, trial, f"The declared differences, {by}"))
    seeds = seeds_in_words(answers.seeds)
    count = f"{len(answers.users)} {split} examples"
    models = [name for name in answers.names if name not in RULES]
    tables.append(lost_table(answers, models, trial))
    tables.append(apart_table(answers, models, trial))
    tables.append(shown_table(answers, names, trial))
    trained = [name for name in models if name not in (SFT, SWAPPED, MASKED)]
    tables.append(dose_table(answers, trained))
    tables.append(known_table(answers))
    tables.append(means_table(answers, trial, f"All rankers, {count}"))
    if split == "test":
        earlier = Answers.to("e2", "validation")
        title = f"All rankers, {len(earlier.users)} validation examples"
        tables.append(means_table(earlier, trial, title))
    n = f"{count} of {len(set(answers.users))} users; {seeds}; {2 * len(pairs)} comparisons in two families"
    return {"n": n, "tables": tables}


def shown_table(answers: Answers, names: Mapping[str, str], trial: Settings) -> dict[str, Any]:
    """Return the table of differences that are not tested: each arm − SFT continued."""
    control = names["sft-more"]
    beams = f"{trial['width']} beams"
    shown = [(beams, 10), (EXACT, 1), (EXACT, 10), (EXACT, 50)]
    rows = []
    for name in names.values():
        if name != control:
            row = [name]
            for by, k in shown:
                row.append(answers.gap(hits(answers.column(name, by), k), hits(answers.column(control, by), k)))
            rows.append(row)
    columns = ["arm", *(f"HR@{k}, {by}" for by, k in shown)]
    return {"title": "Each arm − SFT continued, not tested", "columns": columns, "rows": rows}


def main() -> None:
    """Carry out a part of the trial, then print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--split", choices=["validation", "test"], required=True)
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    parser.add_argument("--arms", nargs="+", help="train and answer with these only, and make no tables")
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], help="field=value, as for `prefrec run`"
    )
    arguments = parser.parse_args()
    trial: dict[str, Any] = yaml.safe_load(TRIAL.read_text(encoding="utf-8"))
    run_changed(TRIAL, {**trial["run"], "seed": arguments.seed}, arguments.run, arguments.changes, until=SFT)
    run = open_run(arguments.run)
    is_test = arguments.split == "test"
    arms = chosen_arms(trial, Answers.to("e2", "validation")) if is_test else tuned_arms(trial)
    names = [*RULES, SFT, MASKED if is_test else SWAPPED, *arms]
    carry_out(run, trial, arguments.split, arguments.arms or names, arms)
    if not arguments.arms:
        keep(run, arguments.split, names)
        chosen = chosen_arms(trial, Answers.to("e2", "validation"))
        compared = [name for name in chosen if name in arms]
        tell(measured(trial, arguments.split, compared), RESULT if is_test else None)


if __name__ == "__main__":
    main()

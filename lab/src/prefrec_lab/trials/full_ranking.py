"""Write the results of full ranking, with a row per data set, from the ranks in finished runs.

`python -m prefrec_lab.trials.full_ranking NAME=RUN,RUN,... ...` writes lab/results/ranks/NAME.parquet for the first
run of a data set, and NAME-1.parquet, NAME-2.parquet for its other seeds. Each has a ranker `blend`, or a blend as
its last ranker. Then it judges all files of ranks by the rules that lab/protocol declares, and writes
lab/results/54-full-ranking.json and 61-s-dpo-beside-sft.json, a file per trial whose arms have ranks, and README's
table. Without runs it does this from the files that are there. NAME-random has random weights.

`control-NAME=RUN,RUN,…` are runs, one per seed, that were also aligned by SFT on the examples of S-DPO (`MORE_SFT`).
`poor-NAME=RUN,RUN,…` are runs of a trial's positive control, and `aged-NAME=RUN` is a run whose blend has the best
baseline as its only part, beside the features of time. Users and items are numbered in the files, so that no data set
is passed on. `python -m prefrec_lab.trials.full_ranking --print` prints all tables, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefrec.data import Candidates, Queries
from prefrec.evaluation.targets import CLASSES
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.score import predict_full
from prefrec.runs.results import METRICS
from prefrec.stages.alignment import AlignStage
from prefrec_lab.protocol import Decision, Family, Protocol, Trial, decide, read_protocol, read_trial
from prefrec_lab.ranks import coded, row_facts, write_ranks
from prefrec_lab.results import PROTOCOLS, RANKS, RESULTS, ROOT, Table, markdown, save, wrapped
from prefrec_lab.trials.rank_tables import (
    POOLED,
    TITLES,
    WITH_TIME,
    Measured,
    all_rankers,
    class_table,
    control_table,
    divergences,
    family_table,
    groups_table,
    logs_of,
    logs_table,
    main_table,
    pooled_table,
    read_all,
    read_controls,
    seeds_table,
    signed,
    time_tables,
    with_time,
)

README = ROOT / "README.md"
PROTOCOL = PROTOCOLS / "table.yaml"
SECTION = RESULTS / "54-full-ranking.json"
CONTROL_SECTION = RESULTS / "61-s-dpo-beside-sft.json"
TRIALS = {"e5": RESULTS / "62-trial-e5.json"}
"""Name of a file in lab/protocol → the file of its results."""
TITLE = "Trial E5: S-DPO's reward with negatives of a blend"
ASKED = (
    "[Trial E5](docs/experiments/62-trial-e5.md) added S-DPO's reward to a blend, and a second model to its control."
)
FEW_TARGETS = (
    "On Amazon Book windows three targets carry the variance of such differences. On both Amazon Book splits the "
    "test rejects a true 0 in 8% to 10% of simulations in place of 5%"
)
RUNS = [
    "git checkout 7a9ac3d0",
    "for SEED in 0 1 2; do",
    "  for NAME in movielens-100k-items lastfm goodreads amazon-office amazon-book; do",
    "    python scripts/trial.py recipes/$NAME.yaml runs/e5-$NAME-$SEED --seed $SEED",
    "  done",
    "done",
    "for SEED in 0 1 2; do",
    "  python scripts/trial.py recipes/amazon-office.yaml runs/e5-amazon-office-log-$SEED --seed $SEED \\\n"
    "      --set data.split=time",
    "done",
    "for SEED in 0 1; do",
    "  python scripts/trial.py recipes/amazon-book.yaml runs/e5-amazon-book-log-$SEED --seed $SEED \\\n"
    "      --set data.split=time",
    "done",
]
"""Commands that make the runs of all splits, at the last commit that has all arms of trial E5."""
MEASURED = (
    "seeds() { echo runs/e5-$1-0,runs/e5-$1-1,runs/e5-$1-2; }\n"
    "python scripts/full_ranking.py movielens-100k=$(seeds movielens-100k-items) lastfm=$(seeds lastfm) \\\n"
    "    goodreads=$(seeds goodreads) amazon-office=$(seeds amazon-office) amazon-book=$(seeds amazon-book) \\\n"
    "    amazon-office-log=$(seeds amazon-office-log) \\\n"
    "    amazon-book-log=runs/e5-amazon-book-log-0,runs/e5-amazon-book-log-1"
)
AGED = [
    'aged() { prefrec run recipes/$1.yaml --out runs/aged-$2 --set sft=null --set "align=[]" \\\n'
    '    --set "rankers=[{kind: blend, parts: [$3]}]" --set "evaluate.baselines=[popularity, $3]" ${4:+--set $4}; }',
    'aged movielens-100k-items movielens-100k "window co-occurrence"',
    'aged lastfm lastfm "window co-occurrence"',
    'aged goodreads goodreads "window co-occurrence"',
    'aged amazon-office amazon-office "title TF-IDF"',
    'aged amazon-book amazon-book "transition graph"',
    'aged amazon-office amazon-office-log "transition graph" data.split=time',
]
"""Commands that make the best baselines with features of time."""
WITH_AGED = (
    "aged-movielens-100k=runs/aged-movielens-100k aged-lastfm=runs/aged-lastfm \\\n"
    "    aged-goodreads=runs/aged-goodreads aged-amazon-office=runs/aged-amazon-office \\\n"
    "    aged-amazon-book=runs/aged-amazon-book aged-amazon-office-log=runs/aged-amazon-office-log"
)
COMMANDS = [
    *RUNS,
    "for NAME in goodreads movielens-100k-items lastfm amazon-office; do",
    "  python scripts/trial.py recipes/$NAME.yaml runs/e5-poor-$NAME --control",
    "done",
    f"{MEASURED} \\\n"
    "    poor-goodreads=runs/e5-poor-goodreads poor-movielens-100k=runs/e5-poor-movielens-100k-items \\\n"
    "    poor-lastfm=runs/e5-poor-lastfm poor-amazon-office=runs/e5-poor-amazon-office",
]
POOR = (("s-dpo", "sft"), ("with-reward", "with-second-model"))
"""Pairs of the positive control: the one that was declared, and the trial's primary one."""
FIRST_CONTROL = "goodreads"
"""Data set of the positive control that was declared with the trial. The second one has the others."""
MORE_SFT = "sft-more"
"""Name of the alignment with `loss: sft`, otherwise like S-DPO."""
MORE = Family(
    name="S-DPO − more SFT",
    question="Do preferences add to SFT for as many steps on the same examples?",
    ranker="s-dpo",
    against=MORE_SFT,
    ranks="control",
)
"""Was in table.yaml when the files control-NAME.parquet were made."""
MARKS = ("<!-- results -->", "<!-- /results -->")
"""Columns in README."""
DOSE_ROWS = 300
"""Validation examples to measure how far an alignment has moved from its reference."""
FEWEST = 20
"""Examples of a class that are needed to say something of it."""
FINDINGS = {
    "above": "significantly above 0",
    "below": "significantly below 0",
    "equivalent": "equivalent",
    "open": "open",
}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def measure(name: str, folder: Path) -> None:
    """Write the ranks of a run's rankers, and the facts that they do not hold."""
    run = open_run(folder)
    data, section = run.data, run.recipe.evaluate
    stages = [run.stage(n) for n in run.plan.names]
    blend = "blend" if "blend" in run.plan.names else run.plan.names[-1]
    asked = [*stages, *(run.stage(blend).ablations if section.ablations else [])]
    baselines = run.plan.inputs.baselines.before(section.split, section.baselines)
    cache = folder / "predictions/full_catalogue"
    found = predict_full(data, section, baselines, asked, cache, seed=run.recipe.seed)
    path = RANKS / f"{name}.parquet"
    write_ranks(coded(found), row_facts(data, data.examples(section.split, section.rows), section.split), path)
    metrics = read_json(folder / METRICS)
    audit = metrics["evaluation"]["audit"]
    earlier = read_json(path.with_suffix(".json"))
    commit = read_json(folder / "environment.json").get("commit")
    is_again = bool(earlier) and earlier["commit"] != commit
    write_json(
        path.with_suffix(".json"),
        {
            "baselines": [r.name for r in baselines if r.name != "random"],
            "sequential": [r.name for r in run.recipe.rankers if r.kind == "sequential"],
            "language_models": run.models,
            "blend": blend,
            "items": len(data.catalogue),
            "verdict": audit["verdict"],
            "leaks": audit["leaks"],
            "solved_without_the_user": audit.get("solved_without_the_user", []),
            "logs": (metrics.get("full_catalogue") or {}).get("logs", {}),
            "doses": {a.name: dose(run, str(a.name)) for a in run.recipe.align},
            "evaluations": earlier.get("evaluations", 1) + is_again,
            "commit": commit,
        },
    )


def dose(run: Run, name: str) -> dict[str, Any]:
    """Return what an alignment did: losses, share of preferences in order, distance to the reference, minutes."""
    folder = run.folder / "align" / name
    path = folder / "log.json"
    log: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    losses = [entry["loss"] for entry in log if "loss" in entry]
    in_order = [entry["eval_rewards/accuracies"] for entry in log if "eval_rewards/accuracies" in entry]
    seconds = (read_json(folder / "stage.json") or {}).get("seconds")
    return {
        "first loss": losses[0] if losses else None,
        "last loss": losses[-1] if losses else None,
        "preferences in order": in_order[-1] if in_order else None,
        "KL": divergence(run, name),
        "minutes": None if seconds is None else seconds / 60,
    }


def divergence(run: Run, name: str) -> float | None:
    """Return the mean KL(reference ‖ aligned model) over the catalogue, in nats, on validation examples.

    None for the models that score titles one by one: they have no distribution over the catalogue.
    """
    stage = run.stage(name).on("validation")
    assert isinstance(stage, AlignStage)
    if stage.is_slow or stage.start is None:
        return None
    items = Candidates(run.data.catalogue.ids)
    rows = Queries([e.among(items.ids) for e in run.data.examples("validation", DOSE_ROWS)], items)
    size = run.recipe.evaluate.batch_size
    reference, aligned = ((of.full or of).load(size).score(rows) for of in (stage.start, stage))
    return float(divergences(reference, aligned).mean())


def measure_control(name: str, folders: Sequence[Path], rankers: Sequence[str]) -> None:
    """Write the ranks of some rankers of several seeds; a ranker of the file is `NAME SEED`."""
    found = []
    facts = pl.DataFrame()
    for seed, folder in enumerate(folders):
        run = open_run(folder)
        data, section = run.data, run.recipe.evaluate
        facts = row_facts(data, data.examples(section.split, section.rows), section.split)
        stages = [run.stage(n) for n in rankers]
        cache = folder / "predictions/full_catalogue"
        ranked = predict_full(data, section, [], stages, cache, seed=run.recipe.seed)
        found.append(ranked.with_columns(pl.col("ranker") + f" {seed}"))
    write_ranks(coded(pl.concat(found)), facts, RANKS / f"{name}.parquet")


def judged(protocol: Protocol, measured: Sequence[Measured]) -> dict[str, list[Decision]]:
    """Return family → what the rules of a table or trial say of each data set that has both of its rankers."""
    ranked = [m.ranked for m in measured]
    found = {family.name: decide(protocol, family, ranked) for family in protocol.families}
    return {name: decisions for name, decisions in found.items() if decisions}


def judged_controls(protocol: Protocol, controls: Sequence[Measured]) -> list[Decision]:
    """Return what the rules say of S-DPO and as many steps of SFT."""
    return decide(protocol, MORE, [m.ranked_alone for m in controls])


def by_finding(decided: Sequence[Decision]) -> dict[str, list[str]]:
    """Return finding → titles of the data sets with it."""
    found: dict[str, list[str]] = {finding: [] for finding in FINDINGS}
    for d in decided:
        found[d.found.word].append(TITLES[d.data])
    return found


def significance(decided: Sequence[Decision]) -> str:
    """Return on which data sets a difference is significant, for the end of a sentence."""
    found = by_finding(decided)
    above = f"significant in {number(found['above'])}{named(found['above'])}"
    below = (
        f", and significantly below 0 in {number(found['below'])}{named(found['below'])}" if found["below"] else ""
    )
    return above + below


def number(some: Sequence[Any]) -> str:
    """Return the number of data sets in a word."""
    return NUMBERS[len(some)] if some else "none"


def named(some: Sequence[str]) -> str:
    """Return names in brackets; nothing if there are none."""
    return f" ({'; '.join(some)})" if some else ""


def unnamed(text: str) -> str:
    """Return a text without the names that `named` has put in brackets."""
    return re.sub(r" \([^()]*\)", "", text)


def finding_notes(protocol: Protocol, decided: dict[str, list[Decision]]) -> list[str]:
    """Return a sentence per family: which data sets are above 0, below 0, equivalent or open."""
    margin = f"{protocol.equivalence:.0%}"
    words = FINDINGS | {"equivalent": f"equivalent within ±{margin} of the ranker compared with"}
    notes = []
    for name, decisions in decided.items():
        said = [f"{words[f]} in {'; '.join(sets)}" for f, sets in by_finding(decisions).items() if sets]
        notes.append(f"*{name}*: {'. '.join(said)}.".replace(". open", ". Open").replace(". eq", ". Eq"))
    return notes


def carried_notes(measured: Sequence[Measured], decided: Mapping[str, Sequence[Decision]]) -> list[str]:
    """Return, for each significant difference whose interval contains 0, how much of it one target carries.

    The interval is wide where few targets carry the variance; the wild bootstrap can then reject too often.
    """
    by_name = {m.name: m for m in measured}
    notes = []
    for name, decisions in decided.items():
        for d in decisions:
            gap = d.found.difference
            if d.found.word not in ("above", "below") or gap.low > 0 or gap.high < 0:
                continue
            one = by_name[d.data]
            targets = one.rows["target"].to_numpy()
            differences = (one.each[d.ranker] - one.each[d.against]).mean(axis=0)
            sums = {target: differences[targets == target].sum() for target in np.unique(targets)}
            largest = max(sums, key=lambda target: abs(sums[target]))
            others = one.among(targets != largest).difference(d.ranker, d.against)
            carried = f"{sums[largest] / len(targets):+.4f}".replace("-", "−")
            notes.append(
                f"*{name}* in {TITLES[d.data]}: the test rejects 0, but the interval {signed(gap)} contains it. One "
                f"target, with {(targets == largest).sum():,} of the {len(targets):,} examples, carries {carried} of "
                f"the difference; without it the difference is {signed(others)}."
            )
    return notes


def log_sentence(measured: Sequence[Measured]) -> str:
    """Return whether all rankers were trained on the same log."""
    known = [m for m in measured if logs_of(m)]
    # Splits without a validation period, such as one by user, have the log of training alone.
    same = [m for m in known if len(set(logs_of(m))) == 1]
    if len(same) == len(measured):
        return "All rankers of a split were trained on the same log before they ranked test examples."
    if not known:
        return (
            "The language model was trained on less than the baselines: these count the validation period, and it "
            "was trained before. So the figures do not say what it adds if all parts are trained on the same log."
        )
    others = [TITLES[m.name] for m in measured if m not in same]
    runs = "the run is older: its" if len(others) == 1 else "the runs are older: their"
    return (
        f"All rankers of a split were trained on the same log, except in {'; '.join(others)}. There {runs} language "
        "model was trained before the validation period, which the baselines count."
    )


def time_notes(measured: Sequence[Measured]) -> list[str]:
    """Return on which splits features of time alone give the best baseline half of the blend's gain, or harm it."""
    half, worse = [], []
    for m in measured:
        known, whole = m.difference(WITH_TIME, m.baseline), m.difference(m.blend, m.baseline)
        if 0 < whole.mean <= 2 * known.mean:
            half.append(TITLES[m.name])
        elif known.high < 0:
            worse.append(TITLES[m.name])
    notes = []
    if half:
        notes.append(
            "The blend knows the age of items. With the same features of time, and no other part, the best baseline "
            f"has at least half of the blend's gain in {'; '.join(half)} (not tested)."
        )
    if worse:
        notes.append(f"Features of time alone make the best baseline worse in {'; '.join(worse)} (not tested).")
    return notes


def class_notes(measured: Sequence[Measured]) -> list[str]:
    """Return where, by class of target, the intervals of what is added do not contain 0."""
    pairs = {
        "What the language model adds": lambda m: m.model_pair,
        "The blend − best baseline": lambda m: (m.blend, m.baseline),
    }
    notes = []
    for words, pair_of in pairs.items():
        found: dict[str, dict[str, list[str]]] = {}
        for m in measured:
            pair = pair_of(m)
            for name in CLASSES if pair else ():
                some = (m.rows["class"] == name).to_numpy()
                if some.sum() < FEWEST:
                    continue
                d = m.among(some).difference(*pair)
                side = "above 0" if d.low > 0 else "below 0" if d.high < 0 else ""
                found.setdefault(name, {}).setdefault(side, []).append(TITLES[m.name])
        said = [
            f"targets {name}: " + ", ".join(f"{side} in {'; '.join(sets)}" for side, sets in sides.items() if side)
            for name, sides in found.items()
            if any(sides)
        ]
        if said:
            notes.append(f"*{words}*, by class of target (not tested): {'. '.join(said)}.")
    return notes


def table_section(measured: Sequence[Measured], protocol: Protocol, aged: Sequence[Measured] = ()) -> dict[str, Any]:
    """Return the computed fields of the table's file; `aged` has the best baselines with features of time."""
    decided = judged(protocol, measured)
    timed = with_time(measured, aged)
    kept = {
        (d.data, d.ranker, d.against)
        for decisions in decided.values()
        for d in decisions
        if d.found.word in ("above", "below")
    }
    families = [family for family in protocol.families if family.name in decided]
    shown = [
        main_table(measured, kept),
        *(family_table(family, decided[family.name], protocol) for family in families),
        pooled_table(measured, decided, protocol.equivalence),
        *time_tables(timed),
        logs_table(measured),
        *map(class_table, measured),
    ]
    others = [*(seeds_table(m) for m in measured if m.seeds > 1), *map(all_rankers, measured)]
    return {
        "answer": table_answer(measured, protocol, decided),
        "notes": [
            log_sentence(measured),
            *finding_notes(protocol, decided),
            f"{FEW_TARGETS} ([60](experiments/60-interval-coverage.md)).",
            *carried_notes(measured, decided),
            POOLED,
            *class_notes(measured),
            *time_notes(timed),
        ],
        "tables": shown + others,
        "page": [{"table": n} for n in range(len(shown))],
        "picture": family_pictures(families, 1),
        "n": ", ".join(f"{m.gains.size[0]:,}" for m in measured) + " test examples",
        **made_at(measured),
    }


def made_at(measured: Sequence[Measured]) -> dict[str, str]:
    """Return the commits of the runs, and the date of the last one if git knows it."""
    commits = list(dict.fromkeys(commit for m in measured for commit in m.facts["commit"].split(", ")))
    git = ["git", "-C", str(ROOT), "show", "--no-patch", "--format=%cs", *commits]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    dates = {"date": max(done.stdout.split())} if done.returncode == 0 and done.stdout else {}
    return {"commit": ", ".join(commits)} | dates


def family_pictures(families: Sequence[Family], first: int) -> list[dict[str, Any]]:
    """Return the views of a picture with a group per family, whose tables begin at `first`."""
    column = "NDCG@10, over users and targets"
    return [{"table": first + n, "columns": [column], "title": f.name} for n, f in enumerate(families)]


def table_answer(measured: Sequence[Measured], protocol: Protocol, decided: dict[str, list[Decision]]) -> str:
    """Return the answer of the table in one sentence, which the index shows whole."""
    higher = [m for m in measured if m.mean(m.blend) > m.mean(m.baseline)]
    count = "every split" if len(higher) == len(measured) else f"{number(higher)} of {number(measured)} splits"
    best, model = (decided.get(family.name, []) for family in protocol.families[:2])
    return (
        f"The mean NDCG@10 of the blend is above that of the best baseline in {count}; the difference is "
        f"{significance(best)}; what the language model adds to the other parts is "
        f"{significance(model)}."
    )


def control_section(controls: Sequence[Measured], protocol: Protocol) -> dict[str, Any]:
    """Return the computed fields of the file on S-DPO beside as many steps of SFT."""
    decided = judged_controls(protocol, controls)
    pairs = (("s-dpo", "sft"), (MORE_SFT, "sft"), ("s-dpo", MORE_SFT))
    return {
        "answer": control_answer(controls, protocol),
        "tables": [
            control_table(controls, pairs, "NDCG@10 in full ranking, means over the seeds"),
            family_table(MORE, decided, protocol),
        ],
        "picture": [{"table": 0, "columns": [f"{a} − {b}"], "title": f"{a} − {b}"} for a, b in pairs],
    }


def control_answer(controls: Sequence[Measured], protocol: Protocol) -> str:
    """Return what S-DPO adds to as many steps of SFT, in two sentences."""
    found = by_finding(judged_controls(protocol, controls))
    same, others = found.pop("equivalent"), [name for sets in found.values() for name in sets]
    rest = f" On {'; '.join(others)} it was not shown to be equivalent." if others else ""
    return (
        "S-DPO with negatives from its reference at β = 1, whose optimum is that of supervised fine-tuning (SFT), is "
        f"equivalent to SFT for as many steps on the same examples within ±{protocol.equivalence:.0%} on "
        f"{number(same)} data sets{named(same)}."
        f"{rest}"
    )


def trial_section(measured: Sequence[Measured], trial: Trial, poor: Sequence[Measured] = ()) -> dict[str, Any] | None:
    """Return the computed fields of a trial's file; None if no data set has ranks of its arms.

    `poor` are the positive controls.
    """
    decided = judged(trial, measured)
    families = [family for family in trial.families if family.name in decided]
    if not families:
        return None
    there = [m for m in measured if {families[0].ranker, families[0].against} <= m.each.keys()]
    together = pooled_table(there, decided, trial.equivalence)
    tables = [
        arms_table(there, trial),
        *(family_table(family, decided[family.name], trial) for family in families),
        together,
        *(
            groups_table(there, f.ranker, f.against, f"{f.name}, by class of target and by training interactions")
            for f in families
        ),
        dose_table(there),
        logs_table(there),
        *([control_table(poor, POOR, "Positive control, validation examples")] if poor else []),
    ]
    absent = [TITLES[name] for name in trial.sets if name not in {m.name for m in there}]
    primary = families[0].name
    said = [trial_answer(families[0], decided[primary], trial)]
    said += [
        f"Over {sets.split()[0]} data sets together, which was not declared, the difference is {share} of the "
        f"control (p of ±{trial.equivalence:.0%}: {close})."
        for name, sets, share, _, _, close in together["rows"]
        if name == primary
    ]
    said.append(control_verdict(poor))
    return {
        "question": trial.question.strip(),
        "answer": " ".join(filter(None, said)),
        "notes": [
            log_sentence(there),
            *finding_notes(trial, decided),
            *carried_notes(measured, decided),
            *([f"Without ranks: {'; '.join(absent)}."] if absent else []),
            *poor_notes(poor),
            POOLED,
            f"Decided before the runs: {trial.decision.strip()}",
        ],
        "tables": tables,
        "picture": family_pictures(families, 1),
        "n": ", ".join(f"{m.gains.size[0]:,}" for m in there) + " test examples",
        **made_at(there),
    }


def poor_notes(controls: Sequence[Measured]) -> list[str]:
    """Return whether the positive controls won: the first on its data set, the second on the others."""
    if not controls:
        return ["The positive control has no figures here."]
    notes, verdicts = [], poor_verdicts(controls)
    first = [one for one in controls if one.name == FIRST_CONTROL]
    for one in first:
        declared, primary = (one.difference(*pair) for pair in POOR)
        notes.append(
            f"Positive control, a poor reference: on {TITLES[one.name]} its S-DPO − SFT, which was declared, is "
            f"{signed(declared)}, and its reward − second model in the blend is {signed(primary)}. "
            f"It {'won' if verdicts[0] else 'did not win'}."
        )
    others = [one for one in controls if one.name != FIRST_CONTROL]
    if others:
        gaps = [one.difference(*POOR[1]) for one in others]
        told = [f"{signed(gap)} on {TITLES[one.name]}" for one, gap in zip(others, gaps, strict=True)]
        notes.append(
            f"Second positive control, also with a poor reference, declared after the first: its reward − second "
            f"model in the blend is {'; '.join(told)}. It {'won' if verdicts[-1] else 'did not win'}."
        )
    if not verdicts[-1]:
        notes.append(
            "The trial had declared that a null is believed only if this control wins. The control could not win: "
            "the aligned policy is p / π_counts, which ranks worse alone, and a poor reference changes nothing of "
            "that. So it says nothing for or against an effect; the intervals say how large an effect can be."
        )
    return notes


def poor_verdicts(controls: Sequence[Measured]) -> list[bool]:
    """Return whether the first positive control won on its data set, and the second on most of the others."""
    verdicts, gaps = [], []
    for one in controls:
        if one.name == FIRST_CONTROL:
            verdicts.append(one.difference(*POOR[0]).low > 0)
        else:
            gaps.append(one.difference(*POOR[1]))
    if gaps:
        above = [gap for gap in gaps if gap.low > 0]
        verdicts.append(2 * len(above) > len(gaps))
    return verdicts


def control_verdict(controls: Sequence[Measured]) -> str:
    """Return a sentence on what a null of the trial means by its positive controls; "" without controls."""
    verdicts = poor_verdicts(controls)
    if not verdicts:
        return ""
    if verdicts[-1]:
        return "Its positive control won, so the trial can see an effect."
    which = "positive controls" if len(verdicts) > 1 else "positive control"
    return f"Its {which} did not win, and could not have."


def trial_answer(family: Family, decided: Sequence[Decision], trial: Trial) -> str:
    """Return the findings of the primary family in two sentences."""
    found = by_finding(decided)
    said = [
        f"{FINDINGS[finding]} on {number(sets)} split{'s' * (len(sets) > 1)}"
        for finding, sets in found.items()
        if sets
    ]
    none = len(found["equivalent"]) + len(found["below"]) == len(trial.sets)
    verdict = "is left open"
    if is_adopted(found, trial):
        verdict = "becomes a part of the presets"
    elif none:
        verdict = "is left out of the presets, and work on S-DPO for next items stops"
    return (
        f"The primary difference, *{family.name}*, is {' and '.join(said)}. By the rule that was declared before "
        f"the runs, the reward {verdict}."
    )


def trial_in_short(decided: Sequence[Decision], trial: Trial) -> str:
    """Return README's sentences on a trial, of its primary family: what was compared, the findings, what follows."""
    words = FINDINGS | {"equivalent": f"within ±{trial.equivalence:.0%}"}
    found = by_finding(decided)
    said = [f"{words[finding]} on {number(sets)}" for finding, sets in found.items() if sets]
    findings = " and ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)
    splits = f"of the {number(decided)} splits" if len(decided) > 1 else "split"
    verdict = f"The presets {'use' if is_adopted(found, trial) else 'do not use'} this reward."
    return f"{ASKED} The difference between the two is {findings} {splits}. {verdict}"


def is_adopted(found: Mapping[str, Sequence[str]], trial: Trial) -> bool:
    """Return True if, by the trial's rule, the reward becomes a part of the presets."""
    return 2 * len(found["above"]) > len(trial.sets) and not found["below"]


def arms_table(measured: Sequence[Measured], trial: Trial) -> Table:
    """Return the mean NDCG@10 of each arm on each data set."""
    rows = [
        [name, " ".join(answers.split()), *(f"{m.mean(name):.4f}" if name in m.each else "–" for m in measured)]
        for name, answers in trial.arms.items()
    ]
    columns = ["arm", "what it answers", *(TITLES[m.name] for m in measured)]
    return {"title": "NDCG@10 of the arms in full ranking, means over the seeds", "columns": columns, "rows": rows}


def dose_table(measured: Sequence[Measured]) -> Table:
    """Return what the alignments of each data set did, with seed 0."""
    keys = ("first loss", "last loss", "preferences in order", "KL", "minutes")
    rows = [
        [TITLES[m.name], name, *("–" if of.get(key) is None else f"{of[key]:.3g}" for key in keys)]
        for m in measured
        for name, of in m.facts.get("doses", {}).items()
    ]
    return {"title": "What the alignments did, seed 0", "columns": ["data", "alignment", *keys], "rows": rows}


def write_section(path: Path, computed: dict[str, Any], new: dict[str, Any]) -> None:
    """Write the computed fields of a file of results, and keep the others; `new` are those of a new file."""
    save((read_json(path) or new) | computed, path)


def main() -> None:
    """Measure the runs, then write the results and README's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="NAME=RUN,RUN,...", help="a data set and its runs, one per seed")
    parser.add_argument("--print", dest="is_printed", action="store_true", help="print all tables, and write nothing")
    arguments = parser.parse_args()
    for run in arguments.runs:
        name, is_given, folders = run.partition("=")
        if not is_given:
            parser.error(f"{run!r}: expected the name of a data set and its runs, NAME=RUN,RUN,...")
        paths = [Path(folder) for folder in folders.split(",")]
        if name.startswith("control-"):
            measure_control(name, paths, ("sft", "s-dpo", MORE_SFT))
        elif name.startswith("aged-"):
            measure_control(name, paths, ("blend",))
        elif name.startswith("poor-"):
            measure_control(name, paths, [*dict.fromkeys(ranker for pair in POOR for ranker in pair)])
        else:
            for seed, path in enumerate(paths):
                measure(f"{name}-{seed}" if seed else name, path)
    measured, controls, protocol = read_all(), read_controls("control"), read_protocol(PROTOCOL)
    table = table_section(measured, protocol, read_controls("aged"))
    control = control_section(controls, protocol)
    poor = read_controls("poor")
    trials = {name: trial_section(measured, read_trial(PROTOCOLS / f"{name}.yaml"), poor) for name in TRIALS}
    if arguments.is_printed:
        for shown in (table, control, *filter(None, trials.values())):
            for one in shown["tables"]:
                sys.stdout.write(f"{one['title']}:\n\n{markdown(one)}\n\n")
        return
    write_section(SECTION, table | {"commands": [*RUNS, *AGED, f"{MEASURED} \\\n    {WITH_AGED}"]}, {})
    write_section(CONTROL_SECTION, control, {})
    for name, section in trials.items():
        if section:
            machine = f"{platform.processor() or 'x86_64'}, one core"
            new = {"id": int(TRIALS[name].name[:2]), "title": TITLE, "group": "alignment", "status": "current"}
            new["machine"] = machine
            write_section(TRIALS[name], section | {"commands": COMMANDS}, new)
    readme = README.read_text(encoding="utf-8")
    begin, end = (readme.index(mark) for mark in MARKS)
    plan = read_trial(PROTOCOLS / "e5.yaml")
    primary = decide(plan, plan.families[0], [m.ranked for m in measured])
    aligned = trial_in_short(primary, plan) if primary else control_answer(controls, protocol)
    text = readme_block(measured, table, aligned)
    README.write_text(f"{readme[: begin + len(MARKS[0])]}\n{text}\n{readme[end:]}", encoding="utf-8")


def readme_block(measured: Sequence[Measured], table: dict[str, Any], aligned: str) -> str:
    """Return README's findings, the last on alignment. The rest is on the page Results."""
    sets = len({m.name.removesuffix("-log") for m in measured})
    main = table["tables"][0]
    best, gap = (main["columns"].index(name) for name in ("best baseline", "blend − best baseline"))
    gains = [as_number(row[gap].split()[0]) / as_number(row[best].split()[-1]) for row in main["rows"]]
    said = (
        f"We measured on {NUMBERS[sets]} data sets, in {NUMBERS[len(measured)]} splits, "
        f"by NDCG@10 in full ranking. {table['answer']} The difference is {min(gains):.0%} to "
        f"{max(gains):.0%} of the best baseline's value."
    )
    held = "[Results](docs/results.md) has the tests and the limits of these figures."
    return "\n\n".join([wrapped(said), wrapped(f"{aligned} {held}")])


def as_number(text: str) -> float:
    """Return a number of a table, which has a proper minus sign."""
    return float(text.replace("−", "-"))


if __name__ == "__main__":
    main()

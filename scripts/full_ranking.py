"""Write the page of full rankings, with a row per data set, from the ranks in finished runs.

`python scripts/full_ranking.py NAME=RUN ...` writes lab/results/ranks/NAME.parquet for each run, whose last ranker is
a blend, then the section of EXPERIMENTS.md and docs/results.md. Without runs it writes both from the files that are
there. NAME-1, NAME-2, … are other seeds of the data set NAME, and NAME-random has random weights.
Users and items are numbered in the files, so that no data set is passed on.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.evaluation import FULL_RANKING, Comparison, Evaluation, Interval, metrics_for, paired_difference
from prefrec.evaluation.predictions import ranks_of
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.score import fit_baselines, predict_full
from prefrec.runs.contents import METRICS
from prefrec_lab.ranks import evaluate_ranks, write_ranks

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "lab/results", ROOT / "docs/results.md", ROOT / "README.md"
MARKS = ("<!-- results -->", "<!-- /results -->")
SECTION = RESULTS / "54-full-ranking.json"
TITLES = {
    "movielens-100k": "MovieLens-100K, leave-last-out",
    "lastfm": "LastFM by date, leave-last-out",
    "goodreads": "Goodreads windows",
    "amazon-office": "Amazon Office windows",
    "amazon-book": "Amazon Book windows",
    "amazon-office-log": "Amazon Office, cut by time",
    "amazon-book-log": "Amazon Book, cut by time",
}
SEVERAL_SEEDS = ("movielens-100k", "lastfm", "goodreads")
COLUMNS = [
    "data", "rows (distinct targets)", "candidate lists", "best baseline", "item only",
    "blend without a language model", "with item-ID tokens", "tokens add", "blend − best baseline", "S-DPO − SFT",
]  # fmt: skip

SHOWN = [
    "data",
    "candidate lists",
    "best baseline",
    "blend without a language model",
    "with item-ID tokens",
    "tokens add",
]
"""Columns in README."""


@dataclass(frozen=True)
class Measured:
    """A data set's evaluation, and what else its row tells."""

    name: str
    facts: dict[str, Any]
    result: Evaluation

    @property
    def baseline(self) -> str:
        """The baseline with the highest NDCG@10."""
        return max(self.facts["baselines"], key=lambda name: self.mean(name))

    def mean(self, ranker: str) -> float:
        """NDCG@10 of a ranker."""
        return float(self.result.metrics[ranker]["ndcg@10"].mean)


def measure(name: str, folder: Path) -> None:
    """Write the ranks of a run's rankers, and the facts that they do not hold."""
    run = open_run(folder)
    data, section = run.data, run.recipe.evaluate
    entries = [run.entry(n) for n in run.plan.names]
    asked = [*entries, *(less for entry in entries for less in entry.without.values())]
    references = fit_baselines(data, section, run.recipe.seed)
    cache = folder / "predictions/full_catalogue"
    found = predict_full(data, section, references, asked, cache, seed=run.recipe.seed)
    known = set(data.known_interactions(section.split)["item_id"])
    coded = found.with_columns(
        pl.col(c).cast(pl.Categorical).to_physical().cast(pl.String) for c in ("user_id", "target")
    )
    codes = dict(zip(found["target"], coded["target"], strict=True))
    path = RESULTS / "ranks" / f"{name}.parquet"
    write_ranks(coded, {codes[i] for i in known if i in codes}, path)
    metrics = read_json(folder / METRICS)
    write_json(
        path.with_suffix(".json"),
        {
            "baselines": [r.name for r in references if r.name != "random"],
            "language_models": run.models,
            "blend": run.plan.names[-1],
            "items": len(data.catalogue),
            "verdict": metrics["evaluation"]["audit"]["verdict"],
            "leaks": metrics["evaluation"]["audit"]["leaks"],
            "commit": (read_json(folder / "environment.json") or {}).get("commit"),
        },
    )


def read(name: str) -> Measured:
    """Return the evaluation of a data set's ranks."""
    path = RESULTS / "ranks" / f"{name}.parquet"
    facts = read_json(path.with_suffix(".json"))
    first = evaluate_ranks(path, audit=FULL_RANKING, ks=[10])
    best = max(facts["baselines"], key=lambda n: first.metrics[n]["ndcg@10"].mean)
    blend, models = facts["blend"], facts["language_models"]
    without = f"{blend} without {models[-1]}"
    pairs = [(blend, without), (blend, best), (without, best), (models[-1], models[0])]
    pairs += [(blend, n) for n in first.metrics if n.startswith(f"{blend} without") and n != without]
    return Measured(name, facts, evaluate_ranks(path, audit=FULL_RANKING, ks=[10], compare=pairs))


def holm(measured: Sequence[Measured]) -> set[tuple[str, str, str]]:
    """Return (data, ranker, against) of the page's comparisons that stand after Holm's correction at 5%."""
    told = [(m.name, c) for m in measured for c in _told(m)]
    order = sorted(told, key=lambda pair: pair[1].p_value)
    kept: set[tuple[str, str, str]] = set()
    for step, (name, c) in enumerate(order):
        if c.p_value > 0.05 / (len(order) - step):
            break
        kept.add((name, c.ranker, c.against))
    return kept


def _told(m: Measured) -> list[Comparison]:
    blend, models = m.facts["blend"], m.facts["language_models"]
    pairs = [(blend, f"{blend} without {models[-1]}"), (blend, m.baseline), (models[-1], models[0])]
    return [c for c in m.result.comparisons if c.metric == "ndcg@10" and (c.ranker, c.against) in pairs]


def row(m: Measured, kept: set[tuple[str, str, str]]) -> list[str]:
    """Return the page's row of a data set."""
    blend, models = m.facts["blend"], m.facts["language_models"]

    def difference(ranker: str, against: str) -> str:
        c = m.result.difference(ranker, against, "ndcg@10")
        mark = " ✱" if (m.name, ranker, against) in kept else ""
        return signed(c) + mark

    lists = f"leak: {', '.join(m.facts['leaks'])}" if m.facts["leaks"] else "no leak found"
    without = f"{blend} without {models[-1]}"
    shown = {m.baseline: f"{m.baseline} {m.mean(m.baseline):.4f}"}
    shown |= {ranker: f"{m.mean(ranker):.4f}" for ranker in (without, blend)}
    best = max(shown, key=m.mean)
    shown[best] = f"**{shown[best]}**"
    return [
        TITLES[m.name],
        f"{m.result.n:,} ({m.result.items:,})",
        lists,
        shown[m.baseline],
        f"{m.mean('item only'):.4f}",
        shown[without],
        shown[blend],
        difference(blend, without),
        difference(blend, m.baseline),
        difference(models[-1], models[0]),
    ]


def signed(value: Interval) -> str:
    """Return a difference with its interval."""
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]".replace("-", "−")


def parts_table(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return what each part adds, a row a data set: the blend minus the blend without the part."""
    found: dict[str, dict[str, str]] = {}
    for m in measured:
        for c in m.result.comparisons:
            if c.metric == "ndcg@10" and c.against.startswith(f"{m.facts['blend']} without"):
                part = c.against.removeprefix(f"{m.facts['blend']} without ")
                found.setdefault(TITLES[m.name], {})[part] = signed(c)
    parts = list(dict.fromkeys(part for own in found.values() for part in own))
    return {
        "title": "What each part adds: the blend minus the blend without it, NDCG@10",
        "columns": ["data", *parts],
        "rows": [[data, *(own.get(part, "–") for part in parts)] for data, own in found.items()],
    }


def seeds_table(name: str) -> dict[str, Any]:
    """Return each seed's NDCG@10 and what the language model and S-DPO add, for the mean over the seeds, too.

    The last row is the control with random weights, if there is one.
    """
    first, folder = read(name), RESULTS / "ranks"
    paths = [folder / f"{name}.parquet", *sorted(folder.glob(f"{name}-[0-9]*.parquet"))]
    runs = [pl.read_parquet(path).sort("ranker", "row") for path in paths]
    control = [pl.read_parquet(path).sort("ranker", "row") for path in folder.glob(f"{name}-random.parquet")]
    told = _told(first)
    gain = metrics_for([10])["ndcg@10"]

    def values(run: pl.DataFrame, ranker: str) -> NDArray[np.float64]:
        return gain(*ranks_of(run.filter(ranker=ranker)))

    rows = []
    users, items = (runs[0].filter(ranker=first.baseline)[c].to_list() for c in ("user", "target"))
    each = [(f"seed {n}", [run]) for n, run in enumerate(runs)]
    for label, some in [*each, ("mean of the seeds", runs), ("random weights, seed 0", control)]:
        if not some:
            continue
        cells = [f"{np.mean([values(run, first.facts['blend']) for run in some]):.4f}"]
        for c in told:
            a, b = (np.mean([values(run, n) for run in some], axis=0) for n in (c.ranker, c.against))
            cells.append(signed(paired_difference(a, b, users, items)))
        rows.append([label, *cells])
    names = [f"{c.ranker} − {c.against}" for c in told]
    return {"title": f"{TITLES[name]}: NDCG@10 by seed", "columns": ["", "blend", *names], "rows": rows}


def all_rankers(m: Measured) -> dict[str, Any]:
    """Return NDCG@10 of all rankers of a data set: all rows, and each class among its own."""
    groups = [g for g in ("known among known", "new among new") if g in m.result.groups]
    rows = []
    for name in m.result.metrics:
        if " without " in name:
            continue
        cells = [m.result.metrics[name]["ndcg@10"]]
        cells += [m.result.groups[g].metrics[name]["ndcg@10"] for g in groups]
        rows.append([name, *(f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}]" for i in cells)])
    sizes = [f"{g}, n = {m.result.groups[g].n:,}" for g in groups]
    title = f"{TITLES[m.name]}: NDCG@10 over all {m.facts['items']:,} items. {m.facts['verdict']}"
    return {"title": title, "columns": ["ranker", f"all, n = {m.result.n:,}", *sizes], "rows": rows}


def main(runs: Sequence[str]) -> None:
    """Measure the runs, then write the section and the page."""
    for run in runs:
        name, folder = run.split("=", 1)
        measure(name, Path(folder))
    measured = [read(n) for n in TITLES if (RESULTS / "ranks" / f"{n}.parquet").is_file()]
    kept = holm(measured)
    table = {
        "title": "NDCG@10 in full ranking, all test examples",
        "columns": COLUMNS,
        "rows": [row(m, kept) for m in measured],
    }
    old = read_json(SECTION) or {}
    section = old | {
        "id": 54,
        "tables": [table, parts_table(measured), *map(all_rankers, measured), *map(seeds_table, SEVERAL_SEEDS)],
    }
    section.setdefault("title", "Full ranking on seven data sets")
    section.setdefault("machine", f"{platform.processor() or 'x86_64'}, one core")
    SECTION.write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(table, measured), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    begin, end = (readme.index(mark) for mark in MARKS)
    # docs/results.md names the leaks.
    short = [[line[COLUMNS.index(c)].partition(":")[0] for c in SHOWN] for line in [COLUMNS, *table["rows"]]]
    shown = markdown(short)
    README.write_text(readme[: begin + len(MARKS[0])] + f"\n{shown}\n" + readme[end:], encoding="utf-8")


def page(table: dict[str, Any], measured: Sequence[Measured]) -> str:
    """Return docs/results.md."""
    count = sum(len(_told(m)) for m in measured)
    return HEAD + markdown([table["columns"], *table["rows"]]) + TAIL.format(count=count)


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table, the first line of which is its head."""
    head, *rows = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


HEAD = """# Results

NDCG@10 in full ranking on all test examples; items that the user has seen before are left out. *Candidate lists* is
what the audit finds in sets of 20 uniform candidates for the same examples. If they leak, only full ranking counts.

"""
TAIL = """

- *Best baseline*: the best of popularity (all time, 30, 90 and 365 days), newest first, co-occurrence, item-kNN,
  window co-occurrence, title TF-IDF, the transition graph and item only.
- *Item only* ignores the user: a conditional logit on item features, learnt on these test examples.
- *Blend*: title TF-IDF, window co-occurrence, the transition graph and time features ([Blend](rankers/blend.md)).
  *Item-ID tokens*: a language model of four layers after SFT and S-DPO, with one token per item.
- 95% intervals are over users and targets. ✱ marks p < 0.05 after Holm's correction for the {count} differences of
  the page.
- One seed. Section 54 of [Experiments](experiments.md) has three for the first three sets, what each part adds,
  and the controls; `lab/results/54-full-ranking.json` all rankers; `lab/results/ranks` the rank of every row.
"""


if __name__ == "__main__":
    main(sys.argv[1:])

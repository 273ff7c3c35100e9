"""Write the page of full rankings, with a row per data set, from the ranks in finished runs.

`python scripts/full_ranking.py NAME=RUN ...` writes lab/results/ranks/NAME.parquet for each run, whose last ranker is
a blend, then the section of EXPERIMENTS.md and docs/results.md. Without runs it writes both from the files that are
there. NAME-1, NAME-2, … are other seeds of the data set NAME, and NAME-random has random weights.
`control-NAME=RUN,RUN,…` are runs, one per seed, that were also aligned by SFT on the rows of S-DPO (`MORE_SFT`).
Users and items are numbered in the files, so that no data set is passed on.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from prefrec.errors import DataError
from prefrec.evaluation import FULL_RANKING, Interval, PairedDifference, metrics_for
from prefrec.evaluation.intervals import Means, holm
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.evaluation.verdict import ITEM_ONLY
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.score import fit_baselines, predict_full
from prefrec.runs.contents import METRICS
from prefrec_lab.ranks import coded, evaluate_ranks, write_ranks

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "lab/results", ROOT / "docs/results.md", ROOT / "README.md"
MORE_SFT = "sft-more"
"""Name of the alignment with `loss: sft`, otherwise like S-DPO."""
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
COLUMNS = [
    "data", "rows (distinct targets)", "seeds", "candidate lists", "best baseline", "item only",
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
    """NDCG@10 of a data set's rankers on each test example, and what else its row shows.

    Attributes:
        name: of the data set.
        facts: what the ranks do not hold: baselines, language models, the blend, the audit.
        seeds: number of seeds.
        gains: ranker → NDCG@10 [B], the mean over the seeds.
    """

    name: str
    facts: dict[str, Any]
    seeds: int
    gains: Means

    @property
    def baseline(self) -> str:
        """The baseline with the highest NDCG@10."""
        return max(self.facts["baselines"], key=self.mean)

    @property
    def told(self) -> list[tuple[str, str]]:
        """Pairs (ranker, against) of the page."""
        blend, models = self.facts["blend"], self.facts["language_models"]
        return [(blend, f"{blend} without {models[-1]}"), (blend, self.baseline), (models[-1], models[0])]

    def mean(self, ranker: str) -> float:
        """NDCG@10 of a ranker."""
        return float(self.gains.mean(ranker).mean)

    def difference(self, ranker: str, against: str) -> PairedDifference:
        """The paired difference of two rankers in NDCG@10."""
        return self.gains.difference(ranker, against)


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
    numbers, codes = coded(found)
    path = RESULTS / "ranks" / f"{name}.parquet"
    write_ranks(numbers, {codes[i] for i in known if i in codes}, path)
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


def measure_control(name: str, folders: Sequence[Path]) -> None:
    """Write the ranks of SFT, S-DPO and `MORE_SFT` of several seeds; a ranker of the file is `NAME SEED`."""
    found = []
    for seed, folder in enumerate(folders):
        run = open_run(folder)
        entries = [run.entry(n) for n in ("sft", "s-dpo", MORE_SFT)]
        cache = folder / "predictions/full_catalogue"
        ranked = predict_full(run.data, run.recipe.evaluate, [], entries, cache, seed=run.recipe.seed)
        found.append(ranked.with_columns(pl.col("ranker") + f" {seed}"))
    numbers, _ = coded(pl.concat(found))
    write_ranks(numbers, (), RESULTS / "ranks" / f"{name}.parquet")


def control_table() -> dict[str, Any]:
    """Return what S-DPO adds to SFT, beside SFT for as many steps on the same rows; means over the seeds."""
    rows = []
    for name, title in TITLES.items():
        path = RESULTS / "ranks" / f"control-{name}.parquet"
        if not path.is_file():
            continue
        split = pl.read_parquet(path).with_columns(
            pl.col("ranker").str.split(" ").list.to_struct(fields=["ranker", "seed"])
        )
        runs = split.unnest("ranker").partition_by("seed")
        gains = means_of(ndcg_of(runs), runs[0])
        pairs = (("s-dpo", "sft"), (MORE_SFT, "sft"), ("s-dpo", MORE_SFT))
        rows.append([title, str(len(runs)), *(signed(gains.difference(*pair)) for pair in pairs)])
    columns = ["data", "seeds", "S-DPO − SFT", "more SFT − SFT", "S-DPO − more SFT"]
    return {"title": "S-DPO beside SFT for as many steps on the same 500 rows", "columns": columns, "rows": rows}


def read(name: str, seeds: Sequence[Path] = ()) -> Measured:
    """Return the NDCG@10 of a data set's rankers, over all seeds with ranks, or over the files `seeds`.

    Raise DataError if a baseline differs between seeds, because their test examples then differ.
    """
    folder = RESULTS / "ranks"
    paths = seeds or seed_files(name)
    facts = read_json(folder / f"{name}.json")
    runs = [pl.read_parquet(path) for path in paths]
    each = ndcg_of(runs)
    for n in {*facts["baselines"]} - {ITEM_ONLY}:  # whose folds depend on the seed
        if any(not np.array_equal(each[n][0], other) for other in each[n]):
            raise DataError(f"{name}: {n} differs between seeds; their test examples are not the same")
    return Measured(name, facts, len(runs), means_of(each, runs[0]))


def ndcg_of(runs: Sequence[pl.DataFrame]) -> dict[str, list[Floats]]:
    """Return ranker → NDCG@10 [B] of each seed, from ranks of the same examples in any order."""
    ndcg, ordered = metrics_for([10])["ndcg@10"], [run.sort("row") for run in runs]
    return {n: [ndcg(*ranks_of(run.filter(ranker=n))) for run in ordered] for n in runs[0]["ranker"].unique()}


def means_of(each: Mapping[str, Sequence[Floats]], run: pl.DataFrame) -> Means:
    """Return the means over the seeds of `ndcg_of`, with users and targets of the examples of a run."""
    asked = run.filter(ranker=run["ranker"][0]).sort("row")
    return Means({n: np.mean(v, axis=0) for n, v in each.items()}, asked["user"].to_list(), asked["target"].to_list())


def seed_files(name: str) -> list[Path]:
    """Return the files of ranks of a data set, one per seed."""
    folder = RESULTS / "ranks"
    return [folder / f"{name}.parquet", *sorted(folder.glob(f"{name}-[0-9]*.parquet"))]


def significant(measured: Sequence[Measured]) -> set[tuple[str, str, str]]:
    """Return (data, ranker, against) of the page's comparisons with p < 0.05 after Holm's correction."""
    told = [(m.name, *pair) for m in measured for pair in m.told]
    corrected = holm([m.difference(*pair).p_value for m in measured for pair in m.told])
    return {comparison for comparison, p in zip(told, corrected, strict=True) if p < 0.05}


def row(m: Measured, kept: set[tuple[str, str, str]]) -> list[str]:
    """Return the page's row of a data set."""
    blend, models = m.facts["blend"], m.facts["language_models"]
    without = f"{blend} without {models[-1]}"
    shown = {m.baseline: f"{m.baseline} {m.mean(m.baseline):.4f}"}
    shown |= {ranker: f"{m.mean(ranker):.4f}" for ranker in (without, blend)}
    best = max(shown, key=m.mean)
    shown[best] = f"**{shown[best]}**"
    return [
        TITLES[m.name],
        f"{m.gains.size[0]:,} ({m.gains.items:,})",
        str(m.seeds),
        f"leak: {', '.join(m.facts['leaks'])}" if m.facts["leaks"] else "no leak found",
        shown[m.baseline],
        f"{m.mean(ITEM_ONLY):.4f}",
        shown[without],
        shown[blend],
        *(signed(m.difference(*pair)) + (" ✱" if (m.name, *pair) in kept else "") for pair in m.told),
    ]


def signed(value: Interval) -> str:
    """Return a difference with its interval."""
    return f"{value.mean:+.4f} [{value.low:+.4f}, {value.high:+.4f}]".replace("-", "−")


def parts_table(measured: Sequence[Measured]) -> dict[str, Any]:
    """Return what each part adds, a row a data set: the blend minus the blend without the part."""
    found: dict[str, dict[str, str]] = {}
    for m in measured:
        blend = m.facts["blend"]
        for less in m.gains.values:
            if less.startswith(f"{blend} without "):
                part = less.removeprefix(f"{blend} without ")
                found.setdefault(TITLES[m.name], {})[part] = signed(m.difference(blend, less))
    parts = sorted({part for own in found.values() for part in own})
    return {
        "title": "What each part adds: the blend minus the blend without it, NDCG@10",
        "columns": ["data", *parts],
        "rows": [[data, *(own.get(part, "–") for part in parts)] for data, own in found.items()],
    }


def seeds_table(m: Measured) -> dict[str, Any]:
    """Return each seed's NDCG@10 and what the language model and S-DPO add, and for their mean.

    The last row is the control with random weights, if there is one.
    """
    each = [(f"seed {n}", read(m.name, [path])) for n, path in enumerate(seed_files(m.name))]
    control = [RESULTS / "ranks" / f"{m.name}-random.parquet"]
    random = [("random weights, seed 0", read(m.name, control))] if control[0].is_file() else []
    rows = [
        [label, f"{one.mean(m.facts['blend']):.4f}", *(signed(one.difference(*pair)) for pair in m.told)]
        for label, one in [*each, ("mean of the seeds", m), *random]
    ]
    names = [f"{ranker} − {against}" for ranker, against in m.told]
    return {"title": f"{TITLES[m.name]}: NDCG@10 by seed", "columns": ["", "blend", *names], "rows": rows}


def all_rankers(m: Measured) -> dict[str, Any]:
    """Return NDCG@10 of all rankers of a data set with seed 0: all rows, and each class among its own."""
    result = evaluate_ranks(seed_files(m.name)[0], audit=FULL_RANKING, ks=[10])
    groups = [g for g in ("known among known", "new among new") if g in result.groups]
    rows = []
    for name in result.metrics:
        if " without " in name:
            continue
        cells = [result.metrics[name]["ndcg@10"]]
        cells += [result.groups[g].metrics[name]["ndcg@10"] for g in groups]
        rows.append([name, *(f"{i.mean:.4f} [{i.low:.4f}, {i.high:.4f}]" for i in cells)])
    sizes = [f"{g}, n = {result.groups[g].n:,}" for g in groups]
    title = f"{TITLES[m.name]}: NDCG@10 over all {m.facts['items']:,} items. {m.facts['verdict']}"
    return {"title": title, "columns": ["ranker", f"all, n = {result.n:,}", *sizes], "rows": rows}


def main(runs: Sequence[str]) -> None:
    """Measure the runs, then write the section and the page."""
    for run in runs:
        name, folder = run.split("=", 1)
        if name.startswith("control-"):
            measure_control(name, [Path(one) for one in folder.split(",")])
        else:
            measure(name, Path(folder))
    measured = [read(n) for n in TITLES if (RESULTS / "ranks" / f"{n}.parquet").is_file()]
    kept = significant(measured)
    table = {
        "title": "NDCG@10 in full ranking, all test examples",
        "columns": COLUMNS,
        "rows": [row(m, kept) for m in measured],
    }
    old = read_json(SECTION) or {}
    section = old | {
        "id": 54,
        "tables": [
            table,
            parts_table(measured),
            control_table(),
            *map(all_rankers, measured),
            *(seeds_table(m) for m in measured if m.seeds > 1),
        ],
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
    count = sum(len(m.told) for m in measured)
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
- S-DPO − SFT is significant on one set. SFT for as many steps on the same rows gives the same there, so it is more
  training and not the preferences.
- Figures are means over the seeds of the language model. Section 54 of [Experiments](experiments.md) has what each
  part adds, and the controls; `lab/results/54-full-ranking.json` each seed and all rankers; `lab/results/ranks` the
  rank of every row.
"""


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write the page of full rankings, with a row per data set, from the ranks in finished runs.

`python scripts/full_ranking.py NAME=RUN ...` writes lab/results/ranks/NAME.parquet for each run, whose last ranker is
a blend, then the section of EXPERIMENTS.md and docs/results.md. Without runs it writes both from the files that are
there. NAME-1, NAME-2, … are other seeds of the data set NAME, and NAME-random has random weights.
`control-NAME=RUN,RUN,…` are runs, one per seed, that were also aligned by SFT on the rows of S-DPO (`MORE_SFT`).
Users and items are numbered in the files, so that no data set is passed on. What is significant is decided by the
rules in lab/protocol/table.yaml. `python scripts/full_ranking.py --print` prints these decisions and the tables by
class of target, and writes nothing.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.errors import DataError
from prefrec.evaluation import FULL_RANKING, Interval, PairedDifference, metrics_for
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.evaluation.targets import CLASSES, COUNTS
from prefrec.evaluation.verdict import ITEM_ONLY
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.score import fit_baselines, predict_full
from prefrec.runs.contents import METRICS
from prefrec_lab.protocol import Decision, Ranked, decide, read_protocol
from prefrec_lab.ranks import coded, evaluate_ranks, read_ranks, row_facts, write_ranks

ROOT = Path(__file__).parent.parent
RESULTS, PAGE, README = ROOT / "lab/results", ROOT / "docs/results.md", ROOT / "README.md"
MORE_SFT = "sft-more"
"""Name of the alignment with `loss: sft`, otherwise like S-DPO."""
MARKS = ("<!-- results -->", "<!-- /results -->")
SECTION = RESULTS / "54-full-ranking.json"
PROTOCOL = ROOT / "lab/protocol/table.yaml"
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
    "data", "examples (distinct targets)", "seeds", "candidate sets", "best baseline", "item only",
    "blend without a language model", "with item-ID tokens", "tokens add", "blend − best baseline", "S-DPO − SFT",
]  # fmt: skip

SHOWN = ["data", "best baseline", "with item-ID tokens", "blend − best baseline", "tokens add"]
"""Columns in README."""
NAMED = {"with item-ID tokens": "blend with a language model", "tokens add": "the language model adds"}
"""Column → its name in README."""


@dataclass(frozen=True)
class Measured:
    """NDCG@10 of a data set's rankers on each test example, and what else its row shows.

    Attributes:
        name: of the data set.
        facts: what the ranks do not hold: baselines, language models, the blend, the audit.
        each: ranker → NDCG@10 [K, B] with each of K seeds.
        rows: a row per test example, with the columns of ranks that do not depend on the ranker.
    """

    name: str
    facts: dict[str, Any]
    each: dict[str, Floats]
    rows: pl.DataFrame

    @cached_property
    def gains(self) -> Means:
        """Means over rows of NDCG@10 [B], which is the mean over the seeds."""
        return self.among(np.ones(len(self.rows), dtype=np.bool_))

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return len(next(iter(self.each.values())))

    def among(self, some: NDArray[np.bool_]) -> Means:
        """Return the means over some of the rows."""
        rows, values = self.rows.filter(some), {n: v.mean(axis=0)[some] for n, v in self.each.items()}
        return Means(values, rows["user"].to_list(), rows["target"].to_list())

    @property
    def without(self) -> str:
        """The blend without its language model."""
        return f"{self.facts['blend']} without {self.facts['language_models'][-1]}"

    @property
    def ranked(self) -> Ranked:
        """The values that the rules of the table are applied to."""
        roles = {"best baseline": self.baseline, "blend": self.facts["blend"], "blend without s-dpo": self.without}
        return Ranked(self.name, self.each, self.rows["user"].to_list(), self.rows["target"].to_list(), roles)

    @property
    def baseline(self) -> str:
        """The baseline with the highest NDCG@10."""
        return max(self.facts["baselines"], key=self.mean)

    @property
    def told(self) -> list[tuple[str, str]]:
        """Pairs (ranker, against) of the page."""
        blend, models = self.facts["blend"], self.facts["language_models"]
        return [(blend, self.without), (blend, self.baseline), (models[-1], models[0])]

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
    asked = [*entries, *(less for entry in entries for less in entry.ablations)]
    references = fit_baselines(data, section, run.recipe.seed)
    cache = folder / "predictions/full_catalogue"
    found = predict_full(data, section, references, asked, cache, seed=run.recipe.seed)
    path = RESULTS / "ranks" / f"{name}.parquet"
    write_ranks(coded(found), row_facts(data, data.some(section.split, section.rows), section.split), path)
    audit = read_json(folder / METRICS)["evaluation"]["audit"]
    earlier = read_json(path.with_suffix(".json"))
    commit = read_json(folder / "environment.json").get("commit")
    is_again = bool(earlier) and earlier["commit"] != commit
    write_json(
        path.with_suffix(".json"),
        {
            "baselines": [r.name for r in references if r.name != "random"],
            "language_models": run.models,
            "blend": run.plan.names[-1],
            "items": len(data.catalogue),
            "verdict": audit["verdict"],
            "leaks": audit["leaks"],
            "solved_without_the_user": audit.get("solved_without_the_user", []),
            "evaluations": earlier.get("evaluations", 1) + is_again,
            "commit": commit,
        },
    )


def measure_control(name: str, folders: Sequence[Path]) -> None:
    """Write the ranks of SFT, S-DPO and `MORE_SFT` of several seeds; a ranker of the file is `NAME SEED`."""
    found = []
    facts = pl.DataFrame()
    for seed, folder in enumerate(folders):
        run = open_run(folder)
        data, section = run.data, run.recipe.evaluate
        facts = row_facts(data, data.some(section.split, section.rows), section.split)
        entries = [run.entry(n) for n in ("sft", "s-dpo", MORE_SFT)]
        cache = folder / "predictions/full_catalogue"
        ranked = predict_full(data, section, [], entries, cache, seed=run.recipe.seed)
        found.append(ranked.with_columns(pl.col("ranker") + f" {seed}"))
    write_ranks(coded(pl.concat(found)), facts, RESULTS / "ranks" / f"{name}.parquet")


def read_controls() -> list[Measured]:
    """Return the NDCG@10 of the controls, for the data sets that have one."""
    found = []
    for name in TITLES:
        path = RESULTS / "ranks" / f"control-{name}.parquet"
        if path.is_file():
            names = pl.col("ranker").str.split(" ").list.to_struct(fields=["ranker", "seed"])
            runs = read_ranks(path).with_columns(names).unnest("ranker").partition_by("seed")
            found.append(Measured(name, {}, ndcg_of(runs), rows_of(runs[0])))
    return found


def control_table(controls: Sequence[Measured]) -> dict[str, Any]:
    """Return what S-DPO adds to SFT, beside SFT for as many steps on the same rows; means over the seeds."""
    pairs = (("s-dpo", "sft"), (MORE_SFT, "sft"), ("s-dpo", MORE_SFT))
    rows = [
        [TITLES[one.name], str(one.seeds), *(signed(one.difference(*pair)) for pair in pairs)] for one in controls
    ]
    columns = ["data", "seeds", "S-DPO − SFT", "more SFT − SFT", "S-DPO − more SFT"]
    return {"title": "S-DPO beside SFT for as many steps on the same 500 rows", "columns": columns, "rows": rows}


def read(name: str, seeds: Sequence[Path] = ()) -> Measured:
    """Return the NDCG@10 of a data set's rankers, over all seeds with ranks, or over the files `seeds`.

    Raise DataError if a baseline differs between seeds, because their test examples then differ.
    """
    folder = RESULTS / "ranks"
    paths = seeds or seed_files(name)
    facts = read_json(folder / f"{name}.json")
    runs = [read_ranks(path) for path in paths]
    each = ndcg_of(runs)
    for n in {*facts["baselines"]} - {ITEM_ONLY}:  # whose folds depend on the seed
        if any(not np.array_equal(each[n][0], other) for other in each[n]):
            raise DataError(f"{name}: {n} differs between seeds; their test examples are not the same")
    return Measured(name, facts, each, rows_of(runs[0]))


def ndcg_of(runs: Sequence[pl.DataFrame]) -> dict[str, Floats]:
    """Return ranker → NDCG@10 [K, B] of each of K seeds, from ranks of the same examples in any order."""
    ndcg, ordered = metrics_for([10])["ndcg@10"], [run.sort("row") for run in runs]
    return {
        n: np.array([ndcg(*ranks_of(run.filter(ranker=n))) for run in ordered]) for n in runs[0]["ranker"].unique()
    }


def rows_of(ranks: pl.DataFrame) -> pl.DataFrame:
    """Return a row per test example, with the columns that do not depend on the ranker."""
    asked = ranks.filter(ranker=ranks["ranker"][0]).sort("row")
    return asked.select("user", "target", "class", "trained", "known", "day")


def seed_files(name: str) -> list[Path]:
    """Return the files of ranks of a data set, one per seed."""
    folder = RESULTS / "ranks"
    return [folder / f"{name}.parquet", *sorted(folder.glob(f"{name}-[0-9]*.parquet"))]


def decisions(measured: Sequence[Measured], controls: Sequence[Measured]) -> list[Decision]:
    """Return what the rules of the table say of each difference of their families."""
    protocol = read_protocol(PROTOCOL)
    ranked = {"table": [m.ranked for m in measured]}
    ranked["control"] = [
        Ranked(c.name, c.each, c.rows["user"].to_list(), c.rows["target"].to_list(), {}) for c in controls
    ]
    return [one for family in protocol.families for one in decide(protocol, family, ranked[family.ranks])]


def significant(decided: Sequence[Decision]) -> set[tuple[str, str, str]]:
    """Return (data, ranker, against) of the differences that are significant by the rules of the table."""
    level = read_protocol(PROTOCOL).level
    return {(d.data, d.ranker, d.against) for d in decided if d.finding(level) in ("above", "below")}


def decisions_table(decided: Sequence[Decision], measured: Sequence[Measured]) -> dict[str, Any]:
    """Return each difference with both of its intervals, its p-values and what the rules say."""
    protocol = read_protocol(PROTOCOL)
    evaluations = {m.name: m.facts.get("evaluations", 1) for m in measured}
    rows = [
        [
            f"{d.family}: {TITLES[d.data]}",
            f"{d.difference.n:,} ({d.difference.items:,})",
            str(d.seeds),
            signed(d.difference),
            ends(d.difference.user_low, d.difference.user_high),
            *(f"{p:.4f}" for p in (d.p, d.adjusted, d.adjusted_equivalent)),
            d.finding(protocol.level),
            str(evaluations[d.data]),
        ]
        for d in decided
    ]
    columns = [
        "family: data", "rows (distinct targets)", "seeds", "NDCG@10, over users and targets", "over users alone",
        "p", "p after Holm", f"p of ±{protocol.equivalence:.0%} after Holm", "finding", "evaluations of test rows",
    ]  # fmt: skip
    return {"title": "Differences by the rules of lab/protocol/table.yaml", "columns": columns, "rows": rows}


def class_table(m: Measured) -> dict[str, Any]:
    """Return the blend beside the best baseline and beside itself without the language model, by class of target.

    A class is a condition on the target: the table shows where a difference comes from, and is no test of it.
    """
    blend = m.facts["blend"]
    known = m.rows["known"].to_numpy()
    groups = {"all": np.ones(len(m.rows), dtype=np.bool_)}
    groups |= {name: (m.rows["class"] == name).to_numpy() for name in CLASSES}
    least = [*COUNTS.values(), np.inf]
    for (name, low), high in zip(COUNTS.items(), least[1:], strict=True):
        groups[f"{name} interactions"] = (known >= low) & (known < high)
    rows = []
    for name, some in groups.items():
        if not some.any():
            continue
        means = m.among(some)
        values = [f"{means.mean(n).mean:.4f}" for n in (m.baseline, m.without, blend)]
        differences = [means.difference(blend, against) for against in (m.without, m.baseline)]
        both = [text for d in differences for text in (signed(d), ends(d.user_low, d.user_high))]
        rows.append([name, f"{means.size[0]:,} ({means.items:,})", *values, *both])
    columns = [
        "target", "rows (distinct targets)", m.baseline, m.without, blend, "model adds", "over users alone",
        f"{blend} − {m.baseline}", "over users alone ",
    ]  # fmt: skip
    return {"title": f"{TITLES[m.name]}: NDCG@10 by class of target", "columns": columns, "rows": rows}


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
        found_by_audit(m.facts),
        shown[m.baseline],
        f"{m.mean(ITEM_ONLY):.4f}",
        shown[without],
        shown[blend],
        *(signed(m.difference(*pair)) + (" ✱" if (m.name, *pair) in kept else "") for pair in m.told),
    ]


def found_by_audit(facts: Mapping[str, Any]) -> str:
    """Return what the audit found in candidate sets, in a few words."""
    kinds = {"leak": facts["leaks"], "solved without the user": facts.get("solved_without_the_user", [])}
    return "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds.items() if names) or "no leak found"


def signed(value: Interval) -> str:
    """Return a difference with its interval."""
    return f"{value.mean:+.4f} {ends(value.low, value.high)}".replace("-", "−")


def ends(low: float | None, high: float | None) -> str:
    """Return the ends of the interval of a difference; a dash if there is none."""
    if low is None or high is None or np.isnan(low):
        return "–"
    return f"[{low:+.4f}, {high:+.4f}]".replace("-", "−")


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


def read_all() -> tuple[list[Measured], list[Measured]]:
    """Return the data sets with ranks, and their controls."""
    return [read(n) for n in TITLES if (RESULTS / "ranks" / f"{n}.parquet").is_file()], read_controls()


def printed() -> str:
    """Return the decisions, and the tables by class, as Markdown."""
    measured, controls = read_all()
    tables = [decisions_table(decisions(measured, controls), measured), *map(class_table, measured)]
    return "\n\n".join(f"{t['title']}:\n\n{markdown([t['columns'], *t['rows']])}" for t in tables) + "\n"


def main(runs: Sequence[str]) -> None:
    """Measure the runs, then write the section and the page."""
    if list(runs) == ["--print"]:
        sys.stdout.write(printed())
        return
    for run in runs:
        name, folder = run.split("=", 1)
        if name.startswith("control-"):
            measure_control(name, [Path(one) for one in folder.split(",")])
        else:
            measure(name, Path(folder))
    measured, controls = read_all()
    decided = decisions(measured, controls)
    kept = significant(decided)
    table = {
        "title": "NDCG@10 in full ranking",
        "columns": COLUMNS,
        "rows": [row(m, kept) for m in measured],
    }
    old = read_json(SECTION) or {}
    section = old | {
        "id": 54,
        "tables": [
            table,
            parts_table(measured),
            control_table(controls),
            *map(all_rankers, measured),
            *(seeds_table(m) for m in measured if m.seeds > 1),
            decisions_table(decided, measured),
            *map(class_table, measured),
        ],
    }
    section.setdefault("title", "Full ranking on seven splits of five data sets")
    section.setdefault("machine", f"{platform.processor() or 'x86_64'}, one core")
    SECTION.write_text(json.dumps(section, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    PAGE.write_text(page(table), encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    begin, end = (readme.index(mark) for mark in MARKS)
    rows = [[line[COLUMNS.index(c)].replace("**", "") for c in SHOWN] for line in table["rows"]]
    shown = markdown([[NAMED.get(c, c) for c in SHOWN], *rows])
    README.write_text(readme[: begin + len(MARKS[0])] + f"\n{shown}\n" + readme[end:], encoding="utf-8")


def page(table: dict[str, Any]) -> str:
    """Return docs/results.md."""
    return HEAD + markdown([table["columns"], *table["rows"]]) + TAIL


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Return a table, the first line of which is its head."""
    head, *rows = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


HEAD = """# Results

Each row is a split of a data set: five data sets, seven splits. The figures are NDCG@10 in full ranking: the target
is ranked among all items that the user has not seen before. *Candidate sets* says what the audit finds in sets of 20
uniform candidates for the same examples; where these can be solved without the user, only full ranking measures a
recommender.

"""
TAIL = """

- *Best baseline*: the best on these test examples of popularity (all time, 30, 90 and 365 days), newest first,
  co-occurrence, item-kNN, window co-occurrence, title TF-IDF, the transition graph and item only. Choosing it on test
  examples favours the baseline.
- *Item only* ignores the user: a conditional logit on item features, learnt by cross-fitting on these test examples.
- *Blend*: title TF-IDF, window co-occurrence, the transition graph and time features ([Blend](rankers.md#blend)).
  *Item-ID tokens*: four of the thirty layers of SmolLM2-135M after SFT and S-DPO, with one token per item.
- 95% intervals are over users and targets (a jackknife of both). ✱ marks a difference that is significant by the
  rules of `lab/protocol/table.yaml`: a wild bootstrap over targets, p < 0.05 after Holm's correction over the data
  sets. These rules were declared after the runs.
- Figures are means over three seeds of the language model. The baselines are the same in each seed.
- All test examples are ranked, except on Amazon Book cut by time, where 5,000 of 8,749 were drawn
  (`data.max_test_rows`).

## What the table does and does not show

- **The blend is significantly better than the best baseline in one row**, Amazon Book windows, although its mean is
  above the best baseline's in every row.
- **The language model adds something significant in one row**, MovieLens-100K.
- **The language model has read less than its competitors.** For a test example, the baselines count the interactions
  of the validation period, and the language model was trained before it. In the Amazon rows 4% to 36% of the targets
  occur in the validation period and not in training. There the blend scores lower with the model than without it, so
  these rows do not say what a language model adds when all parts have read the same log. [`refit:
  true`](train.md#refit) came after these runs and lets all parts read it.
- **The blend's gain on Amazon comes from new items and recency.** On targets that occur in training, the blend is
  worse than the best baseline in both Amazon splits by windows.
- **S-DPO is equivalent to more SFT** within ±3%, on Amazon Book cut by time and Goodreads, the two data sets where
  SFT also continued for as many steps on the same examples. Negatives came from the reference at β = 1, where the
  optimum of S-DPO is that of SFT, so it does not test S-DPO with other negatives.
- **The recipes were tuned by hand.** Those of Amazon Office changed three times after its test examples had first
  been evaluated, the others two or three times. Settings were chosen on validation examples.

[Section 54 of the experiments](../EXPERIMENTS.md#section-54) has what each part adds, and the controls.
`lab/results/54-full-ranking.json` has each seed and all rankers, and `lab/results/ranks` the rank of every row.
"""


if __name__ == "__main__":
    main(sys.argv[1:])

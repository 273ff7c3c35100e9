"""Tables from the ranks in lab/results/ranks, for `prefrec_lab.trials.full_ranking`.

A file NAME.parquet has the rank of the target of each test example by each ranker, and NAME.json what the ranks do
not hold. NAME-1, NAME-2, … are other seeds of the data set NAME, and NAME-random has random weights.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import log_softmax

from prefrec.errors import DataError
from prefrec.evaluation import FULL_RANKING, Interval, PairedDifference, metrics_for
from prefrec.evaluation.intervals import Means
from prefrec.evaluation.metrics import Floats
from prefrec.evaluation.predictions import ranks_of
from prefrec.evaluation.targets import CLASSES, COUNTS
from prefrec.evaluation.verdict import ITEM_ONLY, LEAST_POPULAR, TITLE_LENGTH
from prefrec.files import read_json
from prefrec_lab.findings import Tested
from prefrec_lab.pooled import by_data, pool, relative
from prefrec_lab.protocol import Decision, Family, Protocol, Ranked
from prefrec_lab.ranks import evaluate_ranks, read_ranks
from prefrec_lab.results import RANKS, Table

TITLES = {
    "movielens-100k": "MovieLens-100K, leave-last-out",
    "lastfm": "LastFM by date, leave-last-out",
    "goodreads": "Goodreads windows",
    "amazon-office": "Amazon Office windows",
    "amazon-book": "Amazon Book windows",
    "amazon-office-log": "Amazon Office, cut by time",
    "amazon-book-log": "Amazon Book, cut by time",
}
WITH_MODEL = ("sequential-tower-sft", "sequential-tower")
"""The rankers of lab/protocol/table.yaml whose difference is what a language model adds."""
WITH_TIME = "with features of time"
"""The best baseline in a blend whose only other features are those of time."""
BOTH = "training and validation"
OF_ITEMS = (LEAST_POPULAR, TITLE_LENGTH, ITEM_ONLY)
"""Rules of the audit that know the properties of items."""


@dataclass(frozen=True, eq=False)
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
    def blend(self) -> str:
        """The blend of the table."""
        return str(self.facts["blend"])

    @property
    def model_pair(self) -> tuple[str, str] | None:
        """The rankers with and without a language model; None if they have no ranks."""
        return WITH_MODEL if {*WITH_MODEL} <= self.each.keys() else None

    @property
    def baseline(self) -> str:
        """The baseline with the highest NDCG@10, sequential models included."""
        return max([*self.facts["baselines"], *self.facts.get("sequential", [])], key=self.mean)

    @property
    def ranked(self) -> Ranked:
        """The values that the rules of the table are applied to."""
        roles = {"best baseline": self.baseline}
        return Ranked(self.name, self.each, self.rows["user"].to_list(), self.rows["target"].to_list(), roles)

    @property
    def ranked_alone(self) -> Ranked:
        """The same for a control, which has no roles."""
        return Ranked(self.name, self.each, self.rows["user"].to_list(), self.rows["target"].to_list(), {})

    def mean(self, ranker: str) -> float:
        """NDCG@10 of a ranker."""
        return float(self.gains.mean(ranker).mean)

    def difference(self, ranker: str, against: str) -> PairedDifference:
        """Return the paired difference of two rankers in NDCG@10."""
        return self.gains.difference(ranker, against)


def read_all() -> list[Measured]:
    """Return the data sets with ranks."""
    return [read(name) for name in TITLES if (RANKS / f"{name}.parquet").is_file()]


def read(name: str, seeds: Sequence[Path] = ()) -> Measured:
    """Return the NDCG@10 of a data set's rankers, over all seeds with ranks, or over the files `seeds`.

    Seeds with other rankers than the first are of earlier runs, and are left out with a note. Raise DataError if the
    test examples differ between seeds.
    """
    facts = read_json(RANKS / f"{name}.json")
    runs = same_runs(seeds or seed_files(name), facts["blend"])
    first, *others = runs
    rows = rows_of(runs[first])
    for path in others:
        if not rows_of(runs[path]).equals(rows):
            raise DataError(f"{path}: its test examples are not those of {first.name}")
    commits = [read_json(path.with_suffix(".json"))["commit"][:7] for path in runs]
    facts["commit"] = ", ".join(dict.fromkeys(commits))
    return Measured(name, facts, ndcg_of([*runs.values()], facts["blend"]), rows)


def same_runs(paths: Sequence[Path], blend: str) -> dict[Path, pl.DataFrame]:
    """Return the ranks of the first file, and of those with the same rankers; the others get a note."""
    runs = {path: read_ranks(path) for path in paths}
    wanted = rankers_of(runs[paths[0]], blend)
    for path, run in runs.items():
        if rankers_of(run, blend) != wanted:
            sys.stderr.write(f"{path.name} is left out: its rankers are not those of {paths[0].name}\n")
    return {path: run for path, run in runs.items() if rankers_of(run, blend) == wanted}


def rankers_of(ranks: pl.DataFrame, blend: str) -> set[str]:
    """Return the rankers of a file, but the blend without a part, which it may have left out with another seed."""
    return {name for name in ranks["ranker"].unique() if not name.startswith(f"{blend} without ")}


def read_controls(kind: str) -> list[Measured]:
    """Return the NDCG@10 in the files KIND-NAME.parquet, in which rankers are named `NAME SEED`."""
    found = []
    for name in TITLES:
        path = RANKS / f"{kind}-{name}.parquet"
        if path.is_file():
            names = pl.col("ranker").str.split(" ").list.to_struct(fields=["ranker", "seed"])
            runs = read_ranks(path).with_columns(names).unnest("ranker").partition_by("seed")
            found.append(Measured(name, {}, ndcg_of(runs), rows_of(runs[0])))
    return found


def ndcg_of(runs: Sequence[pl.DataFrame], blend: str = "") -> dict[str, Floats]:
    """Return ranker → NDCG@10 [K, B] of each of K seeds, from ranks of the same examples in any order.

    If the blend has left out a part with some seeds, the blend without that part is the whole one there.
    """
    ndcg, ordered = metrics_for([10])["ndcg@10"], [run.sort("row") for run in runs]
    names = pl.concat(run.select("ranker") for run in runs)["ranker"].unique(maintain_order=True)

    def values(run: pl.DataFrame, name: str) -> Floats:
        own = run.filter(ranker=name)
        if own.is_empty() and blend and name.startswith(f"{blend} without "):
            own = run.filter(ranker=blend)
        return ndcg(*ranks_of(own))

    return {name: np.array([values(run, name) for run in ordered]) for name in names}


def rows_of(ranks: pl.DataFrame) -> pl.DataFrame:
    """Return a row per test example, with the columns that do not depend on the ranker."""
    first = ranks.filter(ranker=ranks["ranker"][0]).sort("row")
    return first.select("user", "target", "class", "trained", "known", "day")


def seed_files(name: str) -> list[Path]:
    """Return the files of ranks of a data set, one per seed."""
    return [RANKS / f"{name}.parquet", *sorted(RANKS.glob(f"{name}-[0-9]*.parquet"))]


def main_table(measured: Sequence[Measured], kept: set[tuple[str, str, str]]) -> Table:
    """Return a row per data set; `kept` are the significant differences (data, ranker, against)."""
    columns = [
        "data", "examples (distinct targets)", "seeds", "candidate sets", "best baseline", "item only",
        "without a language model", "with a language model", "the language model adds", "blend",
        "blend − best baseline",
    ]  # fmt: skip
    return {"title": "NDCG@10 in full ranking", "columns": columns, "rows": [_row(m, kept) for m in measured]}


def _row(m: Measured, kept: set[tuple[str, str, str]]) -> list[str]:
    def gain(ranker: str, against: str) -> str:
        return signed(m.difference(ranker, against)) + (" ✱" if (m.name, ranker, against) in kept else "")

    pair = m.model_pair
    best = max((m.baseline, m.blend, *(pair or ())), key=m.mean)
    shown = {name: f"{m.mean(name):.4f}" for name in (m.baseline, m.blend, *(pair or ()))}
    shown[m.baseline] = f"{m.baseline} {shown[m.baseline]}"
    shown[best] = f"**{shown[best]}**"
    return [
        TITLES[m.name],
        f"{m.gains.size[0]:,} ({m.gains.items:,})",
        str(m.seeds),
        found_by_audit(m.facts),
        shown[m.baseline],
        f"{m.mean(ITEM_ONLY):.4f}",
        *((shown[pair[1]], shown[pair[0]], gain(*pair)) if pair else ("–", "–", "–")),
        shown[m.blend],
        gain(m.blend, m.baseline),
    ]


def found_by_audit(facts: Mapping[str, Any]) -> str:
    """Return what the audit found in candidate sets, in a few words."""
    # Audits of 2026-11-28 and before counted rules of item properties among the leaks.
    solving = [n for n in facts["leaks"] if n in OF_ITEMS] + facts.get("solved_without_the_user", [])
    kinds = {"leak": [n for n in facts["leaks"] if n not in OF_ITEMS], "can be solved without the user": solving}
    return "; ".join(f"{kind} ({', '.join(names)})" for kind, names in kinds.items() if names) or "no leak found"


def logs_of(m: Measured) -> dict[str, list[str]]:
    """Return log → the rankers that were trained on it before they ranked test examples; {} if no run recorded it."""
    read_by: dict[str, list[str]] = {}
    for ranker, log in m.facts.get("logs", {}).items():
        if ranker in m.each:
            read_by.setdefault(log, []).append(ranker)
    return read_by


def logs_table(measured: Sequence[Measured]) -> Table:
    """Return which log each ranker was trained on, and how often the test examples were evaluated."""
    rows = []
    for m in measured:
        read_by = logs_of(m)
        if len(read_by) == 1:
            said = f"all: {next(iter(read_by))}"
        else:
            said = "; ".join(f"{log}: {', '.join(names)}" for log, names in read_by.items())
        unknown = f"not recorded; by its code, baselines: {BOTH}; language models and what learns from them: training"
        rows.append([TITLES[m.name], said or unknown, str(m.facts.get("evaluations", 1)), m.facts["commit"]])
    columns = ["data", "trained on", "evaluations of the test examples", "commit"]
    return {
        "title": "What each ranker was trained on, and evaluations of the test examples",
        "columns": columns,
        "rows": rows,
    }


def family_table(family: Family, decided: Sequence[Decision], protocol: Protocol) -> Table:
    """Return each difference of a family with both of its intervals, its p-values and its finding."""
    rows = [
        [
            TITLES[d.data],
            f"{d.found.difference.n:,} ({d.found.difference.items:,})",
            str(d.seeds),
            f"{d.ranker} − {d.against}",
            signed(d.found.difference),
            ends(d.found.difference.user_low, d.found.difference.user_high),
            *(f"{p:.4f}" for p in (d.found.p, d.found.adjusted, d.found.adjusted_equivalent)),
            d.found.word,
        ]
        for d in decided
        if d.family == family.name
    ]
    columns = [
        "data", "examples (distinct targets)", "seeds", "difference", "NDCG@10, over users and targets",
        "over users alone", "p", "p after Holm", f"p of ±{protocol.equivalence:.0%} after Holm", "finding",
    ]  # fmt: skip
    return {"title": f"{family.name}: {family.question}", "columns": columns, "rows": rows}


def data_of(split: str) -> str:
    """Return the data set of a split, which may be one of two of the same log."""
    return split.removesuffix("-log")


def pooled_table(measured: Sequence[Measured], decided: Mapping[str, Sequence[Decision]], margin: float) -> Table:
    """Return the mean of each family's differences over data sets, as a share of what it compares with.

    Args:
        measured: the data sets, with the values of their rankers.
        decided: family → its decisions, one per split.
        margin: what counts as equivalent, as a share.
    """
    by_name, rows = {m.name: m for m in measured}, []
    for family, decisions in decided.items():
        effects = []
        for d in decisions:
            one = by_name[d.data].ranked
            tested = Tested(d.data, one.gains[d.ranker], one.gains[d.against], one.users, one.targets)
            effects.append(relative(tested))
        sets = by_data(effects, data_of)
        if len(sets) < 2:
            continue
        found = pool(sets)
        low, high = found.interval()
        mean = f"{found.mean:+.1%} [{low:+.1%}, {high:+.1%}]".replace("-", "−")
        p_values = (f"{p:.3f}" for p in (found.p_value, found.equivalence(margin)))
        rows.append([family, f"{len(sets)} ({len(effects)})", mean, f"{found.spread:.1%}", *p_values])
    columns = [
        "difference",
        "data sets (splits)",
        "NDCG@10, as a share",
        "spread between data sets",
        "p",
        f"p of ±{margin:.0%}",
    ]
    return {"title": "All data sets together (not declared)", "columns": columns, "rows": rows}


POOLED = (
    "The means over data sets were not declared before the runs, and are not corrected for their number. They are "
    "random-effects means of differences as shares of what is compared with; both splits of a data set count as one."
)
"""What a page says of `pooled_table`."""


def class_table(m: Measured) -> Table:
    """Return what the language model adds, and the blend beside the best baseline, by class of target.

    A class is a condition on the target: the table shows where a difference comes from, and does not test it.
    """
    pairs = [*([m.model_pair] if m.model_pair else []), (m.blend, m.baseline)]
    rankers = list(dict.fromkeys(name for pair in reversed(pairs) for name in reversed(pair)))
    rows = []
    for name, some in target_groups(m).items():
        means = m.among(some)
        values = [f"{means.mean(ranker).mean:.4f}" for ranker in rankers]
        differences = [means.difference(*pair) for pair in pairs]
        both = [text for d in differences for text in (signed(d), ends(d.user_low, d.user_high))]
        rows.append([name, f"{means.size[0]:,} ({means.items:,})", *values, *both])
    heads = [text for a, b in pairs for text in (f"{a} − {b}", f"{a} − {b}, over users alone")]
    columns = ["target", "examples (distinct targets)", *rankers, *heads]
    return {"title": f"{TITLES[m.name]}: NDCG@10 by class of target", "columns": columns, "rows": rows}


def target_groups(m: Measured, count: str = "known") -> dict[str, NDArray[np.bool_]]:
    """Return name → the rows of a group: all, by class of target, and by its number of interactions.

    `count` is the column with the number: `known` interactions before the example, or those in training (`trained`).
    Groups without rows are omitted.
    """
    numbers = m.rows[count].to_numpy()
    groups = {"all": np.ones(len(m.rows), dtype=np.bool_)}
    groups |= {name: (m.rows["class"] == name).to_numpy() for name in CLASSES}
    least = [*COUNTS.values(), np.inf]
    what = "interactions" if count == "known" else "training interactions"
    for (name, low), high in zip(COUNTS.items(), least[1:], strict=True):
        groups[f"{name} {what}"] = (numbers >= low) & (numbers < high)
    return {name: some for name, some in groups.items() if some.any()}


def groups_table(measured: Sequence[Measured], ranker: str, against: str, title: str) -> Table:
    """Return a difference by class of target and by its number of training interactions, on all data sets."""
    rows = []
    for m in measured:
        if {ranker, against} <= m.each.keys():
            for name, some in target_groups(m, "trained").items():
                means = m.among(some)
                d = means.difference(ranker, against)
                size = f"{means.size[0]:,} ({means.items:,})"
                rows.append([TITLES[m.name], name, size, signed(d), ends(d.user_low, d.user_high)])
    columns = ["data", "target", "examples (distinct targets)", "NDCG@10, over users and targets", "over users alone"]
    return {"title": title, "columns": columns, "rows": rows}


def seeds_table(m: Measured) -> Table:
    """Return each seed's NDCG@10 and what the language model adds, and for their mean.

    The last row is the control with random weights, if there is one.
    """
    kept = same_runs(seed_files(m.name), m.blend)
    each = [(f"seed {n}", read(m.name, [path])) for n, path in enumerate(kept)]
    control = [RANKS / f"{m.name}-random.parquet"]
    random = [("random weights, seed 0", read(m.name, control))] if control[0].is_file() else []
    pairs = [*([m.model_pair] if m.model_pair else []), (m.blend, m.baseline)]
    rows = []
    for label, one in [*each, ("mean of the seeds", m), *random]:
        cells = [signed(one.difference(*pair)) if {*pair} <= one.each.keys() else "–" for pair in pairs]
        rows.append([label, f"{one.mean(m.blend):.4f}", *cells])
    names = [f"{ranker} − {against}" for ranker, against in pairs]
    return {"title": f"{TITLES[m.name]}: NDCG@10 by seed", "columns": ["seed", m.blend, *names], "rows": rows}


def all_rankers(m: Measured) -> Table:
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
    title = f"{TITLES[m.name]}: NDCG@10 in full ranking of {m.facts['items']:,} items, seed 0"
    return {"title": title, "columns": ["ranker", f"all, n = {result.n:,}", *sizes], "rows": rows}


def control_table(controls: Sequence[Measured], pairs: Sequence[tuple[str, str]], title: str) -> Table:
    """Return differences between rankers of controls; means over the seeds."""
    rows = [
        [TITLES[one.name], str(one.seeds), *(signed(one.difference(*pair)) for pair in pairs)] for one in controls
    ]
    return {"title": title, "columns": ["data", "seeds", *(f"{a} − {b}" for a, b in pairs)], "rows": rows}


def with_time(measured: Sequence[Measured], controls: Sequence[Measured]) -> list[Measured]:
    """Return the data sets that have a control, with its ranker, whose name is then `WITH_TIME`."""
    found = []
    by_name = {one.name: one for one in controls}
    for m in measured:
        if m.name in by_name:
            control = by_name[m.name]
            if not control.rows.equals(m.rows):
                raise DataError(f"aged-{m.name}.parquet: its test examples are not those of {m.name}.parquet")
            # Nothing in it depends on a seed.
            values = np.repeat(control.each["blend"], m.seeds, axis=0)
            found.append(replace(m, each={**m.each, WITH_TIME: values}))
    return found


def time_tables(measured: Sequence[Measured]) -> list[Table]:
    """Return the table of the best baseline with features of time (`with_time`), if there are any."""
    rows = []
    for m in measured:
        known, blend = m.difference(WITH_TIME, m.baseline), m.difference(m.blend, WITH_TIME)
        means = [f"{m.mean(name):.4f}" for name in (m.baseline, WITH_TIME, m.blend)]
        rows.append([TITLES[m.name], f"{m.baseline} {means[0]}", *means[1:], signed(known), signed(blend)])
    columns = [
        "data",
        "best baseline",
        WITH_TIME,
        "blend",
        "features of time add",
        "the other parts of the blend add",
    ]
    title = "The best baseline with the blend's features of time (not tested)"
    return [{"title": title, "columns": columns, "rows": rows}] if rows else []


def divergences(reference: Floats, model: Floats) -> Floats:
    """Return KL(reference ‖ model) of each row [B] in nats, from the scores [B, C] of the same candidates."""
    ours, others = log_softmax(reference, axis=1), log_softmax(model, axis=1)
    found: Floats = (np.exp(ours) * (ours - others)).sum(axis=1)
    return found


def signed(value: Interval) -> str:
    """Return a difference with its interval."""
    return f"{value.mean:+.4f} {ends(value.low, value.high)}".replace("-", "−")


def shown(value: Interval) -> str:
    """Return a mean with its interval."""
    return f"{value.mean:.3f} [{value.low:.3f}, {value.high:.3f}]"


def ends(low: float | None, high: float | None) -> str:
    """Return the ends of the interval of a difference; a dash if there is none."""
    if low is None or high is None or np.isnan(low):
        return "–"
    return f"[{low:+.4f}, {high:+.4f}]".replace("-", "−")

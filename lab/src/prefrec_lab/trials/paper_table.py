"""Write the paper's table, all systems on the same examples: lab/results/14-systems-of-the-paper.json.

`python -m prefrec_lab.trials.paper_table RUN ...` joins finished runs of the same questions, whose models differ,
writes the ranks of each row to lab/results/ranks, and the tables from them. Without runs it makes the tables from
these files. Users and items are numbered in the files, so that no data set is passed on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from prefrec.errors import DataError
from prefrec.evaluation import FULL_RANKING, Comparison, Evaluation, NoAudit, read_predictions
from prefrec.files import read_json, write_json
from prefrec.pipeline.opened import open_run
from prefrec.runs.results import METRICS
from prefrec_lab.ranks import coded, evaluate_ranks, row_facts, write_ranks
from prefrec_lab.results import RESULTS, save
from prefrec_lab.trials.rank_tables import shown
from prefrec_lab.trials.shared import whole_catalogue

SECTION = RESULTS / "14-systems-of-the-paper.json"
LISTS, FULL, FACTS = (RESULTS / "ranks" / f"paper-{n}" for n in ("lists.parquet", "full.parquet", "table.json"))
BASELINES = "baseline"
BUILT_ON = {
    "SFT": "zero-shot",
    "DPO": "SFT",
    "S-DPO": "SFT",
    "LLaRA": "SFT",
    "LLaRA-S-DPO": "LLaRA",
    "TALLRec": "SFT",
    "Chat-REC": "item-kNN",
    "item-ID tokens, SFT": "SFT",
    "item-ID tokens, S-DPO": "item-ID tokens, SFT",
}
"""System → the one that it starts from, or is compared with."""
RENAMED = {"sft": "SFT", "dpo": "DPO", "s-dpo": "S-DPO"}


def collect(folders: Sequence[Path]) -> None:
    """Write the ranks of all rankers of the runs; raise DataError if the runs asked other questions."""
    lists, full = [], []
    facts: dict[str, Any] = {}
    asked: pl.DataFrame | None = None
    for folder in folders:
        run = open_run(folder)
        data, section = run.data, run.recipe.evaluate
        frame = read_predictions(folder / "predictions.parquet")
        one = frame.filter(pl.col("ranker") == frame["ranker"][0]).select("row", "user_id", "target", "candidates")
        if asked is not None and not asked.equals(one):
            raise DataError(f"{folder}: other questions than those of {folders[0]}")
        asked = one
        items = "item-ID tokens, " if run.recipe.model.answers == "items" else ""
        named = {n: items + RENAMED.get(n, n) for n in run.models}
        wanted = [*named, *(r.name for r in run.recipe.rankers), *(section.baselines if not facts else [])]
        seed = f", seed {run.recipe.seed}" if run.recipe.seed else ""
        names = {old: new for old in wanted if (new := named.get(old, old) + seed) not in facts}
        lists.append(_renamed(frame, names))
        full.append(_renamed(whole_catalogue(folder), names))
        for old, new in names.items():
            facts[new] = {"kind": _kind(run.recipe, old), "seconds": _seconds(run, old)}
    facts_of_rows = row_facts(data, data.examples(section.split, section.rows), section.split)
    write_ranks(coded(pl.concat(lists)), facts_of_rows, LISTS)
    write_ranks(coded(pl.concat(full)), facts_of_rows, FULL)
    audit = read_json(folders[0] / METRICS)["evaluation"]["audit"]
    write_json(FACTS, {"systems": facts, "verdict": audit["verdict"], "items": len(run.data.catalogue)})


def _renamed(frame: pl.DataFrame, names: Mapping[str, str]) -> pl.DataFrame:
    return frame.filter(pl.col("ranker").is_in(list(names))).with_columns(pl.col("ranker").replace(names))


def _kind(recipe: Any, name: str) -> str:
    if name in recipe.evaluate.baselines:
        return BASELINES
    return next((r.kind for r in recipe.rankers if r.name == name), "language model")


def _seconds(run: Any, name: str) -> float | None:
    """Return the seconds of the system's own stage; None if nothing was trained."""
    if name not in run.plan.names:
        return None
    state = read_json(run.plan.on_log(name).folder / "stage.json") or {}
    return state.get("seconds")


def measured() -> tuple[Evaluation, Evaluation, dict[str, Any]]:
    """Return the evaluations of candidate sets and of full ranking, with the comparisons of the page."""
    facts = read_json(FACTS)
    audit = NoAudit(facts["verdict"])
    first = [evaluate_ranks(path, audit=audit, ks=[1, 10]) for path in (LISTS, FULL)]
    results = []
    for result, path in zip(first, (LISTS, FULL), strict=True):
        there = [*result.metrics]
        best = best_baseline(result, facts)
        pairs = [(n, best) for n in there if facts["systems"][n]["kind"] != BASELINES]
        pairs += [(n, base) for n, base in BUILT_ON.items() if {n, base} <= {*there} and (n, base) not in pairs]
        results.append(evaluate_ranks(path, audit=FULL_RANKING if path == FULL else audit, ks=[1, 10], compare=pairs))
    return results[0], results[1], facts


def best_baseline(result: Evaluation, facts: Mapping[str, Any]) -> str:
    """Return the baseline with the highest NDCG@10."""
    names = [n for n in result.metrics if facts["systems"][n]["kind"] == BASELINES]
    return max(names, key=lambda n: result.metrics[n]["ndcg@10"].mean)


def main_table(lists: Evaluation, full: Evaluation, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return every system, with what it is above the best baseline."""
    best = {id(r): best_baseline(r, facts) for r in (lists, full)}
    rows = []
    for name in lists.metrics:
        own = facts["systems"][name]
        cells = [shown(lists.metrics[name][m]) for m in ("ndcg@10", "hr@1")]
        cells.append(_gap(lists, name, best[id(lists)]))
        there = name in full.metrics
        cells += [shown(full.metrics[name]["ndcg@10"]), _gap(full, name, best[id(full)])] if there else ["–", "–"]
        rows.append([name, own["kind"], *cells])
    columns = [
        "system", "kind", "NDCG@10, 20 candidates", "HR@1, 20 candidates", f"NDCG@10 − {best[id(lists)]}",
        "NDCG@10, full ranking", f"NDCG@10, full ranking − {best[id(full)]}",
    ]  # fmt: skip
    count = sum(c.metric == "ndcg@10" for result in (lists, full) for c in result.comparisons)
    holm = (
        f"✱: significant after Holm's correction for {count} differences, apart for candidate sets and full ranking"
    )
    title = f"All systems on {lists.n:,} test examples. {holm}. {facts['verdict']}"
    return {"title": title, "columns": columns, "rows": rows}


def gains_table(lists: Evaluation, full: Evaluation) -> dict[str, Any]:
    """Return what each system adds to the one that it builds on."""
    rows = [
        [f"{n} − {base}", _gap(lists, n, base), _gap(full, n, base)]
        for n, base in BUILT_ON.items()
        if {n, base} <= {*lists.metrics}
    ]
    columns = ["difference", "NDCG@10, 20 candidates", "NDCG@10, full ranking"]
    return {"title": "What each system adds to the one that it builds on", "columns": columns, "rows": rows}


def _gap(result: Evaluation, ranker: str, against: str) -> str:
    found = [c for c in result.comparisons if (c.ranker, c.against, c.metric) == (ranker, against, "ndcg@10")]
    return _difference(found[0]) if found else "–"


def _difference(c: Comparison) -> str:
    mark = " ✱" if c.stands else ""
    return f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}]{mark}".replace("-", "−")


def main() -> None:
    """Collect the runs, if there are any, and write the section and the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    arguments = parser.parse_args()
    if arguments.runs:
        collect(arguments.runs)
    lists, full, facts = measured()
    tables = [main_table(lists, full, facts), gains_table(lists, full)]
    save((read_json(SECTION) or {"id": 14}) | {"tables": tables}, SECTION)


if __name__ == "__main__":
    main()

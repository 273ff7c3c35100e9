"""Print the tables of runs as JSON, in the form of lab/results.

`python -m prefrec_lab.trials.run_tables RUN ...` reads finished runs, which are seeds of one recipe. With several,
the last tables pool their examples, and resample users with all examples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import polars as pl

from prefrec.evaluation import Evaluation, Interval, PairedDifference, evaluate_predictions, read_predictions
from prefrec.evaluation.preferences import Preferences
from prefrec.recipe import load_recipe
from prefrec.report.wording import with_interval
from prefrec.sections import SFT

STEP = 1_000_000
"""Numbers of rows are raised by this from seed to seed."""


def shown(value: dict[str, Any] | None) -> str:
    """Return a mean or a paired difference with its interval."""
    if value is None:
        return "–"
    return with_interval((PairedDifference if "p_value" in value else Interval).from_json(value))


def metric_table(title: str, parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a table with a row per ranker and a column per (part of the rows, metric)."""
    columns = [(part, metric) for part in parts for metric in ("ndcg@10", "hr@1")]
    rankers = next(iter(parts.values()))["metrics"]
    rows = [[r, *(shown(parts[p]["metrics"].get(r, {}).get(m)) for p, m in columns)] for r in rankers]
    heads = [f"{m.upper()}, {p} (n = {parts[p]['n']:,})" for p, m in columns]
    return {"title": title, "columns": ["ranker", *heads], "rows": rows}


def comparison_table(title: str, evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return the paired differences in NDCG@10."""
    found = [c for c in evaluation["comparisons"] if c["metric"] == "ndcg@10"]
    rows = [[f"{c['ranker']} − {c['against']}", shown(c), f"{c['p_value']:.3f}"] for c in found]
    return {"title": title, "columns": ["paired difference", "NDCG@10", "p"], "rows": rows}


def preference_tables(preferences: Preferences) -> list[dict[str, Any]]:
    """Return the tables of liked over disliked items."""
    found = preferences.to_json()["metrics"].items()
    first = {
        "title": f"Liked over disliked items ({preferences.users} users)",
        "columns": ["scores", "AUC", "NDCG", "AUC over users"],
        "rows": [[name, *(shown(own.get(m)) for m in ("auc", "ndcg", "item_auc"))] for name, own in found],
    }
    rows = [
        [f"{d.ranker} − {d.against}", with_interval(d), f"{d.p_value:.3f}"]
        for d in preferences.differences
        if d.metric == "auc"
    ]
    return [first, {"title": "Paired differences", "columns": ["scores", "AUC", "p"], "rows": rows}]


def pooled(runs: list[Path]) -> list[dict[str, Any]]:
    """Return the tables of the lists of several seeds, with differences from SFT and from all trained rivals."""
    frames = [read_predictions(run / "predictions.parquet") for run in runs]
    frames = [frame.with_columns(pl.col("row") + n * STEP) for n, frame in enumerate(frames)]
    first = json.loads((runs[0] / "metrics.json").read_text())["evaluation"]
    recipe = load_recipe(runs[0] / "recipe.yaml")
    models = [name for name in (*(a.name for a in recipe.align), SFT) if name in first["metrics"]]
    rivals = [
        name
        for name in ("item-kNN", *(r.name for r in recipe.rankers if r.kind == "sequential"))
        if name in first["metrics"]
    ]
    pairs = dict.fromkeys((c["ranker"], c["against"]) for c in first["comparisons"])
    pairs |= dict.fromkeys((name, other) for other in (SFT, *rivals) for name in models if name != other)
    found = evaluate_predictions(
        pl.concat(frames), compare=list(pairs), audit=Evaluation.from_json(first).audit
    ).to_json()
    title = f"20 candidates, {len(runs)} seeds pooled"
    return [metric_table(title, {"all rows": found}), comparison_table(f"{title}: paired differences", found)]


def tables(run: Path) -> list[dict[str, Any]]:
    """Return all tables of a run."""
    metrics = json.loads((run / "metrics.json").read_text())
    out = []
    for name, title in (("evaluation", "20 candidates"), ("full_catalogue", "Full ranking")):
        if evaluation := metrics.get(name):
            groups = {part: values for part, values in (evaluation.get("groups") or {}).items() if values["n"] > 20}
            parts = {"all rows": evaluation} | (groups if len(groups) > 1 else {})
            out += [metric_table(title, parts), comparison_table(f"{title}: paired differences", evaluation)]
    if (preferences := run / "preferences.json").exists():
        out += preference_tables(Preferences.from_json(json.loads(preferences.read_text())))
    return out


if __name__ == "__main__":
    folders = [Path(folder) for folder in sys.argv[1:]]
    found = [{"run": folder.name, "tables": tables(folder)} for folder in folders]
    if len(folders) > 1:
        found.append({"run": "pooled", "tables": pooled(folders)})
    sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")

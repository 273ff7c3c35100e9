"""Print the tables of a run as JSON, in the form of `lab/results`: `python scripts/run_tables.py runs/demo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prefrec.evaluation import Interval, PairedDifference
from prefrec.report.wording import with_interval


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


def preference_tables(preferences: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of liked over disliked items."""
    metrics = preferences["metrics"]
    first = {
        "title": f"Liked over disliked items ({preferences['users']} users)",
        "columns": ["scores", "AUC", "NDCG"],
        "rows": [[name, *(shown(v) for v in values.values())] for name, values in metrics.items()],
    }
    rows = [
        [f"{d['scores']} − {d['against']}", shown(d), f"{d['p_value']:.3f}"]
        for d in preferences["differences"]
        if d["metric"].lower() == "auc"
    ]
    return [first, {"title": "Paired differences", "columns": ["scores", "AUC", "p"], "rows": rows}]


def tables(run: Path) -> list[dict[str, Any]]:
    """Return all tables of a run."""
    metrics = json.loads((run / "metrics.json").read_text())
    out = []
    for name, title in (("evaluation", "20 candidates"), ("full_catalogue", "The whole catalogue")):
        if evaluation := metrics.get(name):
            groups = {part: values for part, values in (evaluation.get("groups") or {}).items() if values["n"] > 20}
            parts = {"all rows": evaluation} | (groups if len(groups) > 1 else {})
            out += [metric_table(title, parts), comparison_table(f"{title}: paired differences", evaluation)]
    if (preferences := run / "preferences.json").exists():
        out += preference_tables(json.loads(preferences.read_text()))
    return out


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        found = {"run": Path(folder).name, "tables": tables(Path(folder))}
        sys.stdout.write(json.dumps(found, ensure_ascii=False, indent=2) + "\n")

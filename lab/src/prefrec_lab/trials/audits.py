"""Audit seven splits with two kinds of candidate sets, and write lab/results/55-audits.json.

`python -m prefrec_lab.trials.audits DATA` reads the data sets in the folder DATA, with the settings of `recipes/`. It
takes half an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from prefrec.evaluation import Audit, audit_prepared
from prefrec.evaluation.audit import WITH_USER
from prefrec.evaluation.diagnosis import Diagnosis
from prefrec.evaluation.verdict import ITEM_ONLY, AuditRow
from prefrec.intake import PrepareConfig, prepare
from prefrec.rankers.baselines import PopularityRanker
from prefrec_lab.results import RESULTS, ROOT, save
from prefrec_lab.trials.rank_tables import shown

SECTION = RESULTS / "55-audits.json"
SETS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Amazon Office windows": ("amazon-office", "amazon-office", {}),
    "Amazon Office, cut by time": ("amazon-office", "amazon-office", {"split": "time"}),
    "Amazon Book windows": ("amazon-book", "amazon-book", {}),
    "Amazon Book, cut by time": ("amazon-book", "amazon-book", {"split": "time"}),
    "LastFM by date": ("lastfm", "lastfm-hetrec2011", {}),
    "Goodreads windows": ("goodreads", "goodreads-windows", {}),
    "MovieLens-100K": ("demo", "movielens-100k", {}),
}
"""Name → recipe, folder of the data, and what differs from the recipe."""
KINDS: dict[str, str] = {
    "uniform": "20 uniform candidates",
    "targets": "20 candidates from the targets of other examples",
}


def audited(name: str, data: Path, kind: str) -> Audit:
    """Return the audit of a data set with one kind of candidate sets."""
    recipe, folder, changes = SETS[name]
    section = yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text(encoding="utf-8"))["data"]
    section |= {"path": str(data / folder), "candidates": {"kind": kind, "size": 20}} | changes
    return audit_prepared(prepare(PrepareConfig(**section)))


def audit_row(name: str, found: Audit) -> list[str]:
    """Return the row of a data set: what rules reach that ignore the user, and the best that knows the user."""

    def ndcg(row: AuditRow) -> str:
        return shown(row.ndcg) if row.ndcg else "–"

    item_only = found.row(ITEM_ONLY)
    knowing = [row for row in found.rows if row.name in WITH_USER and row.ndcg]
    best = max(knowing, key=lambda row: row.ndcg.mean if row.ndcg else 0.0)
    return [
        name,
        f"{item_only.hr.n:,}",
        ndcg(found.row(PopularityRanker.name)),
        f"{item_only.hr.mean:.3f}",
        ndcg(item_only),
        f"{best.name} {ndcg(best)}",
        ", ".join(row.name for row in found.leaks) or "none",
        ", ".join(row.name for row in found.solving) or "none",
    ]


def data_row(name: str, d: Diagnosis) -> list[str]:
    """Return the row of a data set: its targets, and what follows what."""
    gain = d.history_gain
    return [
        name,
        f"{d.n:,}",
        f"{d.targets:,}",
        f"{d.new_rows:.1%} ({d.new_targets:,})",
        f"{d.new_items:.1%}",
        f"{d.top_share:.1%}",
        f"{d.successors:.1f}",
        f"{d.alike:.3f} ({d.alike_random:.3f})",
        f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] ({d.history_rule})".replace("-0", "−0"),
    ]


def tables(data: Path) -> list[dict[str, Any]]:
    """Return a table per kind of candidate sets, and one of the data."""
    columns = ["data", "n", "popularity", "item only, HR@1", "item only", "best baseline that knows the user"]
    columns += ["leaks", "solved without the user by"]
    made, described = [], []
    for kind, words in KINDS.items():
        rows = []
        for name in SETS:
            found = audited(name, data, kind)
            rows.append(audit_row(name, found))
            print(rows[-1], flush=True)  # noqa: T201
            if kind == "uniform" and found.diagnosis:
                described.append(data_row(name, found.diagnosis))
        made.append({"title": f"NDCG@10 among {words}", "columns": columns, "rows": rows})
    columns = ["data", "n", "distinct targets", "targets without training interactions: share (distinct)"]
    columns += ["catalogue without training interactions", "examples with one of the 10 most frequent targets"]
    columns += ["successors of an item", "title similarity of successors (of random items)"]
    columns += ["NDCG@10 from history beyond the last item"]
    return [*made, {"title": "Audit: properties of the data", "columns": columns, "rows": described}]


def main() -> None:
    """Write the tables into the section."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the data sets")
    arguments = parser.parse_args()
    section = json.loads(SECTION.read_text(encoding="utf-8"))
    section["tables"] = tables(arguments.data)
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%h %cs"]
    done = subprocess.run(git, capture_output=True, text=True, check=True)
    section["commit"], section["date"] = done.stdout.split()
    save(section, SECTION)


if __name__ == "__main__":
    main()

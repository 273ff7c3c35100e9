"""Put finished studies into lab/results/studies: `python -m prefrec_lab.study_tools.keep FOLDER …`.

FOLDER is what `prefrec lab study NAME` wrote. `FOLDER=NAME` names the result differently from the study, for a study
on several data sets. The file of results has all tables of the study. Its page shows the first of them, without the
columns of `HIDDEN`. Answer, status and what else people wrote are kept when a study is put in again. `python
scripts/experiments_page.py` writes the pages afterwards.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from prefrec_lab.results import RESULTS, save

STUDIES = RESULTS / "studies"
MISSING = "What was found is not written yet."
HIDDEN = re.compile(
    r"loss|rows|seconds|seconds in all|own (seconds|peak GiB)|β|HR@1 −.*|HR@5|HR@10|NDCG@5|MRR"
    r"|largest weight|1 − p₀|gradient norm"
)
"""Columns to omit from a page's table. A column that varies stays, because it names the rows."""


def put(study: Path, name: str = "", studies: Path = STUDIES) -> Path:
    """Write studies/NAME.json from a study's folder; return it.

    Args:
        study: folder that `prefrec lab study NAME` wrote.
        name: of the result; default: the study's.
        studies: folder of the results.
    """
    summary: dict[str, Any] = json.loads((study / "study.json").read_text(encoding="utf-8"))
    name = name or summary["study"]
    file = studies / f"{name}.json"
    old = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    kept = {"title": name, "answer": MISSING, "group": "use", "status": "current"} | old
    tables = read_tables((study / "table.md").read_text(encoding="utf-8"))
    machine = summary["environment"]
    seeds = ", ".join(map(str, summary["seeds"]))
    new = {
        "question": old.get("question", summary["question"]),
        "tables": tables,
        "page": [{"table": 0, "columns": [c for c in tables[0]["columns"] if not HIDDEN.fullmatch(c)]}],
        "n": f"{summary['n']:,} examples of {summary['users']:,} users",
        "commit": str(machine["commit"])[:7],
        "machine": f"{machine['processor']}, {machine['threads']} threads",
        "setup": [
            f"{summary['model']} on {summary['data']}, {summary['split']} examples.",
            f"{summary['candidates']} candidates.",
            f"Seeds {seeds}. Intervals: {summary['intervals']}.",
            *summary["verdicts"],
        ],
        "commands": [f"prefrec lab study {summary['study']}"],
        "now": True,
    }
    studies.mkdir(parents=True, exist_ok=True)
    save(kept | new, file)
    return file


def read_tables(text: str) -> list[dict[str, Any]]:
    """Return the tables of a study's table.md, each with the heading above it.

    Columns of one name are told apart by the last column before them that has another name.
    """
    blocks, tables, title = text.strip().split("\n\n"), [], ""
    for block in blocks:
        if block.startswith("#"):
            title = block.lstrip("# ")
        elif block.startswith("| "):
            lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in block.splitlines()]
            rows = [[cell.replace("\\|", "|") for cell in line] for line in lines[2:]]
            tables.append({"title": title, "columns": _distinct(lines[0]), "rows": rows})
    return tables


def _distinct(columns: list[str]) -> list[str]:
    found, group = [], ""
    for column in columns:
        if columns.count(column) == 1:
            group = column.split(", n =")[0]
        found.append(column if columns.count(column) == 1 else f"{group}: {column}")
    return found


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder, _, called = argument.partition("=")
        sys.stdout.write(f"{put(Path(folder), called)}\n")

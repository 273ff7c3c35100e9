"""Write EXPERIMENTS.md from the files in lab/results: `python scripts/experiments_page.py`.

Each section has an anchor `section-NN`, which other pages link to.

A file is one experiment, NN-name.json, and NN is its section number: keep it, since other pages refer to it. Its
fields are those of `FIELDS`. The files hold all tables; `page` names those that the page shows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "lab" / "results"
PAGE = ROOT / "EXPERIMENTS.md"
FIELDS = {
    "id": "section number",
    "title": "heading",
    "question": "one sentence",
    "commands": "list of shell commands",
    "commit": "commit that was measured",
    "date": "date of that commit",
    "machine": "processor and number of cores",
    "n": "what was counted, and how many",
    "setup": "list of sentences: settings and conditions",
    "tables": "list of tables, each with title, columns and rows",
    "page": "what the page shows: list of {table: index, columns: names, rows: first cells}; default: all tables",
    "notes": "list of findings, the answer first",
    "more": "list of sentences that the page leaves out",
    "parts": "further experiments of the section, which the page leaves out",
}
HEAD = """# Experiments

The figures that this project quotes, each with its command, commit, machine, n and interval. The files in
`lab/results` hold all rows of all tables; `python scripts/experiments_page.py` writes this page from them.

- Intervals are 95%, unless a section says otherwise: a jackknife over users and targets if its commit is of
  2026-11-28, 18:40 UTC or later, before that a percentile bootstrap over users with 2,000 resamples.
- Differences are paired, row by row, and not corrected for the number of comparisons.
- To run a command, check out the commit beside it first.
- Linux, Python 3.11, torch 2.13 on CPU, transformers 5.24, peft 0.21; two cores, mostly shared with other work. Zen 4
  and Zen 5 are AMD EPYC processors.
- *SmolLM2* is SmolLM2-135M-Instruct in bfloat16, unpacked from Q4_1. *Items* are item-ID tokens, *titles* are answers
  in words. An *ensemble* adds the scores of its parts.
- One seed unless a section says otherwise.

## Contents
"""
REMOVED = """## Removed sections

`git show a35b467:EXPERIMENTS.md` has them. Later sections replace those that are not named here, or their code is
gone.

- 17, 22, 30, 39 and 47 are void: in their candidate sets (20 uniform candidates of Amazon Office), rules that ignore
  the user beat every model (section 55).
- 38 is void: a baseline that knows the age of items leaves about +0.05 of its +0.12.
- 21 and 26 are void: they compared the reward of likes with too weak an average (section 51).
- 13 became the pages in `docs/studies`.
"""


def page(results: Path = RESULTS) -> str:
    """Return the page as Markdown."""
    experiments = [_read(file) for file in sorted(results.glob("*.json"))]
    return "\n".join([HEAD, *map(_contents_line, experiments), "", *map(_section, experiments), REMOVED])


def _read(file: Path) -> dict[str, Any]:
    experiment: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if unknown := experiment.keys() - FIELDS.keys():
        raise ValueError(f"{file.name}: unknown fields {sorted(unknown)}; the known ones are {list(FIELDS)}")
    if not file.name.startswith(f"{experiment['id']:02d}-"):
        raise ValueError(f"{file.name}: the name must begin with the id {experiment['id']:02d}")
    tables = experiment.get("tables", [])
    for table in tables:
        for number, row in enumerate(table["rows"], start=1):
            if len(row) != len(table["columns"]):
                cells = f"{len(row)} cells for {len(table['columns'])} columns"
                raise ValueError(f"{file.name}, table {table['title']!r}, row {number}: {cells}")
    views = experiment.get("page", [{"table": i} for i in range(len(tables))])
    return experiment | {"file": f"`lab/results/{file.name}`", "shown": [_shown(tables, v, file.name) for v in views]}


def _shown(tables: list[dict[str, Any]], view: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the rows and columns of a table that the page shows."""
    table = tables[view["table"]]
    columns = view.get("columns", table["columns"])
    firsts = view.get("rows", [row[0] for row in table["rows"]])
    if missing := [c for c in columns if c not in table["columns"]] + [
        f for f in firsts if f not in {row[0] for row in table["rows"]}
    ]:
        raise ValueError(f"{name}, page, table {view['table']}: there is no {missing}")
    places = [table["columns"].index(c) for c in columns]
    rows = [[row[p] for p in places] for row in table["rows"] if row[0] in firsts]
    return {"title": view.get("title", table["title"]), "columns": columns, "rows": rows}


def _heading(experiment: dict[str, Any]) -> str:
    return f"{experiment['id']}. {experiment['title']}"


def _contents_line(experiment: dict[str, Any]) -> str:
    anchor = re.sub(r"[^\w\s-]", "", _heading(experiment)).lower().replace(" ", "-")
    return f"- [{_heading(experiment)}](#{anchor})"


def _section(experiment: dict[str, Any]) -> str:
    """Return a section: question, answer, conditions, tables, and how it was made."""
    lines = [
        f'<a id="section-{experiment["id"]}"></a>\n',
        f"## {_heading(experiment)}\n",
        f"**{experiment['question']}**\n",
    ]
    lines += [*(f"- {note}" for note in experiment.get("notes", [])), ""]
    if "setup" in experiment:
        lines += [" ".join(experiment["setup"]) + "\n"]
    for table in experiment["shown"]:
        lines += [f"{table['title'].rstrip('.')}:\n", _table(table)]
    lines += [f"{_made(experiment)}\n"]
    if "commands" in experiment:
        lines += ["```sh", *experiment["commands"], "```\n"]
    return "\n".join(lines)


def _made(experiment: dict[str, Any]) -> str:
    commit = f"Commit `{experiment['commit']}`, {experiment['date']}" if "commit" in experiment else ""
    n = f"n = {experiment['n']}" if "n" in experiment else ""
    known = [part for part in (commit, experiment.get("machine"), n, experiment["file"]) if part]
    return "; ".join(known) + "."


def _table(table: dict[str, Any]) -> str:
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (table["columns"], *table["rows"])]
    head, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---" * len(table["columns"]) + "|", *rows]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

"""Write EXPERIMENTS.md from the files in lab/results: `python scripts/experiments_page.py`.

A file is one experiment, NN-name.json, and NN is its section number: keep it, since other pages refer to it. Its
fields are those of `FIELDS`; `parts` holds further experiments of the same section. An experiment with
`"superseded": true` is only listed at the end of the page, with the first sentence of what was found.
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
    "id": "section number; not in parts",
    "title": "heading",
    "superseded": "true where later code or a later run has replaced the experiment",
    "question": "one sentence",
    "commands": "list of shell commands",
    "commit": "commit that was measured",
    "date": "date of that commit",
    "machine": "processor and number of cores",
    "n": "what was counted, and how many",
    "setup": "list of sentences: settings and conditions",
    "tables": "list of tables, each with title, columns and rows",
    "notes": "list of findings; the first one stands for all in short lists",
    "parts": "list of experiments with these fields",
}
HEAD = """# Experiments

All figures that this project quotes are here, each with its command, commit, machine, n and interval. The data are in
`lab/results`; `python scripts/experiments_page.py` writes this page from them.

- Intervals are 95%, by bootstrap over users (2,000 resamples). Where a table has other ranges, its section says so.
- Differences between rankers are paired, row by row. They are not corrected for the number of comparisons.
- A command belongs to the commit named beside it: run `git checkout COMMIT` first. The date is that of the commit.
- All runs used Linux, Python 3.11, torch 2.13 (CPU), transformers 5.24 and peft 0.21, without a GPU.
- The base model is SmolLM2-135M-Instruct from a GGUF file in Q4_1, unpacked to bfloat16, with adapters in float32.
  The text calls it SmolLM2-135M.
- Most machines did other work during the runs. Only sections 11 and 12 measure speed.
- Training runs used one seed unless a section says otherwise. Results that contradict the paper or miss a goal are
  reported as they are.

## Contents
"""
SUPERSEDED = """## Superseded

Later code or later runs have replaced these experiments. Their tables are in the data files.
"""


def page(results: Path = RESULTS) -> str:
    """Return the page as Markdown."""
    experiments = [_read(file) for file in sorted(results.glob("*.json"))]
    contents = [_contents_line(e) for e in experiments]
    sections = [_section(e) for e in experiments if not e.get("superseded")]
    old = [row for e in experiments for row in _superseded_rows(e)]
    end = [SUPERSEDED, _table({"columns": ["section", "experiment", "commit", "found", "data"], "rows": old})]
    return "\n".join([HEAD, *contents, "", *sections, *(end if old else [])])


def _read(file: Path) -> dict[str, Any]:
    experiment: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    for block in (experiment, *experiment.get("parts", [])):
        if unknown := block.keys() - FIELDS.keys():
            raise ValueError(f"{file.name}: unknown fields {sorted(unknown)}; the known ones are {list(FIELDS)}")
        for table in block.get("tables", []):
            for number, row in enumerate(table["rows"], start=1):
                if len(row) != len(table["columns"]):
                    cells = f"{len(row)} cells for {len(table['columns'])} columns"
                    raise ValueError(f"{file.name}, table {table['title']!r}, row {number}: {cells}")
    if not file.name.startswith(f"{experiment['id']:02d}-"):
        raise ValueError(f"{file.name}: the name must begin with the id {experiment['id']:02d}")
    return experiment | {"file": f"`lab/results/{file.name}`"}


def _heading(experiment: dict[str, Any]) -> str:
    return f"{experiment['id']}. {experiment['title']}"


def _contents_line(experiment: dict[str, Any]) -> str:
    heading = "Superseded" if experiment.get("superseded") else _heading(experiment)
    anchor = re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-")
    return f"- [{_heading(experiment)}](#{anchor})" + (", superseded" if experiment.get("superseded") else "")


def _section(experiment: dict[str, Any]) -> str:
    parts = [p for p in experiment.get("parts", []) if not p.get("superseded")]
    blocks = [f"## {_heading(experiment)}\n", *_block(experiment)]
    for part in parts:
        blocks += [f"### {part['title']}\n", *_block(part)]
    return "\n".join(blocks)


def _block(experiment: dict[str, Any]) -> list[str]:
    """Return the paragraphs of one experiment: question, how it was done, tables, what was found."""
    lines = [f"**Question.** {experiment['question']}\n"] if "question" in experiment else []
    if made := _made(experiment):
        lines += [f"**How.** {made}\n"]
    if "setup" in experiment:
        lines += [" ".join(experiment["setup"]) + "\n"]
    if "commands" in experiment:
        lines += ["```sh", *experiment["commands"], "```\n"]
    for table in experiment.get("tables", []):
        lines += [f"{table['title']}:\n", _table(table)]
    notes = experiment.get("notes", [])
    if notes:
        lines += ["**Found.**\n", *(f"- {note}" for note in notes), ""]
    return lines


def _made(experiment: dict[str, Any]) -> str:
    commit = f"Commit `{experiment['commit']}` ({experiment['date']})" if "commit" in experiment else ""
    n = f"n = {experiment['n']}" if "n" in experiment else ""
    known = [part for part in (commit, experiment.get("machine"), n, experiment.get("file")) if part]
    return "; ".join(known) + "." if known else ""


def _superseded_rows(experiment: dict[str, Any]) -> list[list[str]]:
    rows = []
    for block in (experiment, *experiment.get("parts", [])):
        if block.get("superseded") and block.get("notes"):
            commit = f"`{block['commit']}`" if "commit" in block else "several"
            rows.append([str(experiment["id"]), block["title"], commit, block["notes"][0], experiment["file"]])
    return rows


def _table(table: dict[str, Any]) -> str:
    lines = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

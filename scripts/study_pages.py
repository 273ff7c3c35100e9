"""Put finished studies into the documentation: `python scripts/study_pages.py runs/studies/ablation …`.

`FOLDER=NAME` names the page differently from the study, for a study on several data sets.

A page has the study's question, plots and first table without the columns of `HIDDEN`; the study's folder has the
rest. The two sentences about the result, between the marks below, are written by hand and kept when the page is made
again.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs" / "studies"
BEGIN, END = "<!-- found -->", "<!-- /found -->"
MISSING = "**What was found is not written yet.**"
TITLES = {
    "ablation": "Which loss ranks best?",
    "negatives": "How many negatives?",
    "beta": "How strong a pull to the reference?",
    "dynamics": "What happens during training?",
    "gradients": "Where does the gradient go?",
    "negative-sampling": "Where should negatives come from?",
    "negatives-theory": "Does S-DPO reach its optimum?",
    "data-size": "How much data does SFT need?",
    "model-size": "Are more layers better?",
    "cold-start": "New users and new items",
    "robustness": "Noise and wording, titles",
    "robustness-items": "Noise and wording, item-ID tokens",
    "fairness": "Popularity and active users",
    "transfer": "From one data set to another",
    "continual": "Updates with new interactions",
    "cost": "What each loss costs",
}
"""Name of a page → its heading; default: the name."""
HIDDEN = re.compile(
    r"loss|rows|seconds|seconds in all|own (seconds|peak GiB)|β|HR@1 −.*|HR@5|HR@10|NDCG@5|MRR"
    r"|largest weight|1 − p₀|gradient norm"
)
"""Columns to omit from a page's table. A column that varies stays, because it names the rows."""


def write_page(study: Path, docs: Path = DOCS, name: str = "") -> Path:
    """Write docs/NAME.md and copy the plots to docs/NAME/; return the page.

    Args:
        study: folder that `prefrec lab study NAME` wrote.
        docs: folder of the pages.
        name: of the page; default: the study's.
    """
    summary: dict[str, Any] = json.loads((study / "study.json").read_text(encoding="utf-8"))
    name = name or summary["study"]
    page, plots = docs / f"{name}.md", docs / name
    old = page.read_text(encoding="utf-8") if page.exists() else ""
    found = re.search(f"{BEGIN}\n(.*?)\n{END}", old, re.DOTALL)
    shutil.rmtree(plots, ignore_errors=True)
    plots.mkdir(parents=True)
    for plot in summary["plots"]:
        shutil.copyfile(study / f"{plot}.svg", plots / f"{plot}.svg")
    text = (study / "table.md").read_text(encoding="utf-8")
    machine = summary["environment"]
    made = f"Commit `{str(machine['commit'])[:7]}`, {machine['processor']}, {_threads(machine['threads'])}."
    told = found[1] if found else MISSING
    page.write_text(shaped(name, text, told, summary["verdicts"], summary["plots"], made), encoding="utf-8")
    return page


def shaped(name: str, text: str, found: str, verdicts: list[str], plots: list[str], made: str) -> str:
    """Return the page of a study from the text of its table.md; the audits' verdicts stand above the table."""
    blocks = text.strip().split("\n\n")
    table = next(i for i, block in enumerate(blocks) if block.startswith("| "))
    parts = [
        f"# {TITLES.get(name, name)}",
        blocks[1],
        "\n".join([BEGIN, found, END]),
        *verdicts,
        *(f"![{name}: {plot}]({name}/{plot}.svg)" for plot in plots),
        "## " + blocks[table - 1].lstrip("# "),
        narrow(blocks[table]),
        *(f"{block} {made}" for block in blocks[2:table] if block.startswith("n = ")),
    ]
    return "\n\n".join(parts) + "\n"


def narrow(table: str) -> str:
    """Return a Markdown table without the columns of HIDDEN."""
    lines = [re.split(r" (?<!\\)\| ", line[2:-2]) for line in table.splitlines()]
    kept = [i for i, heading in enumerate(lines[0]) if not HIDDEN.fullmatch(heading)]
    rows = ["| " + " | ".join(line[i] for i in kept) + " |" for line in (lines[0], *lines[2:])]
    return "\n".join([rows[0], "|---" * len(kept) + "|", *rows[1:]])


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n != 1 else ''}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder, _, called = argument.partition("=")
        print(write_page(Path(folder), name=called))  # noqa: T201

"""Put finished studies into the documentation: `python scripts/study_pages.py runs/studies/ablation …`.

`FOLDER=NAME` gives the page another name than the study's, where a study was made on several data sets.

A page has what the study's table.md has, its plots, and how it was made. What people found in it, two sentences
between the marks below, is written by hand and kept when the page is made again.
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


def write_page(study: Path, docs: Path = DOCS, name: str = "") -> Path:
    """Write docs/NAME.md and copy the plots to docs/NAME/; returns the page.

    Args:
        study: folder that `prefrec study NAME` wrote.
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
    _, question, rest = text.split("\n\n", 2)
    machine = summary["environment"]
    made = f"Made at commit `{str(machine['commit'])[:7]}` on {machine['processor']}, {_threads(machine['threads'])}."
    parts = [
        f"# {name}",
        question,
        "\n".join([BEGIN, found[1] if found else MISSING, END]),
        *(f"![{name}: {plot}]({name}/{plot}.svg)" for plot in summary["plots"]),
        rest.strip().replace("\n### ", "\n## "),
        made,
    ]
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _threads(n: int) -> str:
    return f"{n} thread{'s' if n != 1 else ''}"


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        folder, _, called = argument.partition("=")
        print(write_page(Path(folder), name=called))  # noqa: T201

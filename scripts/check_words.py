"""Check sources and pages for terms of one list: `python scripts/check_words.py`, part of `make lint`.

A text is read with its lines joined, also where a Python string or a comment goes over several lines. Each finding is
printed with what stands around it, then their count.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
TERMS = {
    r"(?<!there )is no (?!longer\b)": "is not a; there is no",
    r"none such": "say what there is not",
    r"go(?:es)? on (?:from|where)": "resume, continue",
    r"reference rows?": "baselines; reference means π_ref",
    r"items as tokens": "item-ID tokens",
    r"None: (?:all|none|no)": "Default: …",
    r"whence": "therefore",
    r"does as well": "works, too",
    r"never took": "unseen, has not seen",
    r"not taken": "unseen; not clicked",
    r"main line": "language-model rankers",
}
"""Pattern of a term, as whole words in any case → what to write."""
PROSE = {
    r"rivals?": "baseline",
    r"level with": "not significantly different (n, interval), or equivalent within ±x",
    r"made[- ]up": "synthetic",
    r"quotients?": "ratio",
    r"counting (?:rules?|baselines?)": "classical baselines",
    r"faults? of the protocol": "protocol errors",
    r"candidate lists?": "candidate set",
    r"users? (?:takes?|took) (?!several)": "interacts with, chose",
    r"(?:verdict|gains?|differences?|results?) stands?": "is printed; remains significant",
    r"(?:has|have|had) 0\.\d+": "scores, reaches, is",
    r"(?<!were )not shown": "not significantly different; no gain was significant",
    r"asked once": "evaluated once",
    r"(?:has|have|had) (?:not )?read (?:the|a) (?:same )?log": "trained on",
}
"""Terms that are refused where people read: pages, recipes and results."""
BREAK = re.compile(r"[\"']?\n\s*(?:#\s*|f?[\"'])?")
"""A line break inside a text: of a page, a comment, or a string of several lines."""


def texts() -> list[Path]:
    """Return sources, and what people read: pages, recipes and results."""
    files = (p for folder in ("src", "server/src", "systems/src", "lab/src") for p in (ROOT / folder).rglob("*"))
    return sorted([*(p for p in files if p.suffix in (".py", ".jinja2", ".html", ".js")), *prose()])


def prose() -> list[Path]:
    """Return pages, recipes and results."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    recipes = (p for folder in ("recipes", "src/prefrec/presets", "lab/src") for p in (ROOT / folder).rglob("*.yaml"))
    results = (p for p in (ROOT / "lab/results").rglob("*.json") if p.parent.name != "ranks")
    return sorted([*pages, *recipes, *results, ROOT / "examples/tutorial.ipynb"])


def findings(path: Path) -> Iterator[str]:
    """Yield a line for each term in a file."""
    joined = BREAK.sub(" ", path.read_text(encoding="utf-8"))
    terms = TERMS | PROSE if path.suffix in (".md", ".yaml", ".json", ".ipynb") else TERMS
    for term, better in terms.items():
        for found in re.finditer(rf"\b{term}\b" if term[0] != "(" else term, joined, re.IGNORECASE):
            around = joined[max(0, found.start() - 40) : found.end() + 30]
            yield f"{path.relative_to(ROOT)}: …{around}…: write {better!r}"


def main() -> int:
    """Print all findings and their count; return the exit code."""
    found = [line for path in texts() for line in findings(path)]
    sys.stdout.write("".join(f"{line}\n" for line in found) + f"check_words: {len(found)} findings\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

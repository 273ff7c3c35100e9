"""Check the prose of sources and pages: phrases that read like a translation, and the share of comment lines.

`make lint` runs it. It prints `file:line: what was found`, then a count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
COMMENTED = "src/prefrec"
COMMENT_SHARE = 0.01

PHRASES = {
    r"(?<!there )\bis no (?!longer\b)": "'is no': write 'is not a' or 'there is no'",
    r"\bnone such\b": "'none such'",
}
OPENINGS = ("What ", "Whether ", "That which", "As `")
"""Words that a docstring must not begin with: the first line is an imperative, or says what a class is."""


def pages() -> list[Path]:
    """Return the pages that people read; EXPERIMENTS.md is a record and is left out."""
    return [
        p for p in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))) if p.stem != "EXPERIMENTS"
    ]


def modules(*patterns: str) -> list[Path]:
    """Return the Python files below the folders that match."""
    return sorted(path for pattern in patterns for folder in ROOT.glob(pattern) for path in folder.rglob("*.py"))


def phrases(path: Path) -> Iterator[str]:
    """Yield a line for each banned phrase in a file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        for phrase, message in PHRASES.items():
            if re.search(phrase, line, re.IGNORECASE):
                yield f"{path.relative_to(ROOT)}:{number}: {message}"


def openings(path: Path) -> Iterator[str]:
    """Yield a line for each docstring that begins with a banned word."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for opening in OPENINGS:
                if (ast.get_docstring(node) or "").startswith(opening):
                    line = node.body[0].lineno
                    yield f"{path.relative_to(ROOT)}:{line}: a docstring begins with {opening.strip()!r}"


def comments() -> Iterator[str]:
    """Yield a line where too few lines of the library are comments."""
    lines = [line.strip() for path in modules(COMMENTED) for line in path.read_text(encoding="utf-8").splitlines()]
    share = sum(line.startswith("#") for line in lines) / len(lines)
    if share < COMMENT_SHARE:
        yield f"{COMMENTED}:1: {share:.2%} of the lines are comments; at least {COMMENT_SHARE:.0%} are asked for"


def main() -> int:
    """Print all findings and their count; return the exit code."""
    code = modules("src", "*/src")
    found = [line for path in (*code, *pages()) for line in phrases(path)]
    found += [line for path in code for line in openings(path)]
    found += comments()
    sys.stdout.write("".join(f"{line}\n" for line in found) + f"check_words: {len(found)} findings\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())

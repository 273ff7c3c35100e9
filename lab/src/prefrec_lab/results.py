"""The files of `lab/results`: where they are, how they are written, and their tables in Markdown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from textwrap import TextWrapper
from typing import Any

ROOT = Path(__file__).parents[3]
"""The root of the repository, whose files the trials write."""
RESULTS = ROOT / "lab/results"
RANKS = RESULTS / "ranks"
"""Folder of the ranks of test examples (`prefrec_lab.ranks`)."""
PROTOCOLS = ROOT / "lab/protocol"
"""Folder of the declared rules (`prefrec_lab.protocol`)."""
Table = dict[str, Any]
"""A table of a result: title, columns and rows."""


def save(fields: Mapping[str, Any], file: Path) -> None:
    """Write a file of results, with a row of a table on a line."""
    text = json.dumps(fields, indent=1, ensure_ascii=False)

    def joined(found: re.Match[str]) -> str:
        return found[1] + json.dumps(json.loads(found[2]), ensure_ascii=False)

    string = r'"(?:[^"\\]|\\.)*"'
    lists = rf'(\n {{3,}}(?:"\w+": )?)(\[\s*{string}(?:,\s*{string})*\s*\])'
    file.write_text(re.sub(lists, joined, text) + "\n", encoding="utf-8")


def markdown(table: Mapping[str, Any]) -> str:
    """Return a table in Markdown."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in (table["columns"], *table["rows"])]
    head, *rows = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|---" * len(table["columns"]) + "|", *rows])


def wrapped(part: str) -> str:
    """Return a paragraph in lines of at most 118 characters; tables, code, pictures and lists stay as they are."""
    if part.startswith(("|", "```", "#", "![", "<")):
        return part
    if part.startswith("- "):
        return "\n".join(_filled(line[2:], "- ", "  ") for line in part.split("\n"))
    return _filled(part, later="> " if part.startswith("> ") else "")


def _filled(text: str, first: str = "", later: str = "") -> str:
    """Return a text in lines of at most 118 characters, which break at spaces only."""
    wrapper = TextWrapper(118, initial_indent=first, subsequent_indent=later)
    wrapper.break_on_hyphens = wrapper.break_long_words = False
    return wrapper.fill(text)

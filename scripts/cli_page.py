"""Write docs/reference/cli.md from the help of all commands: `python scripts/cli_page.py`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prefrec.cli import homes, load_verb

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# Commands

Every command of `prefrec`, as `prefrec COMMAND --help` prints it. Options that are named like fields of a recipe
have the field's meaning ([Recipe](recipe.md)); `none` stands for null. `serve` is in the package `prefrec-server`,
`chat` in `prefrec-systems`, and those that begin with `lab` in `prefrec-lab`.
"""


def page() -> str:
    """Return the page as Markdown."""
    verbs = [verb for verb in homes() if _package(verb).startswith("prefrec")]
    return "\n".join([HEAD, *(section(verb.replace(".", " "), load_verb(verb)) for verb in verbs)])


def section(name: str, command: Any) -> str:
    """Return the section of a command."""
    said = "\n\n".join(_paragraphs(command.help or ""))
    given = [p for p in command.params if p.param_type_name == "argument"]
    words = [f"{p.name.upper()}" if p.required else f"[{p.name.upper()}]" for p in given]
    usage = " ".join(["prefrec", name, *words, "[OPTIONS]"])
    lines = [f"## {name}", "", said, "", "```text", usage, "```", "", "| | default | |", "|---|---|---|"]
    return "\n".join(lines + [_row(p) for p in command.params if not p.hidden]) + "\n"


def _package(verb: str) -> str:
    return homes()[verb][0].partition(".")[0]


def _paragraphs(text: str) -> list[str]:
    """Return paragraphs of a help in one line each, and its example as code."""
    found = [" ".join(part.split()) for part in text.split("\n\n")]
    return [re.sub(r"^(Example): (.*)$", r"\1: `\2`", part) for part in found]


def _row(param: Any) -> str:
    names = [param.name.upper()] if param.param_type_name == "argument" else [*param.opts, *param.secondary_opts]
    default = "required" if param.required else _default(param)
    said = (param.help or "").replace("|", "\\|")
    return f"| {', '.join(f'`{name}`' for name in names)} | {default} | {said} |"


def _default(param: Any) -> str:
    value = param.default
    if value is None or value in (False, (), []):
        return "–"
    return "`on`" if value is True else f"`{value}`"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

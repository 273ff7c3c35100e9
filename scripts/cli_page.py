"""Write docs/reference/cli.md from the help of all commands: `python scripts/cli_page.py`."""

from __future__ import annotations

from pathlib import Path

from prefrec.cli import command_line

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "cli.md"
HEAD = """# Commands

Every command of `prefrec`, as `prefrec COMMAND --help-all` prints it. Options that are named like fields of a recipe
have the field's meaning ([Recipe](recipe.md)); `none` stands for null. `serve` is in the package `prefrec-server`,
`chat` in `prefrec-systems`, and those that begin with `lab` in `prefrec-lab`.
"""


def page() -> str:
    """Return the page as Markdown."""
    made = command_line().generate_docs(heading_level=2).rstrip()
    return f"{HEAD}\n{made}\n".replace("```console", "```text")  # usage, not commands to copy


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

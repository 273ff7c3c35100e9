"""Print the lowest direct versions that the pyproject.toml of prefrec and of its sister packages allow, for pip.

`make test-lowest` installs these versions and runs the tests. pip chooses the versions of indirect dependencies.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNTIME = ("lm", "plots", "quant")
"""Extras whose packages prefrec imports; tools for developers are taken as they come."""


def requirements() -> Iterator[str]:
    """Yield the requirements of prefrec, of its runtime extras, and of the packages beside it."""
    for path in (ROOT / "pyproject.toml", *sorted(ROOT.glob("*/pyproject.toml"))):
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
        yield from project["dependencies"]
        for extra in RUNTIME:
            yield from project.get("optional-dependencies", {}).get(extra, [])


def main() -> None:
    """Print one line per requirement that has a lower bound."""
    for requirement in requirements():
        bound = re.match(r"([\w.-]+)>=([\w.]+)[^;]*(;.*)?$", requirement)
        if bound:
            sys.stdout.write(f"{bound[1]}=={bound[2]}{bound[3] or ''}\n")


if __name__ == "__main__":
    main()

"""Print how many mutants of `make mutants` the tests noticed per module; mutants that did not run are left out.

With `--sample`, print the names of random mutants instead, of each module in proportion. `mutants/` must exist:

    make mutants MUTANTS="$(.venv/bin/python scripts/mutants.py --sample 120 --seed 44 recommend/items stages/blend)"
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code
from rich.console import Console
from rich.table import Table

ROOT = Path("mutants/src/prefrec")
NOTICED = ("killed", "timeout", "caught by type check", "segfault")
LEAST = 0.95
NOT_RUN = 255
"""Exit code where pytest itself failed, so that nothing is known of the mutant. mutmut calls it a time-out."""

Codes = dict[str, int | None]
"""Name of a mutant → the exit code of its tests; None if it did not run."""


def read_codes() -> dict[str, Codes]:
    """Return module → its mutants, in the order of names."""
    files = {str(file.relative_to(ROOT)).removesuffix(".py.meta"): file for file in ROOT.rglob("*.meta")}
    return {name: json.loads(files[name].read_text(encoding="utf-8"))["exit_code_by_key"] for name in sorted(files)}


def sample(modules: dict[str, Codes], size: int, seed: int) -> list[str]:
    """Return the names of about `size` mutants, of each module in proportion to its number."""
    rng, count = random.Random(seed), sum(map(len, modules.values()))
    drawn = [rng.sample(sorted(codes), round(size * len(codes) / count)) for codes in modules.values()]
    return [name for names in drawn for name in sorted(names)]


def main() -> int:
    """Print the table and the mutants that were not noticed; 1 where the share is below `LEAST`."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("modules", nargs="*", help="as in the table; default: all")
    options.add_argument("--sample", type=int, metavar="N", help="print the names of about N mutants")
    options.add_argument("--seed", type=int, default=0, help="of the sample")
    given = options.parse_args()
    modules = {name: codes for name, codes in read_codes().items() if name in (given.modules or [name])}
    if given.sample:
        sys.stdout.write(" ".join(sample(modules, given.sample, given.seed)) + "\n")
        return 0
    table = Table("module", title="mutants", title_justify="left")
    for column in ("mutants", "noticed", "by time-out", "share"):
        table.add_column(column, justify="right")
    total, missed = Counter[str](), []
    for module, codes in modules.items():
        status = {name: _status(code) for name, code in codes.items() if code is not None}
        if not status:
            continue
        missed += sorted(f"{found}: {name}" for name, found in status.items() if found not in NOTICED)
        counts = Counter(all=len(status), noticed=sum(found in NOTICED for found in status.values()))
        counts["late"] = sum(found == "timeout" for found in status.values())
        total += counts
        table.add_row(module, *_row(counts))
    table.add_row("all", *_row(total))
    out = Console()
    out.print(table)
    for line in missed:
        out.print(line, highlight=False, soft_wrap=True)
    return total["noticed"] < LEAST * total["all"]


def _status(code: int) -> str:
    return "not run" if code == NOT_RUN else status_by_exit_code[code]


def _row(counts: Counter[str]) -> list[str]:
    share = counts["noticed"] / max(1, counts["all"])
    return [f"{counts['all']:,}", f"{counts['noticed']:,}", f"{counts['late']:,}", f"{share:.1%}"]


if __name__ == "__main__":
    sys.exit(main())

"""Print the number of mutants of `make mutants` per module, and the share that the tests detected."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

from mutmut.stats import status_by_exit_code
from rich.console import Console
from rich.table import Table

NOTICED = ("killed", "timeout", "caught by type check", "segfault")
LEAST = 0.95


def main() -> int:
    """Print the table and the names of mutants that were not noticed; 1 where the share is below `LEAST`."""
    table = Table("module", title="mutants", title_justify="left")
    for column in ("mutants", "noticed", "share"):
        table.add_column(column, justify="right")
    total, missed = Counter[str](), []
    for file in sorted(Path("mutants/src").rglob("*.meta")):
        codes = json.loads(file.read_text(encoding="utf-8"))["exit_code_by_key"]
        noticed = [name for name, code in codes.items() if status_by_exit_code[code] in NOTICED]
        missed += sorted(codes.keys() - set(noticed))
        total.update(all=len(codes), noticed=len(noticed))
        module = str(file.relative_to("mutants/src")).removesuffix(".meta")
        if codes:
            table.add_row(module, f"{len(codes):,}", f"{len(noticed):,}", f"{len(noticed) / len(codes):.1%}")
    share = total["noticed"] / max(1, total["all"])
    table.add_row("all", f"{total['all']:,}", f"{total['noticed']:,}", f"{share:.1%}")
    out = Console()
    out.print(table)
    for name in missed:
        out.print(f"not noticed: {name} (mutmut show {name})", highlight=False, soft_wrap=True)
    return share < LEAST


if __name__ == "__main__":
    sys.exit(main())

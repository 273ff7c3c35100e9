"""`prefrec prune`: delete earlier runs that are no longer needed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from prefrec.cli import _options as o
from prefrec.runs.links import prune as prune_runs


def prune(
    link: Annotated[Path, Parameter(help="Link to the run that is served.")],
    /,
    *,
    keep: Annotated[int, Parameter(validator=Number(gte=0), help="Runs to keep beside the one that is served.")] = 2,
    dry_run: Annotated[bool, Parameter(help="Only say what would be deleted.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Delete runs beside a link that are no longer needed.

    The runs of a link are the run folders beside it whose names begin with LINK and a dot. Kept are the one that LINK
    leads to, the newest others with a finished evaluation, those that another link leads to or that a server or a
    command uses, and those that were begun after the last finished evaluation.

    Example: prefrec prune runs/shop --keep 2 --dry-run
    """
    outcome = prune_runs(link, keep, dry_run=dry_run)
    if as_json:
        o.print_json({str(folder): reason or "deleted" for folder, reason in outcome.items()})
        return
    for folder, reason in outcome.items():
        done = "would be deleted" if dry_run else "deleted"
        print(f"{folder}: {f'kept, {reason}' if reason else done}")
    if not outcome:
        print(f"{link.parent} has no runs whose names begin with {link.name}.")

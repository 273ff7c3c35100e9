"""`prefrec switch`: let a link lead to another run, if it does not answer worse."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefrec.cli import _options as o
from prefrec.recommend.succession import switch as switch_link
from prefrec.runs.links import target_of


def switch(
    link: Annotated[Path, Parameter(help="Link to the run that is served. It is created if needed.")],
    run: o.RunFolder,
    /,
    *,
    force: Annotated[bool, Parameter(help="Switch although the run answers worse.")] = False,
    as_json: o.AsJson = False,
) -> None:
    """Let a link lead to another run, if that run is whole and does not answer worse.

    The default rankers of both runs answer the newest test examples, and so do those for items that are new to the
    user. If the 95% interval of a difference in NDCG@10 is below 0, the link stays. `prefrec serve LINK` notices the
    change and opens the run. The same command with the earlier run leads back.

    Example: prefrec switch runs/shop runs/shop.2026-11-30
    """
    before = target_of(link)
    found = switch_link(link, run, force=force)
    now = str(target_of(link))
    if as_json:
        comparison = found.to_json() if found else None
        o.print_json({"link": str(link), "before": before and str(before), "now": now, "succession": comparison})
        return
    if found:
        print(f"{found.sentence}.")
    print(f"{link} leads to {now}.")
    if before and str(before) != now:
        print(f"To go back: prefrec switch {link} {before} --force")

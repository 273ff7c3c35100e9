"""`prefrec plan`: list the stages of a run, and why they have to run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.pipeline.peak import peak_sentence
from prefrec.pipeline.run import expected, survey
from prefrec.recipe import load_recipe
from prefrec.report.tables import Cell, Grid, Printed
from prefrec.report.wording import clock


def plan(
    recipe: Annotated[Path, Parameter(help="Recipe (YAML). `prefrec init` writes one.")],
    /,
    *,
    out: o.RunOut = None,
    override: o.Override = None,
    as_json: o.AsJson = False,
) -> None:
    """List the stages of a recipe's run, and why each has to run.

    Time and memory are from the last time that the stage ran in this folder. What is due is estimated
    from a few steps of each language model, which are measured now. The peak of memory of the
    whole run is estimated from the numbers of users, items and rankers; if this machine has less, the plan says so.

    Example: prefrec plan recipes/demo.yaml --set align.s-dpo.beta=0.5
    """
    loaded = load_recipe(recipe, override or [])
    folder = out or Path("runs") / loaded.name
    stages = survey(loaded, folder)
    if as_json:
        o.print_json(stages)
        return
    price = expected(loaded, folder)
    rows = [(s["stage"], [Cell(text) for text in _texts(s)], "") for s in stages]
    left = sum(bool(s["why"]) for s in stages)
    note = f"{left} of {len(stages)} stages have to run" if left else "all stages are up to date"
    prepared = not stages[0]["why"]
    note += f"\n{price}" if price else "" if prepared else "\nRun it with --until prepare to see the expected time"
    if memory := peak_sentence(loaded, folder):
        note += f"\n{memory}"
    Console().print(Printed(Grid(["due", "needs", "last time", "memory"], rows), "stage", note))


def _texts(stage: dict[str, Any]) -> tuple[str, ...]:
    size = stage["peak_bytes"]
    memory = f"{size / 2**30:.1f} GiB" if size else "–"
    return stage["why"] or "no", ", ".join(stage["needs"]) or "–", clock(stage["seconds"]), memory

"""`prefrec run`: run a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from prefrec.cli import _options as o


def run(
    recipe: Annotated[Path, Parameter(help="Recipe (YAML). `prefrec init` writes one.")],
    /,
    *,
    out: o.RunOut = None,
    until: Annotated[
        str, Parameter(help="Last stage to run: prepare, sft, evaluate, report or a ranker's name.")
    ] = "report",
    override: o.Override = None,
    strict: Annotated[
        bool, Parameter(help="Stop before training unless the audit finds the candidate sets fair.")
    ] = False,
    as_json: o.AsJson = False,
) -> None:
    """Run a recipe: prepare, SFT, alignment, evaluation, report.

    Stages whose inputs have not changed are skipped. The same command resumes an interrupted run.

    Example: prefrec run recipes/lastfm.yaml --set data.path=/data/hetrec2011-lastfm-2k --set sft.rows=400
    """
    # Imported here, so that --help need not wait for torch and transformers.
    from prefrec.cli._carry_out import carry_out
    from prefrec.recipe import load_recipe

    loaded = load_recipe(recipe, [*(override or []), *(["evaluate.on_leak=stop"] if strict else [])])
    folder = out or Path("runs") / loaded.name
    carry_out(loaded, folder, until, as_json)

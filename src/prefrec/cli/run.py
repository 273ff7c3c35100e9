"""`prefrec run`: a whole recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from prefrec.cli._output import print_preferences, print_scores
from prefrec.files import read_json
from prefrec.pipeline.recipe import load_recipe
from prefrec.pipeline.run import run_recipe
from prefrec.runs.contents import PREFERENCES


def run(
    recipe: Annotated[Path, typer.Argument(help="YAML file; `recipes/` holds examples.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; default runs/NAME.")] = None,
    until: Annotated[str, typer.Option(help="Last stage: prepare, sequential, sft, align…")] = "report",
    override: Annotated[
        list[str] | None, typer.Option("--set", help="FIELD=VALUE, such as sft.rows=100; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print metrics as JSON, for machines.")] = False,
) -> None:
    """Carry out a recipe: prepare, SFT, alignment, evaluation, report.

    Stages whose inputs have not changed are skipped, and an interrupted run goes on where it stopped: run the
    same command again.

    Examples: prefrec run recipes/demo.yaml

    prefrec run recipes/lastfm.yaml --set data.path=/data/hetrec2011-lastfm-2k --set sft.rows=400
    """
    loaded = load_recipe(recipe, override or [])
    folder = out or Path("runs") / loaded.name
    result = run_recipe(loaded, folder, until=until)
    metrics = read_json(folder / "metrics.json") if until in ("evaluate", "report") else None
    preferences = read_json(folder / PREFERENCES) if metrics else None
    if as_json:
        told = {"run": str(folder), "metrics": metrics} | ({"preferences": preferences} if preferences else {})
        typer.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return
    if metrics:
        print_scores(metrics)
    if preferences:
        print_preferences(preferences)
    typer.echo(f"Report: {result}" if until == "report" else f"Run: {result}")

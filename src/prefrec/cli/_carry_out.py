"""Run a recipe for a verb, and print the results."""

from __future__ import annotations

from pathlib import Path

import typer
from rich.console import Console

from prefrec.cli import _options as o
from prefrec.cli._output import print_scores
from prefrec.evaluation.best import Best
from prefrec.evaluation.preferences import Preferences
from prefrec.files import read_json
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.recipe import Recipe
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.update import GROUPS
from prefrec.recommend.succession import compare_served
from prefrec.report.tables import Printed, preference_grids
from prefrec.runs.contents import BEST, METRICS, PREFERENCES, UPDATE


def carry_out(recipe: Recipe, folder: Path, until: str, as_json: bool) -> None:
    """Run a recipe in a folder, and print the results. What an update would serve is compared with the run before."""
    result = run_recipe(recipe, folder, until=until)
    metrics = read_json(folder / METRICS) if until in ("evaluate", "report") else None
    preferences, update, best = (
        read_json(folder / name) if metrics else None for name in (PREFERENCES, UPDATE, BEST)
    )
    succession = compare_served(open_run(recipe.update.run), open_run(folder)) if recipe.update and metrics else None
    if as_json:
        more = {"preferences": preferences, "update": update, "best": best}
        more |= {"succession": succession.to_json()} if succession else {}
        o.print_json({"run": str(folder), "metrics": metrics} | {name: part for name, part in more.items() if part})
        return
    if metrics:
        print_scores(metrics)
    if preferences:
        measured = Preferences.from_json(preferences)
        scores, differences = preference_grids(measured)
        note = f"liked over disliked items, {measured.users} users; chance AUC 0.500\n{measured.weight_sentence()}"
        Console().print(Printed(scores, "scores", note.strip()), Printed(differences, "scores − against"))
    for group, part in (update or {}).items():
        typer.echo(f"{group} examples: {GROUPS[group]}\n")
        print_scores({"evaluation": part, "generation": None})
    if best:
        typer.echo(
            f"{Best.from_json(best).sentence}. serve, recommend and export use it unless --ranker names another."
        )
    if succession:
        typer.echo(f"{succession.sentence}.")
    typer.echo(f"Report: {result}" if until == "report" else f"Run: {result}")

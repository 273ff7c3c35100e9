"""Run a recipe for a verb, and print the results."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from prefrec.cli import _options as o
from prefrec.cli._output import print_outcome
from prefrec.evaluation import Evaluation
from prefrec.pipeline.opened import open_run
from prefrec.pipeline.run import run_recipe
from prefrec.pipeline.update import GROUPS
from prefrec.recipe import Recipe
from prefrec.recommend.succession import compare_served
from prefrec.report import REPORT
from prefrec.report.headline import plain_words
from prefrec.report.tables import Printed, preference_grids
from prefrec.runs.contents import read_run
from prefrec.runs.results import Results


def carry_out(recipe: Recipe, folder: Path, until: str, as_json: bool) -> None:
    """Run a recipe in a folder, and print the results. What an update would serve is compared with the run before."""
    run = run_recipe(recipe, folder, until=until)
    results = run.results if until in ("evaluate", "report") else Results()
    succession = compare_served(open_run(recipe.update.run), run) if recipe.update and results.evaluation else None
    if as_json:
        parts = {name.removesuffix(".json"): part for name, part in results.to_json().items()}
        more = {"succession": succession.to_json()} if succession else {}
        o.print_json({"run": str(folder), "metrics": None} | parts | more)
        return
    print_outcome(results)
    if preferences := results.preferences:
        scores, differences = preference_grids(preferences)
        note = f"liked over disliked items, {preferences.users} users; chance AUC 0.500"
        note = f"{note}\n{preferences.weight_sentence()}".strip()
        Console().print(Printed(scores, "scores", note), Printed(differences, "scores − against"))
    for group, compared in results.update.items():
        print(f"{group} examples: {GROUPS[group]}\n")
        print_outcome(Results(evaluation=compared))
    if results.best:
        print(f"{results.best.sentence}. serve, recommend and export use the default unless --ranker names another.")
    if succession:
        print(f"{succession.sentence}.")
    if words := plain_words(read_run(folder, run.data, results)):
        print(words)
    if results.evaluation:
        print(_next_step(results.evaluation, folder, has_report=until == "report"))
    print(f"Report: {folder / REPORT}" if until == "report" else f"Run: {folder}")


def _next_step(evaluation: Evaluation, folder: Path, has_report: bool) -> str:
    """Return what to do with a finished run, and where the rest of its results is."""
    if evaluation.audit.state == "bad":
        step = "Next: mend the candidate sets as the audit says, and run the recipe again."
    else:
        step = f"Next: `prefrec recommend {folder} --history TITLE` answers, `prefrec serve {folder} --ui` as a page."
    report = "The report" if has_report else f"The report that `prefrec report {folder}` writes"
    return f"{step} {report} has all metrics, groups of targets, and what each part of a blend adds."

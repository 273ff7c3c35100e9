"""Write the folder of a study: table.csv, table.md, plots, page.html and study.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefrec.evaluation import NoAudit
from prefrec.files import write_json, write_text, write_whole
from prefrec.pipeline.opened import Run
from prefrec.processes import is_first
from prefrec.recipe import dump_recipe
from prefrec.report.render import page_environment
from prefrec.report.svg import as_image
from prefrec.runs.stage import machine
from prefrec_lab.study_tools.study import Drawing, Outcome, Study
from prefrec_lab.study_tools.tables import markdown

STUDY_FILE = "study.json"
PAGE = "page.html"
DPI = 160
"""Resolution of the PNG files, in dots per inch."""
UNAUDITED = NoAudit("this result was made without an audit").verdict

_environment = page_environment("prefrec_lab.study_tools", "prefrec.report")


def write_study(study: Study, runs: Sequence[Run], outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Write all results of a study into its folder; return the content of study.json.

    If there are several processes, the first one writes.
    """
    outcome = _with_true_seeds(runs, outcome)
    summary = _summary(study, runs, outcome, folder)
    if not is_first():
        return summary
    folder.mkdir(parents=True, exist_ok=True)
    for name, run in zip(_names(runs), runs, strict=True):
        write_text(folder / f"{name}.recipe.yaml", dump_recipe(run.recipe))
    for table in outcome.tables:
        write_whole(folder / f"{table.name}.csv", table.frame.write_csv)
    for drawing in outcome.drawings:
        _write_drawing(drawing, folder)
    write_text(folder / "table.md", _markdown(summary, outcome))
    write_text(folder / PAGE, _page(summary, runs, outcome))
    write_json(folder / STUDY_FILE, summary)
    return summary


def verdicts(runs: Sequence[Run]) -> list[str]:
    """Return the audits' verdicts on the candidate sets of these runs, without repetitions."""
    evaluations = [run.results.evaluation for run in runs]
    return list(dict.fromkeys(found.audit.verdict if found else UNAUDITED for found in evaluations))


def _names(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its seed, or its folder if two have the same seed; equal names are numbered."""
    if len({run.recipe.seed for run in runs}) == len(runs):
        return [f"seed-{run.recipe.seed}" for run in runs]
    names: list[str] = []
    for run in runs:
        name, number = run.folder.name, 1
        while name in names:
            number += 1
            name = f"{run.folder.name}-{number}"
        names.append(name)
    return names


def _with_true_seeds(runs: Sequence[Run], outcome: Outcome) -> Outcome:
    """Name the seeds' columns of the tables by the seeds of the runs, if each run has its own column."""
    seeds = [run.recipe.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        return outcome
    names = {f"seed_{place}": f"seed_{seed}" for place, seed in enumerate(seeds)}
    tables = []
    for table in outcome.tables:
        columns = {c for c in table.frame.columns if c.startswith("seed_")}
        tables.append(replace(table, frame=table.frame.rename(names)) if columns == names.keys() else table)
    return replace(outcome, tables=tables)


def _summary(study: Study, runs: Sequence[Run], outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Return plain JSON values: the question, the models and examples, and all numbers."""
    first = runs[0]
    return {
        "study": study.name,
        "question": study.question,
        "varied": study.varied,
        "n": outcome.n,
        "users": outcome.users,
        "seeds": list(dict.fromkeys(run.recipe.seed for run in runs)),
        "intervals": "95%, jackknife over users; the choice of seed is not in them",
        "model": first.recipe.model.name,
        "data": ", ".join(dict.fromkeys(str(run.data.protocol.get("source")) for run in runs)),
        "candidates": first.recipe.data.candidates.size,
        "split": first.recipe.evaluate.split,
        "verdicts": verdicts(runs),
        "facts": outcome.facts,
        "notes": outcome.notes,
        "tables": {t.name: json.loads(t.frame.fill_nan(None).write_json()) for t in outcome.tables},
        "plots": [d.name for d in outcome.drawings],
        "folder": str(folder),
        "runs": [str(run.folder) for run in runs],
        "recipes": [run.recipe.model_dump(mode="json") for run in runs],
        "environment": machine() | {"seed": first.recipe.seed},
    }


def _markdown(summary: dict[str, Any], outcome: Outcome) -> str:
    seeds = ", ".join(map(str, summary["seeds"]))
    parts = [
        f"## {summary['study']}",
        summary["question"],
        f"Varied: {summary['varied']}",
        f"n = {outcome.n:,} rows of {outcome.users:,} users, {summary['candidates']} candidates per row; "
        f"seeds {seeds}; {summary['model']} on {summary['data']}.",
        *dict.fromkeys([*summary["verdicts"], *outcome.facts]),
        *(markdown(t) for t in outcome.tables),
        *outcome.notes,
    ]
    return "\n\n".join(parts) + "\n"


def _page(summary: dict[str, Any], runs: Sequence[Run], outcome: Outcome) -> str:
    return _environment.get_template("page.html.jinja2").render(
        summary=summary,
        facts=[
            ("Rows", f"{outcome.n:,}"),
            ("Users among them", f"{outcome.users:,}"),
            ("Seeds", ", ".join(map(str, summary["seeds"]))),
            ("Candidates per row", str(summary["candidates"])),
            ("Model", summary["model"]),
            ("Data", str(summary["data"])),
        ],
        outcome=outcome,
        plots=[{"title": d.title, "image": as_image(d.figure, d.alt), "hint": d.hint} for d in outcome.drawings],
        recipes=[(run.folder.name, dump_recipe(run.recipe)) for run in runs],
        environment={k: v for k, v in summary["environment"].items() if v is not None},
    )


def _write_drawing(drawing: Drawing, folder: Path) -> None:
    """Write PNG and SVG on white, because the colour of the pages that show them is not known."""
    dates: dict[str, Any] = {"svg": {"Date": None}, "png": None}
    for kind, metadata in dates.items():
        save = partial(drawing.figure.savefig, format=kind, dpi=DPI, facecolor="white", metadata=metadata)
        write_whole(folder / f"{drawing.name}.{kind}", save)

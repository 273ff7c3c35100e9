"""Write the report: the run's results as sentences, tables and plots in one self-contained HTML file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from prefrec.errors import without_secrets
from prefrec.evaluation import Audit, Evaluation
from prefrec.evaluation.labels import FULL_METRICS, HEADLINE_METRICS
from prefrec.files import write_text
from prefrec.report import curves, tables
from prefrec.report.examples import EACH, SEED, pick_examples
from prefrec.report.headline import plain_words, users_served, verdict
from prefrec.report.svg import can_plot, whisker_plot
from prefrec.report.wording import label, metric_label
from prefrec.runs.contents import RunContents

REPORT = "report.html"


def page_environment(*packages: str) -> jinja2.Environment:
    """Return the jinja2 environment of the HTML templates in `packages`; the first package with a template wins."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages])
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


_environment = page_environment("prefrec.report")


def write_report(run: RunContents) -> Path:
    """Write `report.html` to a run's folder and return its path."""
    path = run.folder / REPORT
    write_text(path, render(run))
    return path


def render(run: RunContents) -> str:
    """Return the report as HTML."""
    results = run.results
    evaluation = results.evaluation
    page = _environment.get_template("report.html.jinja2").render(
        name=str(run.recipe.get("name") or run.folder.resolve().name),
        run=run,
        facts=facts(run),
        verdict=verdict(run),
        plain_words=plain_words(run),
        users_served=users_served(run.results),
        audit=evaluation.audit if evaluation else None,
        diagnosis=_diagnosis(evaluation),
        tables=_tables(run, evaluation) if evaluation else None,
        defaults=tables.default_grid(results.best) if results.best else None,
        preferences=tables.preference_grids(results.preferences) if results.preferences else None,
        stages=tables.stages_grid(run.stages),
        training=curves.training_plots(run.stages),
        silent=[label(s.name) for s in run.stages if not s.log],
        picked=pick_examples(run),
        each=EACH,
        seed=SEED,
        protocol=_protocol(run.data.protocol) if run.data else None,
        elsewhere=other_machines(run),
    )
    return _without_folders(page, run)


def _without_folders(page: str, run: RunContents) -> str:
    """Return a page with the names of files and folders in place of their absolute paths on this machine.

    A report is sent to others, and paths tell names of users and of projects.
    """
    paths = {str(run.folder), str(run.folder.resolve())}
    values: list[Any] = [run.recipe, run.data.protocol if run.data else {}]
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, list):
            values += value
        elif isinstance(value, str):
            paths.add(value)
    for path in sorted((p for p in paths if Path(p).is_absolute()), key=len, reverse=True):
        if name := Path(path).name:
            page = page.replace(str(markupsafe.escape(path)), str(markupsafe.escape(f"…/{name}")))
    return page


def _diagnosis(evaluation: Evaluation | None) -> list[str]:
    """Return the audit's sentences about the data set."""
    diagnosis = getattr(evaluation.audit, "diagnosis", None) if evaluation else None
    return diagnosis.sentences if diagnosis else []


def _tables(run: RunContents, evaluation: Evaluation) -> dict[str, Any]:
    full, generation = run.results.full_catalogue, run.results.generation
    colours = curves.stage_colours(run.stages)
    drawn, metrics, where = evaluation, headline_metrics(evaluation), ""
    if full:
        drawn = full
        metrics = [m for m in FULL_METRICS if m in full.measured]
        where = ", full ranking"
    groups = tables.groups_grid(evaluation, full)
    shown = tables.shown_baselines(evaluation, full)
    blocks = (("Candidate sets", evaluation), ("Full ranking", full))
    return {
        "evaluation": evaluation,
        "metrics": tables.folded(tables.metrics_grid(evaluation, full), shown),
        "groups": groups and tables.folded(groups, shown),
        "targets": [(title, tables.folded(grid, shown)) for title, grid in tables.targets_grids(evaluation, full)],
        "logs": tables.logs_notes(evaluation.logs),
        "plots": [(metric_label(m) + where, whisker_plot(drawn, m, colours)) for m in metrics if can_plot()],
        "differences": [
            (title, tables.differences_grid(block.comparisons), tables.comparisons_note(block), block.audit.headline)
            for title, block in blocks
            if block and block.comparisons
        ],
        "full": full,
        "generation": tables.metrics_grid(generation) if generation else None,
        "audit": tables.audit_grid(evaluation.audit) if isinstance(evaluation.audit, Audit) else None,
    }


def _protocol(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of `protocol.json` to show, and its whole text."""
    counts, listed = protocol.get("counts", {}), protocol.get("candidates", {})
    shown = {k: protocol.get(k) for k in ("source", "domain", "split", "seed")}
    shown["candidates"] = f"{listed['size']}, {listed['kind']}" if {"size", "kind"} <= set(listed) else None
    shown |= {k.replace("_", " "): f"{v:,}" for k, v in counts.items() if isinstance(v, int)}
    return {
        "facts": {k: v for k, v in shown.items() if v is not None},
        "rows": [(k, n, counts.get("row_users", {}).get(k)) for k, n in counts.get("rows", {}).items()],
        "notes": protocol.get("notes", []),
        "text": json.dumps(without_secrets(protocol), indent=2, ensure_ascii=False),
    }


def facts(run: RunContents) -> list[tuple[str, str]]:
    """Return (name, value) pairs that describe the run."""
    pairs = [("Model", run.model)]
    split = run.results.split
    evaluation = run.results.evaluation
    if run.data:
        protocol = run.data.protocol
        sizes = sorted({len(e.candidates) for e in run.data.split(split)})
        pairs += [("Data", str(protocol.get("source", ""))), ("Split", str(protocol.get("split", "")))]
        pairs.append(("Candidates per example", "–".join(str(s) for s in dict.fromkeys(sizes[:1] + sizes[-1:]))))
    if evaluation:
        pairs += [(f"{split.capitalize()} examples", f"{evaluation.n:,}"), ("Users", f"{evaluation.users:,}")]
    steps = [label(s.name) + ("" if s.state.get("finished") else " (not finished)") for s in run.stages]
    pairs.append(("Trained", " → ".join(steps)))
    return [(name, value) for name, value in pairs if value]


def headline_metrics(evaluation: Evaluation) -> list[str]:
    """Return those of HR@1 and NDCG@10 that were measured, else the first metric."""
    return [m for m in HEADLINE_METRICS if m in evaluation.measured] or evaluation.measured[:1]


def other_machines(run: RunContents) -> list[str]:
    """Return a sentence for each stage whose machine or versions differ from those of the last command."""
    sentences = []
    for part, machine in run.machines.items():
        differing = [k for k in machine if k in run.environment and machine[k] != run.environment[k]]
        if differing:
            listed = ", ".join(f"{k} {machine[k]} (not {run.environment[k]})" for k in differing)
            sentences.append(f"{part}/ was made with {listed}.")
    return sentences

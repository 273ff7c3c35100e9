"""Write the report: the run's contents in words, tables and plots, in one HTML file that needs no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from prefrec.evaluation import Evaluation
from prefrec.files import write_text
from prefrec.report import curves, tables
from prefrec.report.examples import EACH, SEED, pick_examples
from prefrec.report.findings import facts, findings, headline_metrics, other_machines
from prefrec.report.svg import whisker_plot
from prefrec.report.wording import label, metric_label
from prefrec.runs.contents import RunContents, read_run

REPORT = "report.html"


def page_environment(*packages: str) -> jinja2.Environment:
    """Return the jinja2 environment of HTML templates in `packages`; the first package with a template has it."""
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages]),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )


_environment = page_environment("prefrec.report")


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder and return its path; errors are those of `read_run`."""
    path = Path(run) / REPORT
    write_text(path, render(read_run(Path(run))))
    return path


def render(run: RunContents) -> str:
    """Return the report as HTML."""
    evaluation = run.evaluation
    audit = evaluation.audit if evaluation else None
    return _environment.get_template("report.html.jinja2").render(
        name=str(run.recipe.get("name") or run.folder.resolve().name),
        run=run,
        facts=facts(run),
        findings=findings(run),
        verdict=audit.verdict if audit else "",
        leaks=bool(audit and audit.leaks),
        results=_results(run, evaluation) if evaluation else None,
        preferences=tables.preference_grids(run.preferences) if run.preferences else None,
        training={
            "stages": tables.stages_grid(run.stages),
            "sft": curves.sft_plots(run.stages),
            "align": curves.align_plots(run.stages),
            "colours": curves.stage_colours(run.stages),
            "silent": [label(s.name) for s in run.stages if not s.log],
            "smooth_from": curves.SMOOTH_FROM,
        },
        picked=pick_examples(run),
        each=EACH,
        seed=SEED,
        protocol=_protocol(run.data.protocol) if run.data else None,
        elsewhere=other_machines(run),
    )


def _results(run: RunContents, evaluation: Evaluation) -> dict[str, Any]:
    chance, full = tables.chance_of(evaluation), run.full_catalogue
    trained = [s.name for s in run.stages]
    metrics = headline_metrics(evaluation)
    blocks = (("On the lists", evaluation), ("Over the whole catalogue", full))
    return {
        "evaluation": evaluation,
        "metrics": tables.metrics_grid(evaluation, full),
        "groups": tables.groups_grid(evaluation, full),
        "plots": [(metric_label(m), whisker_plot(evaluation, m, trained, chance.get(m))) for m in metrics],
        "differences": [
            (title, tables.differences_grid(block), tables.comparisons_note(block))
            for title, block in blocks
            if block and block.comparisons
        ],
        "full": full,
        "generation": tables.metrics_grid(run.generation) if run.generation else None,
        "audit": tables.audit_grid(evaluation.audit) if evaluation.audit else None,
    }


def _protocol(protocol: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of `protocol.json` that are shown, and all of it as text."""
    counts, listed = protocol.get("counts", {}), protocol.get("candidates", {})
    shown = {k: protocol.get(k) for k in ("source", "domain", "split", "seed")}
    shown["candidates"] = f"{listed['size']}, {listed['kind']}" if {"size", "kind"} <= set(listed) else None
    shown |= {k.replace("_", " "): f"{v:,}" for k, v in counts.items() if isinstance(v, int)}
    return {
        "facts": {k: v for k, v in shown.items() if v is not None},
        "rows": [(k, n, counts.get("row_users", {}).get(k)) for k, n in counts.get("rows", {}).items()],
        "notes": protocol.get("notes", []),
        "text": json.dumps(protocol, indent=2, ensure_ascii=False),
    }

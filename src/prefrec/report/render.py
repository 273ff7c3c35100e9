"""Write the report: the run's contents, put into words, tables and plots, in one HTML file that needs no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prefrec.evaluation import Evaluation
from prefrec.files import write_whole
from prefrec.report import curves, tables
from prefrec.report.examples import EACH, SEED, pick_examples
from prefrec.report.findings import facts, findings, headline_metrics, other_machines
from prefrec.report.pages import page_environment
from prefrec.report.whiskers import whisker_plot
from prefrec.report.wording import label, metric_label
from prefrec.runs.contents import RunContents, read_run

REPORT = "report.html"

_environment = page_environment("prefrec.report")


def write_report(run: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Parts that the run does not have (yet) are named in the report.

    Raises:
        DataError: no such folder, or it holds no part of a run.
    """
    text = render(read_run(Path(run)))
    path = Path(run) / REPORT
    write_whole(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return path


def render(run: RunContents) -> str:
    """The report as HTML."""
    template = _environment.get_template("report.html.jinja2")
    name = str(run.recipe.get("name") or run.folder.resolve().name)
    evaluation = run.evaluation
    return template.render(
        name=name,
        run=run,
        facts=facts(run),
        findings=findings(run),
        verdict=tables.audit_verdict(run),
        leaks=bool(evaluation and evaluation.audit and evaluation.audit.leaks),
        results=_results(run, evaluation) if evaluation else None,
        preferences=tables.preference_grids(run.preferences) if run.preferences else None,
        training=_training(run),
        picked=pick_examples(run),
        each=EACH,
        seed=SEED,
        protocol=_protocol(run),
        elsewhere=other_machines(run),
    )


def _results(run: RunContents, evaluation: Evaluation) -> dict[str, Any]:
    """Tables and plots of the evaluation."""
    chance = tables.chance_of(evaluation)
    full = run.full_catalogue
    trained = [s.name for s in run.stages]
    return {
        "evaluation": evaluation,
        "metrics": tables.metrics_grid(evaluation, full),
        "groups": tables.groups_grid(evaluation, full),
        "plots": [
            (metric_label(m), whisker_plot(evaluation, m, trained, chance.get(m)))
            for m in headline_metrics(evaluation)
        ],
        "differences": [
            (title, tables.differences_grid(block), tables.comparisons_note(block))
            for title, block in (("On the lists", evaluation), ("Over the whole catalogue", full))
            if block and block.comparisons
        ],
        "full": full,
        "generation": tables.metrics_grid(run.generation) if run.generation else None,
        "audit": tables.audit_grid(evaluation.audit) if evaluation.audit else None,
    }


def _training(run: RunContents) -> dict[str, Any]:
    """Table and plots of the stages."""
    return {
        "stages": tables.stages_grid(run.stages),
        "sft": curves.sft_plots(run.stages),
        "align": curves.align_plots(run.stages),
        "colours": curves.stage_colours(run.stages),
        "silent": [label(s.name) for s in run.stages if not s.log],
        "smooth_from": curves.SMOOTH_FROM,
    }


def _protocol(run: RunContents) -> dict[str, Any] | None:
    """The parts of `protocol.json` that are shown, and the whole of it as text."""
    if run.data is None:
        return None
    protocol = run.data.protocol
    counts = protocol.get("counts", {})
    listed = protocol.get("candidates", {})
    facts = {k: protocol.get(k) for k in ("source", "domain", "split", "seed")}
    facts["candidates"] = f"{listed['size']}, {listed['kind']}" if {"size", "kind"} <= set(listed) else None
    facts |= {k.replace("_", " "): f"{v:,}" for k, v in counts.items() if isinstance(v, int)}
    return {
        "facts": {k: v for k, v in facts.items() if v is not None},
        "rows": [(k, n, counts.get("row_users", {}).get(k)) for k, n in counts.get("rows", {}).items()],
        "notes": protocol.get("notes", []),
        "text": json.dumps(protocol, indent=2, ensure_ascii=False),
    }

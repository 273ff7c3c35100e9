"""Write the report: the run's results as sentences, tables and plots in one self-contained HTML file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2

from prefrec.errors import without_secrets
from prefrec.evaluation import Audit, Evaluation
from prefrec.evaluation.labels import HEADLINE_METRICS
from prefrec.evaluation.outcome import Comparison
from prefrec.files import write_text
from prefrec.report import curves, tables
from prefrec.report.examples import EACH, SEED, pick_examples
from prefrec.report.svg import can_plot, whisker_plot
from prefrec.report.wording import includes_zero, label, metric_label, p_value, with_interval
from prefrec.runs.contents import RunContents, read_run

REPORT = "report.html"


def page_environment(*packages: str) -> jinja2.Environment:
    """Return the jinja2 environment of the HTML templates in `packages`; the first package with a template wins."""
    loader = jinja2.ChoiceLoader([jinja2.PackageLoader(package, ".") for package in packages])
    return jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )


_environment = page_environment("prefrec.report")


def write_report(run: Path) -> Path:
    """Write `report.html` to a run's folder and return its path; raise errors of `read_run`."""
    path = Path(run) / REPORT
    write_text(path, render(read_run(Path(run))))
    return path


def render(run: RunContents) -> str:
    """Return the report as HTML."""
    evaluation = run.evaluation
    return _environment.get_template("report.html.jinja2").render(
        name=str(run.recipe.get("name") or run.folder.resolve().name),
        run=run,
        facts=facts(run),
        verdict=verdict(run),
        audit=evaluation.audit if evaluation else None,
        diagnosis=_diagnosis(evaluation),
        results=_results(run, evaluation) if evaluation else None,
        preferences=tables.preference_grids(run.preferences) if run.preferences else None,
        stages=tables.stages_grid(run.stages),
        training=curves.training_plots(run.stages),
        silent=[label(s.name) for s in run.stages if not s.log],
        picked=pick_examples(run),
        each=EACH,
        seed=SEED,
        protocol=_protocol(run.data.protocol) if run.data else None,
        elsewhere=other_machines(run),
    )


def _diagnosis(evaluation: Evaluation | None) -> list[str]:
    """Return the audit's sentences about the data set."""
    diagnosis = getattr(evaluation.audit, "diagnosis", None) if evaluation else None
    return diagnosis.sentences if diagnosis else []


def _results(run: RunContents, evaluation: Evaluation) -> dict[str, Any]:
    full = run.full_catalogue
    colours = curves.stage_colours(run.stages)
    metrics = headline_metrics(evaluation)
    blocks = (("Candidate sets", evaluation), ("Full ranking", full))
    return {
        "evaluation": evaluation,
        "metrics": tables.metrics_grid(evaluation, full),
        "groups": tables.groups_grid(evaluation, full),
        "targets": tables.targets_grids(evaluation, full),
        "logs": tables.logs_notes(evaluation.logs),
        "plots": [(metric_label(m), whisker_plot(evaluation, m, colours)) for m in metrics if can_plot()],
        "differences": [
            (title, tables.differences_grid(block.comparisons), tables.comparisons_note(block), block.audit.headline)
            for title, block in blocks
            if block and block.comparisons
        ],
        "full": full,
        "generation": tables.metrics_grid(run.generation) if run.generation else None,
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
    if run.data:
        protocol = run.data.protocol
        sizes = sorted({len(e.candidates) for e in run.data.split(run.split)})
        pairs += [("Data", str(protocol.get("source", ""))), ("Split", str(protocol.get("split", "")))]
        pairs.append(("Candidates per example", "–".join(str(s) for s in dict.fromkeys(sizes[:1] + sizes[-1:]))))
    if run.evaluation:
        pairs.append((f"{run.split.capitalize()} examples", f"{run.evaluation.n:,}"))
        pairs.append(("Users", f"{run.evaluation.users:,}"))
    steps = [label(s.name) + ("" if s.state.get("finished") else " (not finished)") for s in run.stages]
    pairs.append(("Trained", " → ".join(steps)))
    return [(name, value) for name, value in pairs if value]


def verdict(run: RunContents) -> str:
    """Return the result in a sentence: the best ranker, its gain over the best baseline, and the audit's result.

    It is about full ranking if all examples were ranked, otherwise about candidate sets; "" without results.
    """
    sampled, full = run.evaluation, run.full_catalogue
    if sampled is None:
        return ""
    block, where = (full, "in full ranking") if full and full.n == sampled.n else (sampled, "on candidate sets")
    metric = "ndcg@10" if "ndcg@10" in block.measured else block.measured[0]
    most = max(of[metric].n for of in block.metrics.values() if metric in of)
    values = {r: of[metric] for r, of in block.metrics.items() if metric in of and of[metric].n == most}
    chosen = run.best.ranker if run.best and metric in block.metrics.get(run.best.ranker, {}) else None
    best, baseline = chosen or max(values, key=lambda r: values[r].mean), block.best_reference
    how = (
        f"is best on validation, with {metric_label(metric)}"
        if chosen
        else f"has the highest {metric_label(metric)},"
    )
    sentence = f"{label(best)} {how} {with_interval(block.metrics[best][metric])} {where}"
    gains = (c for c in block.comparisons if (c.ranker, c.against, c.metric) == (best, baseline, metric))
    if best == baseline:
        sentence += ", and is itself the best baseline"
    elif (gain := next(gains, None)) is not None:
        sentence += (
            f", {with_interval(gain)} over the best baseline, {label(gain.against)}: {_significance(gain, block)}"
        )
    return f"{sentence}. {sampled.audit.headline}"


def _significance(gain: Comparison, block: Evaluation) -> str:
    """Return whether a difference is significant after the correction for all comparisons of its table."""
    if math.isnan(gain.adjusted_p):  # not of the corrected metric
        return f"{'not ' * includes_zero(gain)}significant, without correction"
    family = sum(c.metric == gain.metric for c in block.comparisons)
    correction = f"after Holm’s correction for {family} comparisons" if family > 1 else "in the one comparison"
    return f"{'not ' * (not gain.stands)}significant {correction} ({p_value(gain.adjusted_p)})"


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

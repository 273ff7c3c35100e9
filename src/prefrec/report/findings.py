"""What was run and what was found, in sentences made of the numbers."""

from __future__ import annotations

from prefrec.evaluation import Comparison, Evaluation, Interval
from prefrec.evaluation.tables import FULL_METRICS, HEADLINE_METRICS
from prefrec.report.wording import includes_zero, label, metric_label, with_interval
from prefrec.runs.contents import RunContents


def facts(run: RunContents) -> list[tuple[str, str]]:
    """(name, value) pairs that say what was run."""
    found = [("Model", run.model)] if run.model else []
    if run.data:
        protocol = run.data.protocol
        found += [("Data", str(protocol.get("source", ""))), ("Split", str(protocol.get("split", "")))]
        sizes = sorted({len(e.candidates) for e in run.data.split(run.split)})
        spread = "–".join(str(s) for s in dict.fromkeys(sizes[:1] + sizes[-1:]))
        found += [("Candidates a row", spread)] if sizes else []
    if run.evaluation:
        found.append((f"{run.split.capitalize()} rows", f"{run.evaluation.n:,}"))
        found.append(("Users among them", f"{run.evaluation.users:,}"))
    steps = [label(s.name) + ("" if s.state.get("finished") else " (not finished)") for s in run.stages]
    found.append(("Trained", " → ".join(steps)))
    return [(name, value) for name, value in found if value]


def findings(run: RunContents) -> list[str]:
    """One sentence a model on the headline metric, then where the reference rankers and generation stand."""
    evaluation = run.evaluation
    if evaluation is None:
        return []
    metric = headline_metrics(evaluation)[0]
    trained = [s.name for s in run.stages if s.name in evaluation.metrics]
    models = trained or list(dict.fromkeys(c.ranker for c in evaluation.comparisons)) or evaluation.rankers
    sentences = [_sentence(evaluation, name, metric) for name in reversed(models)]
    sentences += _reference_sentence(run, evaluation, metric) + _full_sentence(run, models)
    return sentences + _generation_sentence(run, models)


def headline_metrics(evaluation: Evaluation) -> list[str]:
    """HR@1 and NDCG@10 where they were measured, else the first metric there is."""
    measured = list(dict.fromkeys(m for of in evaluation.metrics.values() for m in of))
    return [m for m in HEADLINE_METRICS if m in measured] or measured[:1]


def _sentence(evaluation: Evaluation, name: str, metric: str, where: str = "") -> str:
    value = evaluation.metrics[name].get(metric)
    start = (
        f"{label(name)}’s {metric_label(metric)}{where} is {with_interval(value)}"
        if value
        else f"{label(name)}: no value"
    )
    pairs = [c for c in evaluation.comparisons if (c.ranker, c.metric) == (name, metric)]
    if not pairs:
        return f"{start} on {evaluation.n:,} rows."
    best = evaluation.best_reference
    against = "; ".join(_against(c, best) for c in sorted(pairs, key=lambda c: c.against != best))
    return f"{start}: {against}, on the same {evaluation.n:,} rows."


def _against(comparison: Comparison, best: str | None) -> str:
    shown, other = with_interval(comparison.difference), label(comparison.against)
    other = f"the best reference row, {other}" if comparison.against == best else other
    if includes_zero(comparison.difference):
        return f"no difference shown against {other} ({shown})"
    return f"{shown} against {other}"


def _full_sentence(run: RunContents, models: list[str]) -> list[str]:
    """The last model over the whole catalogue, against the best reference row there."""
    full = run.full_catalogue
    name = next((m for m in reversed(models) if full and m in full.metrics), None)
    if full is None or name is None:
        return []
    return [_sentence(full, name, FULL_METRICS[0], " over the whole catalogue")]


def _reference_sentence(run: RunContents, evaluation: Evaluation, metric: str) -> list[str]:
    """The best ranker that is no language model of this run, and chance.

    Every kind of the recipe's `rankers` has one in it, MoRec its encoder of titles.
    """
    models = {"zero-shot", *(s.name for s in run.stages), *run.further}
    others = {r: of[metric] for r, of in evaluation.metrics.items() if r not in models and metric in of}
    chance = f" Chance is {evaluation.chance:.3f}." if metric == "hr@1" else ""
    if not others or not run.stages:
        return [chance.strip()] if chance else []
    best = max(others, key=lambda r: others[r].mean)
    return [
        f"The best ranker without a language model is {label(best)}: {metric_label(metric)} "
        f"{with_interval(others[best])}.{chance}"
    ]


def _generation_sentence(run: RunContents, models: list[str]) -> list[str]:
    if run.generation is None:
        return []
    last = next((m for m in reversed(models) if m in run.generation.metrics), None)
    of: dict[str, Interval] = run.generation.metrics[last] if last else {}
    if last is None or not {"valid_ratio", "gen_hr@1"} <= set(of):
        return []
    return [
        f"Asked to answer in text on {run.generation.n:,} rows, {label(last)} has a valid ratio of "
        f"{with_interval(of['valid_ratio'])} and an HR@1 of {with_interval(of['gen_hr@1'])}."
    ]


def other_machines(run: RunContents) -> list[str]:
    """One sentence for each stage that was finished elsewhere, or by other versions, than the last command ran."""
    found = []
    for part, machine in run.machines.items():
        differing = [k for k in machine if k in run.environment and machine[k] != run.environment[k]]
        if differing:
            told = ", ".join(f"{k} {machine[k]} (not {run.environment[k]})" for k in differing)
            found.append(f"{part}/ was made with {told}.")
    return found

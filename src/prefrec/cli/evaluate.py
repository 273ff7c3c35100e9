"""`prefrec evaluate`: measure the scores of any software, with intervals and paired differences."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.markup import escape

from prefrec.cli import _options as o
from prefrec.errors import ConfigError
from prefrec.evaluation.external import Scored, evaluate_scores
from prefrec.evaluation.intervals import too_few_users
from prefrec.evaluation.outcome import FAMILY
from prefrec.intake.scored import read_scores, read_targets
from prefrec.report.headline import significance
from prefrec.report.tables import MARK, WEAK_MARK, WITH_INTERVALS, Printed, differences_grid, metrics_grid
from prefrec.report.wording import label, metric_label, with_interval


def evaluate(
    *,
    scores: Annotated[
        list[str],
        Parameter(help="Scores: FILE or NAME=FILE, a TREC run or a table. Repeatable; the first is compared with."),
    ],
    targets: Annotated[Path, Parameter(help="Targets: TREC qrels, or a log of test interactions.")],
    ks: Annotated[
        list[int] | None, Parameter(help="Further cut-offs of the metrics, besides 10. Repeatable.")
    ] = None,
    as_json: o.AsJson = False,
) -> None:
    """Measure the scores of any software on targets, with intervals, and compare runs.

    A table has columns such as user_id, item_id and score (CSV, TSV, Parquet, JSON lines). NDCG, recall, HR and MRR
    are those of trec_eval, in expectation over the order of equal scores. 95% intervals are over users and targets,
    or over users if some have several targets. Each run is compared with the first one, with Holm's correction.
    `prefrec evaluate-adapters` measures adapters on prepared data.

    Example: prefrec evaluate --scores implicit.run --scores ours=ours.csv --targets test.qrels
    """
    files = [_named(text) for text in scores]
    if twice := {name for name, _ in files if [n for n, _ in files].count(name) > 1}:
        raise ConfigError(f"--scores: two runs have the name {min(twice)!r}; name them, as in --scores ours=FILE")
    cuts = sorted({10, *(ks or [])})
    found = evaluate_scores({name: read_scores(path) for name, path in files}, read_targets(targets), cuts)
    if as_json:
        counts = {name: getattr(found, name) for name in ("without_scores", "without_targets", "several")}
        o.print_json(found.evaluation.to_json() | counts)
        return
    _print(found)


def _named(text: str) -> tuple[str, Path]:
    """Return name and file of `NAME=FILE` or `FILE`, whose name is that of the file without its suffix."""
    name, given, path = text.partition("=")
    return (name, Path(path)) if given and not Path(text).exists() else (Path(text).stem, Path(text))


def _print(found: Scored) -> None:
    """Print the table of the runs, what was not scored, and a sentence for each comparison."""
    out, block = Console(), found.evaluation
    # With one target a user, recall is the hit rate.
    metrics = [m for m in block.measured if found.several or not m.startswith("recall@")]
    over = "over users" if found.several else WITH_INTERVALS
    more = f", {found.several:,} of them with several targets" if found.several else ""
    note = f"n = {block.users:,} users{more}; 95% intervals {over}"
    if few := too_few_users(block.users):
        note += f"\n{few}"
    out.print(Printed(metrics_grid(block, metrics=sorted(metrics, key=_order)), "run", note))
    for name, count in found.without_scores.items():
        if count:
            out.print(
                escape(f"{name}: {count:,} of {block.users:,} users with targets have no score, and count with 0.")
            )
        if left := found.without_targets[name]:
            out.print(escape(f"{name}: {left:,} of the users with scores have no target, and are left out."))
    if block.comparisons:
        marks = f"{MARK} p < 0.05 after Holm’s correction for all runs, {WEAK_MARK} without correction"
        out.print(Printed(differences_grid(block.comparisons, sorted(metrics, key=_order)), "difference", marks))
    for gain in block.comparisons:
        if gain.metric == FAMILY:
            pair = f"{label(gain.ranker)} − {label(gain.against)}"
            told = f"{metric_label(gain.metric)} {with_interval(gain)}: {significance(gain, block)}."
            out.print(escape(f"{pair}: {told}"))


def _order(metric: str) -> tuple[int, str]:
    """Order metrics as tables of runs do: NDCG, hit rate, recall, MRR."""
    return next(n for n, start in enumerate(("ndcg", "hr", "recall", "mrr")) if metric.startswith(start)), metric

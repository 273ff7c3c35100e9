"""Study: query the same models with noise in the history, another order of candidates, or other titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import Catalogue, PreparedData, RankingExample
from prefrec.errors import DataError
from prefrec.evaluation import mean_interval, metrics_for
from prefrec.evaluation.labels import metric_label
from prefrec.evaluation.predictions import ranks_of
from prefrec.pipeline.opened import Run
from prefrec.report.tables import Cell, Grid
from prefrec.report.wording import label
from prefrec.sections import ModelSection
from prefrec.stages.item_texts import shows_candidates
from prefrec_lab.studies.alignments import dpo_and_s_dpo
from prefrec_lab.study_tools.measure import Measured, measure, ranking_values, same_rows
from prefrec_lab.study_tools.opened import ask
from prefrec_lab.study_tools.plots import Series, lines, slug
from prefrec_lab.study_tools.study import Drawing, Outcome, Study, Table
from prefrec_lab.study_tools.tables import (
    difference_cell,
    facts_of,
    interval_cell,
    plain_table,
    results_table,
    stacked_frames,
)

ROWS = 80
"""Most rows that are asked again: the first of those under test."""

NOISE = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Shares of the history that are replaced."""

ORDERS = 2
"""Number of other orders of the candidates."""

AS_IT_IS = "as it is"
THIRDS = ("first", "middle", "last")

Predictions = dict[str, dict[str, list[pl.DataFrame]]]
"""Model → condition → predictions of each seed."""


@dataclass(frozen=True)
class Condition:
    """A change of the questions: its name, what it does to rows and titles, and whether it only reorders."""

    name: str
    rows: Callable[[Sequence[RankingExample], PreparedData], list[RankingExample]]
    titles: Callable[[Catalogue], Catalogue] | None = None
    is_order: bool = False


def noisy(share: float) -> Callable[[Sequence[RankingExample], PreparedData], list[RankingExample]]:
    """Return a change that replaces a share of each history (at least one item) by random items not in the row.

    An item that a lower share replaces is replaced by the same item at a higher share.
    """

    def change(rows: Sequence[RankingExample], data: PreparedData) -> list[RankingExample]:
        return [_with_noise(e, share, data.catalogue.ids, np.random.default_rng((1, i))) for i, e in enumerate(rows)]

    return change


def shuffled(draw: int) -> Callable[[Sequence[RankingExample], PreparedData], list[RankingExample]]:
    """Return a change that puts the candidates of each row in another order."""

    def change(rows: Sequence[RankingExample], data: PreparedData) -> list[RankingExample]:
        orders = (np.random.default_rng((2, draw, i)).permutation(len(e.candidates)) for i, e in enumerate(rows))
        return [
            replace(e, candidates=tuple(e.candidates[j] for j in order))
            for e, order in zip(rows, orders, strict=True)
        ]

    return change


def lower_case(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with all titles in lower case: other tokens, the same names."""
    return Catalogue(catalogue.frame.with_columns(pl.col("title").str.to_lowercase()))


def numbered(catalogue: Catalogue) -> Catalogue:
    """Return the catalogue with titles that carry no meaning: `Item 1`, `Item 2`, … in a random order.

    In the catalogue's order the numbers could carry meaning: models prefer small numbers, and in many data sets the
    popular items come first.
    """
    names = [f"Item {i}" for i in 1 + np.random.default_rng(3).permutation(len(catalogue))]
    return Catalogue(catalogue.frame.with_columns(title=pl.Series(names, dtype=pl.String)))


def _same(rows: Sequence[RankingExample], data: PreparedData) -> list[RankingExample]:
    return list(rows)


CONDITIONS = (
    Condition(AS_IT_IS, _same),
    *(Condition(f"{share:.0%} of the history random", noisy(share)) for share in NOISE),
    *(Condition(f"candidates in another order, {i}", shuffled(i), is_order=True) for i in range(1, ORDERS + 1)),
    Condition("titles in lower case", _same, lower_case),
    Condition("titles replaced by numbers", _same, numbered),
)


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare each model under each condition with itself as it is; measure position bias over the orders.

    If prompts do not show the candidates, other orders are not asked about, and other titles if items are tokens.

    Raises:
        DataError: there is no trained language model, or the runs have different rows under test.
    """
    models = [n for n in runs[0].recipe.lm_rankers if all(n in run.models for run in runs)]
    if not models:
        raise DataError(f"{runs[0].folder}: no trained language model to ask again")
    conditions = conditions_for(runs[0].recipe.model, runs[0].data.domain)
    shown = any(c.is_order for c in conditions)
    predictions = ask_again(runs, models, conditions, folder / "asked")
    users = predictions[models[0]][AS_IT_IS][0]["user_id"].to_list()
    ks = runs[0].recipe.evaluate.ks
    measured = {m: measure(ranking_values(predictions[m], ks), users, baseline=AS_IT_IS) for m in models}
    metric = measured[models[0]].headline[-1]
    facts = [f"{label(m)}. {s}" for m in models for s in facts_of(measured[m], quantities=[metric])]
    tables = [_conditions_table(measured, metric), *(position_tables(predictions, users) if shown else [])]
    first = measured[models[0]]
    notes = [_TRAINED_NOTE, _POSITION_NOTE if shown else _HIDDEN_NOTE]
    return Outcome(tables, [_noise_drawing(measured, metric)], facts, first.n, first.users, notes)


def conditions_for(model: ModelSection, domain: str) -> list[Condition]:
    """Return the conditions that change a model's input, which may not contain candidates or titles."""
    shown, has_titles = shows_candidates(model, domain), model.answers == "titles"
    return [c for c in CONDITIONS if (shown or not c.is_order) and (has_titles or c.titles is None)]


def rows_of(run: Run) -> list[RankingExample]:
    """Return the examples of a run to query again."""
    section = run.recipe.evaluate
    return run.data.examples(section.split, min(section.rows or ROWS, ROWS))


def ask_again(
    runs: Sequence[Run], models: Sequence[str], conditions: Sequence[Condition], cache: Path
) -> Predictions:
    """Query every model under every condition, in every run; earlier predictions are read from `cache`."""
    predictions: Predictions = {m: {c.name: [] for c in conditions} for m in models}
    rows = same_rows(runs, rows_of)
    for run in runs:
        for condition in conditions:
            catalogue = run.data.catalogue
            changed = catalogue if condition.titles is None else condition.titles(catalogue)
            other = replace(run, data=replace(run.data, catalogue=changed))
            frames = ask(
                other, models, condition.rows(rows, run.data), cache / run.folder.name / slug(condition.name)
            )
            for model, frame in zip(models, frames, strict=True):
                predictions[model][condition.name].append(frame.sort("row"))
    return predictions


def position_tables(predictions: Predictions, users: Sequence[str]) -> list[Table]:
    """Return two tables: the first choice's position and stability over orders, and HR@1 by the target's position."""
    orders = [c.name for c in CONDITIONS if c.name == AS_IT_IS or c.is_order]
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    thirds = []
    for model, of_condition in predictions.items():
        positions, same = [], []
        frames: list[pl.DataFrame] = []
        for in_orders in zip(*(of_condition[name] for name in orders), strict=True):  # per seed, one frame per order
            choices = [_choices(frame) for frame in in_orders]
            positions.append(np.mean([_positions(f, c) for f, c in zip(in_orders, choices, strict=True)], axis=0))
            same.append([float(len(set(of_row)) == 1) for of_row in zip(*choices, strict=True)])
            frames += in_orders
        values[model] = {"place": np.stack(positions), "same": np.array(same)}
        thirds.append({"model": model, **_hits_by_third(frames, users)})
    labels = {"place": "place of the first choice (0 top, 1 bottom)", "same": f"same choice in {len(orders)} orders"}
    measured = measure(values, users)
    return [
        results_table(measured, labels=labels, name="position", title="Position bias", first="Model"),
        plain_table("thirds", "HR@1 by the target’s place in the list", "Model", pl.DataFrame(thirds), _THIRDS_NOTE),
    ]


def _with_noise(
    example: RankingExample, share: float, ids: Sequence[str], rng: np.random.Generator
) -> RankingExample:
    history, held = list(example.history), {*example.history, *example.candidates}
    positions = rng.permutation(len(history))
    drawn = [i for i in rng.permutation(len(ids)).tolist() if ids[i] not in held]
    count = max(1, round(share * len(history))) if history else 0
    for position, item in zip(positions[:count].tolist(), drawn, strict=False):
        history[position] = ids[item]
    return replace(example, history=tuple(history))


def _choices(frame: pl.DataFrame) -> list[str]:
    """Return the candidate with the highest score of each row; of equal ones the first by id."""
    pairs = frame.select("candidates", "scores").iter_rows()
    return [min(zip(candidates, scores, strict=True), key=lambda p: (-p[1], p[0]))[0] for candidates, scores in pairs]


def _positions(frame: pl.DataFrame, choices: Sequence[str]) -> list[float]:
    lists = frame["candidates"].to_list()
    return [c.index(chosen) / max(1, len(c) - 1) for c, chosen in zip(lists, choices, strict=True)]


def _hits_by_third(frames: Sequence[pl.DataFrame], users: Sequence[str]) -> dict[str, float | None]:
    """Return HR@1, with its interval, of questions whose target is in each third of the list."""
    hits: dict[str, list[tuple[str, float]]] = {third: [] for third in THIRDS}
    for frame in frames:
        rows = zip(
            users,
            frame["candidates"].to_list(),
            frame["target"],
            metrics_for([1])["hr@1"](*ranks_of(frame)),
            strict=True,
        )
        for user, candidates, target, hit in rows:
            third = THIRDS[3 * candidates.index(target) // len(candidates)]
            hits[third].append((user, hit))
    columns: dict[str, float | None] = {}
    for third, own in hits.items():
        interval = mean_interval([h for _, h in own], [u for u, _ in own]).to_json() if own else {}
        columns |= {third: interval.get("mean"), f"{third}, low": interval.get("low")}
        columns |= {f"{third}, high": interval.get("high"), f"{third}, n": interval.get("n")}
    return columns


def _conditions_table(measured: dict[str, Measured], metric: str) -> Table:
    """Return conditions × models: the metric, and its difference to the model as it is."""
    columns = [c for m in measured for c in (label(m), "difference")]
    first = next(iter(measured.values()))
    rows = []
    for condition in first.intervals:
        cells: list[Cell] = []
        for own in measured.values():
            gap = own.differences.get(condition, {}).get(metric)
            cells += [interval_cell(own.intervals[condition][metric]), difference_cell(gap)]
        rows.append((condition, cells, ""))
    frame = stacked_frames(measured, "model")
    note = (
        f"Means over {first.n:,} rows of {first.users:,} users, and paired differences from the same model as it is, "
        "with 95% intervals over users."
    )
    return Table("table", f"{metric_label(metric)} when asked again", "Condition", Grid(columns, rows), frame, note)


def _noise_drawing(measured: dict[str, Measured], metric: str) -> Drawing:
    names = [AS_IT_IS, *(c.name for c in CONDITIONS if c.name.endswith("random"))]
    shares = [0, *(100 * n for n in NOISE)]
    series = [Series(m, shares, [own.intervals[n][metric] for n in names]) for m, own in measured.items()]
    return lines("noise", metric_label(metric), series, x_label="percent of the history that is random")


_THIRDS_NOTE = "Over all orders of the candidates, with 95% intervals over users."
_TRAINED_NOTE = "The adapters are those of the run: no model saw noise, lower case or numbers in training."
_POSITION_NOTE = (
    "An unbiased model’s first choice lies in the middle of the list on average (0.5) and is the same in each order."
)
_HIDDEN_NOTE = "These prompts do not show the candidates, so their order cannot matter and is not varied."

ROBUSTNESS = Study(
    "robustness",
    "How much worse are the models with noise in the history, another order of the candidates, or other titles?",
    "the questions: 10–50% of the history random, candidates shuffled if prompts show them, titles in lower case or "
    "replaced by numbers; the models are the same.",
    dpo_and_s_dpo,
    analyse,
    reads_any_run=True,
    # The whole model and titles as text, with few rows. The prompt shows the candidates: their order may matter.
    overrides=(
        "data.history_length=10",
        "model={max_length: 768, templates: [movies/1]}",
        "lora={r: 16}",
        "sft={rows: 200, titles: 40, epochs: 1, learning_rate: 1.0e-3, eval_rows: 0}",
        "align=[{rows: 200, latest_per_user: 3, num_negatives: 8, negatives_from: list, learning_rate: 1.0e-4, "
        "global_batch_size: 8, max_grad_norm: 1.0}]",
        "evaluate={rows: 400, full_rows: 0, zero_shot: false, baselines: [random, popularity, co-occurrence]}",
    ),
)

"""Study: popularity bias of each stage's recommendations, and accuracy by groups of users."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefrec.data import PreparedData
from prefrec.evaluation.by_user import gini
from prefrec.pipeline.opened import Run
from prefrec.recipe import Recipe
from prefrec_lab.studies.alignments import dpo_and_s_dpo
from prefrec_lab.study_tools.measure import (
    Groups,
    Values,
    groups_of,
    measure,
    measure_groups,
    ranker_predictions,
    ranking_values,
    users_of,
)
from prefrec_lab.study_tools.opened import start_of
from prefrec_lab.study_tools.plots import dots, slug
from prefrec_lab.study_tools.study import Outcome, Study, Table
from prefrec_lab.study_tools.tables import facts_of, grouped_table, plain_table, results_table

TAKEN = "what users took"
"""Variant: the targets themselves, as the measure of popularity bias."""

DEPTHS = (1, 5)
"""Numbers of first items that count as recommended."""

LABELS = {f"top {k}": f"popularity of the first {k}" if k > 1 else "popularity of the first" for k in DEPTHS}

GROUPS = ("few", "middle", "many")
"""Thirds of the users under test, by their number of training interactions."""

LEAST = 20
"""Fewest rows of a group by an attribute; the users of smaller groups are put together as `OTHERS`."""

MOST_NUMBERS = 8
"""Most distinct numbers of an attribute that are a group each; more, such as ages, make thirds of the users."""

NOT_TOLD = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "unknown"})
"""Marks of an unknown value in tables, compared in lower case."""

OTHERS, UNKNOWN = "others", "not told"


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """Return the recipe with DPO and S-DPO, and the model before any training."""
    recipe = dpo_and_s_dpo(base, data)
    zero_shot = base.model.answers == "titles"
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"zero_shot": zero_shot})})


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Measure the popularity of recommended items, how many different ones there are, and accuracy by activity."""
    predictions = ranker_predictions(runs)
    data, users = runs[0].data, users_of(predictions)
    first = start_of(runs[0].recipe)
    start = first if first in predictions else None
    counts = item_counts(data)
    measured = measure(popularity_values(predictions, counts), users, baseline=start)
    popular = results_table(measured, labels=LABELS, title="Popularity of what is recommended", first="Ranker")
    exposure = plain_table("exposure", "Different items", "Ranker", exposure_frame(predictions), _EXPOSURE_NOTE)
    ranked = ranking_values(predictions, runs[0].recipe.evaluate.ks)
    by_attribute, alike = attribute_tables(ranked, users, data, start)
    accuracy = [group_table(ranked, users, data, start, alike), *by_attribute]
    models = runs[0].recipe.lm_rankers
    facts = facts_of(measured, [*models, TAKEN], LABELS, measured.quantities)
    drawings = [dots(measured, q, models, LABELS[q]) for q in measured.quantities]
    return Outcome([popular, exposure, *accuracy], drawings, facts, measured.n, measured.users, [_NOTE])


def item_counts(data: PreparedData) -> dict[str, int]:
    """Return item → training interactions."""
    return dict(data.train_interactions.group_by("item_id").len().iter_rows())


def popularity_values(predictions: Mapping[str, Sequence[pl.DataFrame]], counts: Mapping[str, int]) -> Values:
    """Return the mean training interactions [S, B] of the first items of each list, and of the targets (`TAKEN`)."""
    values: dict[str, dict[str, NDArray[np.float64]]] = {}
    for name, frames in predictions.items():
        lists = [recommended(frame, max(DEPTHS)) for frame in frames]
        values[name] = {
            f"top {k}": np.array([[np.mean([counts.get(i, 0) for i in row[:k]]) for row in rows] for rows in lists])
            for k in DEPTHS
        }
    frames = next(iter(predictions.values()))
    taken = np.array([[float(counts.get(t, 0)) for t in frame["target"].to_list()] for frame in frames])
    return values | {TAKEN: {f"top {k}": taken for k in DEPTHS}}


def recommended(frame: pl.DataFrame, k: int) -> list[list[str]]:
    """Return the k candidates of each row with the highest scores, best first; ties in the order of their ids."""
    lists = []
    for candidates, scores in frame.select("candidates", "scores").iter_rows():
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i]))
        lists.append([candidates[i] for i in order[:k]])
    return lists


def exposure_frame(predictions: Mapping[str, Sequence[pl.DataFrame]]) -> pl.DataFrame:
    """Return coverage and Gini index of the recommended items, mean over the seeds.

    Both are over the items of the lists. Coverage is the share of them that is recommended at all. The Gini
    coefficient is 0 if all are recommended equally often, and near 1 if one item takes all.
    """
    rows = []
    for name, frames in predictions.items():
        listed = sorted({i for c in frames[0]["candidates"].to_list() for i in c})
        row: dict[str, Any] = {"ranker": name}
        for k in DEPTHS:
            times = [_times(recommended(frame, k), listed) for frame in frames]
            row[f"coverage at {k}"] = float(np.mean([(t > 0).mean() for t in times]))
            row[f"Gini at {k}"] = float(np.mean([gini(t.astype(np.float64)) for t in times]))
        rows.append(row)
    return pl.DataFrame(rows)


def _times(lists: Sequence[Sequence[str]], items: Sequence[str]) -> NDArray[np.int64]:
    counted = Counter(i for one in lists for i in one)
    return np.array([counted[i] for i in items], dtype=np.int64)


def activity_groups(users: Sequence[str], data: PreparedData) -> list[str]:
    """Return the group of each row's user [B]: thirds of the users by training interactions; ties stay together."""
    counts = dict(data.train_interactions.group_by("user_id").len().iter_rows())
    third = _thirds({u: counts.get(u, 0) for u in users})
    return [GROUPS[third[u]] for u in users]


def _thirds(number_of: Mapping[str, float]) -> dict[str, int]:
    """Return user → 0, 1 or 2: the third of the users that the user's number is in; equal numbers stay together."""
    numbers = list(number_of.values())
    third = np.searchsorted(np.quantile(numbers, [1 / 3, 2 / 3]), numbers)
    return dict(zip(number_of, third.tolist(), strict=True))


def group_table(
    values: Values, users: Sequence[str], data: PreparedData, baseline: str | None, alike: Sequence[str] = ()
) -> Table:
    """Return each ranker's headline metric in each activity group, with the difference to the baseline there.

    Its note names the attributes `alike`, which have no table of their own.
    """
    groups = groups_of(activity_groups(users, data), GROUPS)
    title = "of users with few, middle and many training interactions"
    note = _GROUPS_NOTE if data.users is not None else f"{_NO_ATTRIBUTES} {_GROUPS_NOTE}"
    if alike:
        note += f" Attributes without a table, since all rows are of one group: {', '.join(alike)}."
    return _accuracy_table(values, users, groups, baseline, "groups", title, note)


def attribute_tables(
    values: Values, users: Sequence[str], data: PreparedData, baseline: str | None
) -> tuple[list[Table], list[str]]:
    """Return the same by each attribute of the users in the prepared data (`attribute_groups`).

    Returns:
        the tables, and the attributes without a table because all rows are in one group.
    """
    if data.users is None:
        return [], []
    tables, alike = [], []
    for attribute in (c for c in data.users.columns if c != "user_id"):
        values_of = dict(data.users.select("user_id", attribute).cast(pl.String).iter_rows())
        groups, order = attribute_groups([values_of.get(u) or UNKNOWN for u in users], users)
        if len(order) > 1:
            name = f"groups-{slug(attribute)}"
            title = f"by {attribute}"
            grouped = groups_of(groups, order)
            tables.append(_accuracy_table(values, users, grouped, baseline, name, title, _ATTRIBUTES_NOTE))
        else:
            alike.append(attribute)
    return tables, alike


def _accuracy_table(
    values: Values, users: Sequence[str], groups: Groups, baseline: str | None, name: str, title: str, note: str
) -> Table:
    measured = measure_groups(values, users, groups, baseline)
    metric = next(iter(measured.values())).headline[-1]
    return grouped_table(measured, metric, name=name, title=title, note=note)


def attribute_groups(values: Sequence[str], users: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the group of each row [B] by an attribute of its user, and the groups in the order of a table.

    Many distinct numbers, such as ages, give thirds of the users, with equal numbers together; `NOT_TOLD` values
    among them are a group of their own. Names give a group each, the largest first; groups of fewer than `LEAST` rows
    are put together.
    """
    known = {u: t for u, t in zip(users, values, strict=True) if t != UNKNOWN}
    numbers = {u: float(t) for u, t in known.items() if _is_number(t)}
    others = {t.strip().lower() for u, t in known.items() if u not in numbers}
    if others <= NOT_TOLD and len(set(numbers.values())) > MOST_NUMBERS:
        return _number_groups(numbers, users)
    counts = Counter(values)
    groups = [t if t == UNKNOWN or counts[t] >= LEAST else OTHERS for t in values]
    sizes = Counter(groups)
    return groups, sorted(sizes, key=lambda g: (g in (OTHERS, UNKNOWN), g == UNKNOWN, -sizes[g], g))


def _number_groups(number_of: Mapping[str, float], users: Sequence[str]) -> tuple[list[str], list[str]]:
    third = _thirds(number_of)
    names = {}
    for position in sorted(set(third.values())):
        own = [number for u, number in number_of.items() if third[u] == position]
        names[position] = f"{min(own):.15g} to {max(own):.15g}"
    groups = [names[third[u]] if u in third else UNKNOWN for u in users]
    return groups, [*names.values(), *([UNKNOWN] if UNKNOWN in groups else [])]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_NOTE = (
    "Popularity is the number of training interactions. Uniform candidates make popular targets easy; "
    f"“{TAKEN}” shows how popular the right answers are."
)
_EXPOSURE_NOTE = (
    "Coverage and Gini index have no interval: resampled users have fewer distinct items, which shifts both."
)
_GROUPS_NOTE = "95% intervals over the users of the group."
_NO_ATTRIBUTES = "The prepared data have no attributes of users. If the source has some, prepare the data again."
_ATTRIBUTES_NOTE = (
    f"“{OTHERS}” joins groups of fewer than {LEAST} rows; no prompt contains attributes. {_GROUPS_NOTE}"
)

FAIRNESS = Study(
    "fairness",
    "Do SFT, DPO and S-DPO recommend popular items, and are they right for users with few interactions?",
    "the stage: before training, after SFT, after DPO, after S-DPO, beside rankers without a language model.",
    vary,
    analyse,
    reads_any_run=True,
)

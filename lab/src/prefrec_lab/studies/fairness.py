"""Study: popularity bias of what each stage recommends, and for which users it is right."""

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
from prefrec.pipeline.opened import Run
from prefrec.pipeline.recipe import Recipe
from prefrec_lab.studies.alignments import dpo_and_s_dpo
from prefrec_lab.studies.groups import Groups, grouped_table, groups_of, measure_groups
from prefrec_lab.studies.measure import Values, measure, of_rankers, ranking_values
from prefrec_lab.studies.plots import dots, slug
from prefrec_lab.studies.study import Outcome, Study, Table
from prefrec_lab.studies.tables import facts_of, plain_table, results_table

TAKEN = "what users took"
"""Variant: the targets themselves, which popularity bias is measured against."""

DEPTHS = (1, 5)
"""Items of the list that count as recommended."""

LABELS = {f"top {k}": f"popularity of the first {k}" if k > 1 else "popularity of the first" for k in DEPTHS}

GROUPS = ("few", "middle", "many")
"""Thirds of the users under test, by their number of training interactions."""

LEAST = 20
"""Rows of a group by an attribute; the users of smaller groups stand together as `OTHERS`."""

MOST_NUMBERS = 8
"""Different numbers of an attribute; with more, as ages have, thirds of the users are its groups."""

NOT_TOLD = frozenset({"", "-", "?", "n/a", "na", "nan", "none", "null", "unknown"})
"""How tables write, among numbers, that one is not known; in any case."""

OTHERS, UNKNOWN = "others", "not told"


def vary(base: Recipe, data: PreparedData) -> Recipe:
    """DPO and S-DPO, and the model before any training beside them."""
    recipe = dpo_and_s_dpo(base, data)
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"zero_shot": True})})


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Popularity of the recommended items, how many different ones there are, and accuracy by activity."""
    predictions = of_rankers(runs)
    data = runs[0].data
    users = next(iter(predictions.values()))[0]["user_id"].to_list()
    start = runs[0].start if runs[0].start in predictions else None
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
    """Item → training interactions."""
    found = data.train_interactions.group_by("item_id").len()
    return dict(zip(found["item_id"].to_list(), found["len"].to_list(), strict=True))


def popularity_values(predictions: Mapping[str, Sequence[pl.DataFrame]], counts: Mapping[str, int]) -> Values:
    """Mean training interactions [S, B] of the first items of each list, and of the targets (`TAKEN`)."""
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
    """The k candidates of each row with the highest scores, best first; ties in the order of their ids."""
    found = []
    for candidates, scores in frame.select("candidates", "scores").iter_rows():
        order = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i]))
        found.append([candidates[i] for i in order[:k]])
    return found


def exposure_frame(predictions: Mapping[str, Sequence[pl.DataFrame]]) -> pl.DataFrame:
    """Coverage and Gini coefficient of the recommended items, mean over the seeds.

    Both are about the items that stand in the lists: coverage is the share of them that is recommended at all, the
    Gini coefficient is 0 where all are recommended equally often and near 1 where one takes all.
    """
    rows = []
    for name, frames in predictions.items():
        listed = sorted({i for c in frames[0]["candidates"].to_list() for i in c})
        row: dict[str, Any] = {"ranker": name}
        for k in DEPTHS:
            times = [_times(recommended(frame, k), listed) for frame in frames]
            row[f"coverage at {k}"] = float(np.mean([(t > 0).mean() for t in times]))
            row[f"Gini at {k}"] = float(np.mean([gini(t) for t in times]))
        rows.append(row)
    return pl.DataFrame(rows)


def _times(lists: Sequence[Sequence[str]], items: Sequence[str]) -> NDArray[np.int64]:
    """How often each item is in the lists [I]."""
    counted = Counter(i for one in lists for i in one)
    return np.array([counted[i] for i in items], dtype=np.int64)


def gini(values: NDArray[np.int64]) -> float:
    """The Gini coefficient of counts [I]: the mean absolute difference of two of them, over twice the mean."""
    ordered = np.sort(values)
    n = len(ordered)
    weights = 2 * np.arange(1, n + 1) - n - 1
    return float((weights * ordered).sum() / (n * ordered.sum()))


def activity_groups(users: Sequence[str], data: PreparedData) -> list[str]:
    """The group of each row's user [B]: thirds of the users by training interactions; equal counts stay together."""
    found = data.train_interactions.group_by("user_id").len()
    counts = dict(zip(found["user_id"].to_list(), found["len"].to_list(), strict=True))
    of_user = {u: counts.get(u, 0) for u in users}
    third = _thirds(of_user)
    return [GROUPS[third[u]] for u in users]


def _thirds(of_user: Mapping[str, float]) -> dict[str, int]:
    """User → 0, 1 or 2: the third of the users in which the user's number lies; equal numbers stay together."""
    numbers = list(of_user.values())
    third = np.searchsorted(np.quantile(numbers, [1 / 3, 2 / 3]), numbers)
    return dict(zip(of_user, third.tolist(), strict=True))


def group_table(
    values: Values, users: Sequence[str], data: PreparedData, baseline: str | None, alike: Sequence[str] = ()
) -> Table:
    """The headline metric of each ranker in each activity group, with the difference to the baseline there.

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
    """The same by each attribute of the users that prepared data hold; see `attribute_groups`.

    Returns:
        the tables, and the attributes that put all rows into one group and have none.
    """
    if data.users is None:
        return [], []
    found, alike = [], []
    for attribute in (c for c in data.users.columns if c != "user_id"):
        told = dict(data.users.select("user_id", attribute).cast(pl.String).iter_rows())
        groups, order = attribute_groups([told.get(u) or UNKNOWN for u in users], users)
        if len(order) > 1:
            name, title, grouped = f"groups-{slug(attribute)}", f"by {attribute}", groups_of(groups, order)
            found.append(_accuracy_table(values, users, grouped, baseline, name, title, _ATTRIBUTES_NOTE))
        else:
            alike.append(attribute)
    return found, alike


def _accuracy_table(
    values: Values, users: Sequence[str], groups: Groups, baseline: str | None, name: str, title: str, note: str
) -> Table:
    measured = measure_groups(values, users, groups, baseline)
    metric = next(iter(measured.values())).headline[-1]
    return grouped_table(measured, metric, name=name, title=title, note=note)


def attribute_groups(told: Sequence[str], users: Sequence[str]) -> tuple[list[str], list[str]]:
    """The group of each row [B] by what is told of its user, and the groups in the order of a table.

    Numbers of many kinds, as ages, give thirds of the users, equal numbers together, and what is `NOT_TOLD` among
    them a group of its own; names give a group each, the largest first, and those of fewer than `LEAST` rows stand
    together.
    """
    known = {u: t for u, t in zip(users, told, strict=True) if t != UNKNOWN}
    numbers = {u: float(t) for u, t in known.items() if _is_number(t)}
    rest = {t.strip().lower() for u, t in known.items() if u not in numbers}
    if rest <= NOT_TOLD and len(set(numbers.values())) > MOST_NUMBERS:
        return _number_groups(numbers, users)
    counts = Counter(told)
    groups = [t if t == UNKNOWN or counts[t] >= LEAST else OTHERS for t in told]
    sizes = Counter(groups)
    return groups, sorted(sizes, key=lambda g: (g in (OTHERS, UNKNOWN), g == UNKNOWN, -sizes[g], g))


def _number_groups(of_user: Mapping[str, float], users: Sequence[str]) -> tuple[list[str], list[str]]:
    third = _thirds(of_user)
    names = {}
    for place in sorted(set(third.values())):
        own = [number for u, number in of_user.items() if third[u] == place]
        names[place] = f"{min(own):.15g} to {max(own):.15g}"
    groups = [names[third[u]] if u in third else UNKNOWN for u in users]
    return groups, [*names.values(), *([UNKNOWN] if UNKNOWN in groups else [])]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


_NOTE = (
    "Popularity is the number of training interactions. Uniform candidates make popular targets easy: "
    f"“{TAKEN}” says how popular the right answers are."
)
_EXPOSURE_NOTE = (
    "Coverage and Gini coefficient have no interval: resampled users see fewer different items, which shifts both."
)
_GROUPS_NOTE = "In brackets 95% intervals by bootstrap over the users of the group."
_NO_ATTRIBUTES = (
    "Groups by activity: the prepared data hold no attributes of users. Where the source tells some, prepare the "
    "data again."
)
_ATTRIBUTES_NOTE = (
    f"Groups of fewer than {LEAST} rows stand together as “{OTHERS}”; attributes are no part of any prompt. "
    f"{_GROUPS_NOTE}"
)

FAIRNESS = Study(
    "fairness",
    "Do SFT, DPO and S-DPO recommend what is popular, and are they right for users with few interactions?",
    "the stage: before training, after SFT, after DPO, after S-DPO, beside rankers without a language model.",
    vary,
    analyse,
    reads_any_run=True,
)

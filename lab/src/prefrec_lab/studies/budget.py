"""Study: what S-DPO adds to SFT on few and on many histories, beside more SFT (trial E1; budget.yaml declares it)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefrec.errors import ConfigError
from prefrec.evaluation.labels import metric_label
from prefrec.pipeline.opened import Run, open_run
from prefrec.pipeline.run import run_recipe
from prefrec.recipe import Recipe, checked_recipe
from prefrec.report.wording import label
from prefrec.sections import AlignSection
from prefrec_lab.findings import Band
from prefrec_lab.studies.alignments import variant
from prefrec_lab.study_tools.measure import Values, measure, ranker_predictions, ranking_values, users_of
from prefrec_lab.study_tools.plots import Series, lines, slug
from prefrec_lab.study_tools.study import Outcome, Study, as_it_is, varied_alignment
from prefrec_lab.study_tools.tables import facts_of, grouped_table

BUDGETS: list[int | None] = [200, None]
"""Numbers of users whose histories SFT reads. None stands for all users."""


@dataclass(frozen=True)
class Dose:
    """The number of examples that each arm reads, and the learning rates that are tried.

    Attributes:
        rows: number of examples.
        rates: learning rates; there is an arm of each objective for each rate.
    """

    rows: int
    rates: tuple[float, ...]


DOSE = Dose(300, (1e-5, 1e-4))
"""The study's dose: ten arms are to be trained in an hour on two cores."""

LARGER_DOSE = Dose(1000, (1e-5, 3e-5))
"""A second dose, after all histories alone: the first changed the model little, and 1e-4 made it worse."""

BETAS = (0.1, 1.0)
"""β of S-DPO."""

CONTROL = "sft-more"
"""Prefix of the arms that continue SFT on the same examples. The other arms are compared with the best of them."""

HIT_RATE = "hr@1"
"""The declared metric: whether the target has the highest likelihood among the candidates."""

MARGIN = Band(0.01)
"""The declared margin: a difference is equivalent to none if its interval lies within it."""


def arms(base: Recipe, dose: Dose) -> list[AlignSection]:
    """Return the arms of the trial: S-DPO, the list's softmax, DPO and more SFT, each with the rates of a dose.

    All other settings are those of the base recipe's S-DPO. SFT also goes on at its own rate.
    """
    one = varied_alignment(base)
    found = []
    for rate in dose.rates:
        given: dict[str, Any] = {"learning_rate": rate}
        at = f"{rate:.0e}".replace("e-0", "e-")
        found += [variant(one, f"s-dpo-beta{beta:g}-{at}", beta=beta, **given) for beta in BETAS]
        found.append(variant(one, f"softmax-{at}", loss="softmax", **given))
        found.append(variant(one, f"dpo-{at}", loss="dpo", num_negatives=1, **given))
        found.append(variant(one, f"{CONTROL}-{at}", loss="sft", num_negatives=1, **given))
    assert base.sft is not None  # of `budget_recipe`
    found.append(variant(one, CONTROL, loss="sft", num_negatives=1, learning_rate=base.sft.learning_rate))
    return found


def budget_recipe(base: Recipe, users: int | None, dose: Dose | None = None) -> Recipe:
    """Return the recipe in which SFT reads the histories of so many users, or of all.

    All arms read the same examples, as many as the dose says (default: `DOSE`). SFT has read some of them: after all
    histories there are no others.

    Raises:
        ConfigError: the recipe has no SFT, or does not measure the hit rate.
    """
    if base.sft is None:
        raise ConfigError("sft: the study varies the histories that SFT reads, but the recipe has no SFT: add sft")
    if 1 not in base.evaluate.ks:
        raise ConfigError(f"evaluate.ks: the study compares by {metric_label(HIT_RATE)}: add 1")
    dose = dose or DOSE
    raw = base.model_dump(mode="json")
    raw["sft"] |= {"rows": users}
    raw["align"] = [arm.model_dump(mode="json") | {"rows": dose.rows} for arm in arms(base, dose)]
    return checked_recipe(raw)


def name_of(users: int | None) -> str:
    """Return the name of a budget, which is that of its folder, too."""
    return "all" if users is None else str(users)


def make(base: Recipe, folder: Path) -> Run:
    """Make a run of each budget in FOLDER/USERS; return that of the largest."""
    for users in BUDGETS:
        run_recipe(budget_recipe(base, users), folder / name_of(users), until="evaluate")
    return open_run(folder / name_of(BUDGETS[-1]))


def analyse(runs: Sequence[Run], folder: Path) -> Outcome:
    """Compare each arm with the best of those that continue SFT, for each budget."""
    baselines, models = runs[0].recipe.evaluate.baselines, runs[0].recipe.lm_rankers
    measured = {}
    for users in BUDGETS:
        predictions = ranker_predictions([open_run(run.folder.parent / name_of(users)) for run in runs])
        ordered = {name: predictions[name] for name in (*baselines, *models)}
        values = ranking_values(ordered, runs[0].recipe.evaluate.ks)
        measured[name_of(users)] = measure(values, users_of(predictions), baseline=best_control(values))
    last = measured[name_of(BUDGETS[-1])]
    all_users = runs[0].data.protocol["counts"]["row_users"]["train"]
    read = [users or all_users for users in BUDGETS]
    compared = [name for name in models if not name.startswith(CONTROL)]
    gaps = {name: [own.differences[name][HIT_RATE] for own in measured.values()] for name in compared}
    heading = f"{metric_label(HIT_RATE)}, − SFT continued"
    hint = f"Above 0: better than SFT on as many examples. Bars: 95% intervals over users. Dashed: ±{MARGIN.width:g}."
    series = [Series(name, read, own) for name, own in gaps.items()]
    level = {"equivalent from": -MARGIN.width, "equivalent to": MARGIN.width}
    x_label = "histories read by SFT"
    drawing = lines(slug(HIT_RATE), heading, series, x_label=x_label, log=True, hint=hint, level=level)
    tables = [
        grouped_table(measured, q, name=name, title="by histories", group="histories")
        for q, name in ((HIT_RATE, "table"), ("ndcg@10", slug("ndcg@10")))
        if q in last.quantities
    ]
    facts = []
    for name, own in measured.items():
        facts += [f"SFT on {name} histories. {fact}" for fact in facts_of(own, compared, None, [HIT_RATE])]
    for name, differences in gaps.items():
        within = []
        for users, gap in zip(read, differences, strict=True):
            if MARGIN.contains(gap):
                within.append(f"{users:,}")
        if within:
            told = f"{label(name)} − SFT continued is equivalent (within ±{MARGIN.width:g})"
            facts.append(f"{told} with {', '.join(within)} histories.")
    return Outcome(tables, [drawing], facts, last.n, last.users)


def best_control(values: Values) -> str:
    """Return the arm that continues SFT with the best hit rate.

    A learning rate that spoils the model would make each other arm win.
    """
    controls = [name for name in values if name.startswith(CONTROL)]
    return max(controls, key=lambda name: values[name][HIT_RATE].mean())


BUDGET = Study(
    "budget",
    "From which number of histories on does S-DPO add nothing that SFT on the same examples does not?",
    "the histories that SFT reads. Then S-DPO, DPO, the list's softmax and more SFT read the same 300 examples, all "
    "from the same SFT model.",
    as_it_is,
    analyse,
    make=make,
    base="budget.yaml",
)
